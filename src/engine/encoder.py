"""Bi-encoder: texts to unit vectors."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from src.engine.devices import explain_loading

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
    """

    def __init__(
        self,
        directory: Path,
        device: str = "cpu",
        query_prefix: str | None = None,
        document_prefix: str | None = None,
        max_tokens: int | None = None,
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
        # Blocks only pace the progress bar; within one the library sorts by length again.
        block = batch_size * 4
        for start in range(0, len(ordered), block):
            part = ordered[start : start + block]
            positions = [unique[text] for text in part]
            vectors[positions] = self.model.encode(
                part,
                prompt=self.prefixes[role],
                batch_size=batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            ).astype(np.float32)
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
