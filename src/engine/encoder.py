"""Bi-encoder: texts to unit vectors."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from src.core.errors import UserError
from src.engine.batches import token_budget_batches
from src.engine.devices import CpuEngine, explain_loading
from src.engine.openvino_graphs import (
    CACHE_TOKENS,
    BackendUnavailableError,
    GraphRunner,
    Inputs,
    Traceable,
    ensure_converted,
)

Role = Literal["query", "document"]
Progress = Callable[[int], None]

log = logging.getLogger(__name__)


class SentenceEncoder:
    """A sentence-transformers model that encodes questions and passages with their own prefixes.

    Args:
        directory: a sentence-transformers directory.
        device: torch device.
        query_prefix, document_prefix: put before each text; ``None`` takes the model's own prompts (none where it
            has none).
        max_tokens: longest input in tokens; longer texts are cut by the model's tokenizer.
        cpu: how a CPU runs the model; ``None`` leaves it to sentence-transformers, and so does any other device.
        fingerprint: of the model, which names its conversion; needed with ``cpu``.

    Raises:
        UserError: where the model cannot be loaded, or ``cpu`` insists on OpenVINO and that cannot run it.
    """

    def __init__(
        self,
        directory: Path,
        device: str = "cpu",
        query_prefix: str | None = None,
        document_prefix: str | None = None,
        max_tokens: int | None = None,
        cpu: CpuEngine | None = None,
        fingerprint: str = "",
    ) -> None:
        with explain_loading("ENCODERS", directory):
            self.model = SentenceTransformer(
                str(directory), device=device, trust_remote_code=False, local_files_only=True
            )
        if max_tokens is not None:
            self.model.max_seq_length = min(max_tokens, self.model.max_seq_length or max_tokens)
        prompts = self.model.prompts or {}
        self.prefixes: dict[Role, str] = {
            "query": prompts.get("query", "") if query_prefix is None else query_prefix,
            "document": (prompts.get("document") or prompts.get("passage") or "")
            if document_prefix is None
            else document_prefix,
        }
        self.runner: GraphRunner | None = None
        if cpu is not None and device == "cpu" and cpu.engine != "torch":
            self.runner = self._runner(directory.name, fingerprint, cpu)

    def _runner(self, name: str, fingerprint: str, cpu: CpuEngine) -> GraphRunner | None:
        try:
            graph = ensure_converted(
                name, fingerprint, cpu.kept / fingerprint[:16], lambda: _traceable(self.model)
            )  # fmt: skip
        except BackendUnavailableError as error:
            if cpu.engine == "openvino":
                raise UserError(f"OpenVINO cannot run the bi-encoder {name}: {error}.") from error
            log.warning("OpenVINO cannot run the bi-encoder %s (%s): torch runs it.", name, error)
            return None
        return GraphRunner(graph, bfloat16=False, threads=cpu.threads)

    @property
    def backend(self) -> str:
        """What runs the model, for the log."""
        return "torch" if self.runner is None else "OpenVINO"

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer (Hugging Face, fast)."""
        return self.model.tokenizer

    def encode(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Encode texts; equal texts are encoded once.

        Args:
            texts: N texts, without prefix.
            role: which prefix to put before them.
            batch_size: texts per forward pass.
            progress: called with the number of further texts done.

        Returns:
            float32 [N, D], rows of unit length.

        Raises:
            FloatingPointError: where the model returned a vector that is not finite.
        """
        unique: dict[str, int] = {}
        rows = np.fromiter((unique.setdefault(text, len(unique)) for text in texts), dtype=np.int64, count=len(texts))
        copies = np.bincount(rows, minlength=len(unique)) if len(texts) else np.zeros(0, dtype=np.int64)
        ordered = sorted(unique, key=len, reverse=True)
        vectors = np.zeros((len(unique), self.dimension), dtype=np.float32)
        # Blocks only pace the progress bar; within one, texts are sorted by length again.
        block = batch_size * 8
        for start in range(0, len(ordered), block):
            part = ordered[start : start + block]
            positions = [unique[text] for text in part]
            vectors[positions] = self._encode(part, role, batch_size)
            if progress is not None:
                progress(int(copies[positions].sum()))
        if not np.isfinite(vectors).all():
            bad = (
                ordered[0]
                if len(ordered) == 1
                else next(t for t in ordered if not np.isfinite(vectors[unique[t]]).all())
            )
            raise FloatingPointError(f"the bi-encoder returned a vector that is not finite, for the text {bad[:80]!r}")
        return vectors[rows]

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int) -> npt.NDArray[np.float32]:
        if self.runner is None:
            found: npt.NDArray[np.float32] = self.model.encode(
                list(texts),
                prompt=self.prefixes[role],
                batch_size=batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ).astype(np.float32)
            return found
        rows = self.tokenizer(
            [self.prefixes[role] + text for text in texts],
            truncation=True,
            max_length=self.model.max_seq_length,
        )["input_ids"]
        vectors = np.full((len(texts), self.dimension), np.nan, dtype=np.float32)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        batches = token_budget_batches(lengths, batch_size, CACHE_TOKENS)
        self.runner.run(((batch, self._padded([rows[i] for i in batch])) for batch in batches), vectors)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(norms == 0.0, 1.0, norms)
        return vectors

    def _padded(self, rows: Sequence[Sequence[int]]) -> Inputs:
        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), int(self.tokenizer.pad_token_id or 0), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        lengths = np.array([[len(row)] for row in rows])
        return {"input_ids": ids, "attention_mask": (np.arange(width) < lengths).astype(np.int64)}


class _SentenceGraph(nn.Module):
    """Every module of a sentence-transformers model, pooling and further layers included."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.parts = nn.ModuleList(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for part in self.parts:
            features = part(features)
        return features["sentence_embedding"]


def _traceable(model: SentenceTransformer) -> Traceable:
    tokenizer = model.tokenizer
    if getattr(tokenizer, "padding_side", "right") != "right" or tokenizer.pad_token_id is None:
        raise BackendUnavailableError("its tokenizer does not pad on the right")
    graph = _SentenceGraph(model)
    return Traceable(
        graph=graph,
        reference=lambda inputs: graph(**inputs),
        inputs=("input_ids", "attention_mask"),
        vocabulary=len(tokenizer),
        pad=int(tokenizer.pad_token_id),
    )
