"""Bi-encoder: texts to unit vectors."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.memory import first_line, means_out_of_memory
from src.core.types import TokenVectors, offsets_of
from src.engine.batches import TokenBatch, token_budget_batches
from src.engine.devices import CpuEngine, explain_loading
from src.engine.memory_limit import DoesNotFitError
from src.engine.openvino_graphs import (
    CACHE_TOKENS,
    BackendUnavailableError,
    GraphRunner,
    Traceable,
    conversion_folder,
    ensure_converted,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Role = Literal["query", "document"]
CARD_BATCHES = 8  # a batch that fills the cores of a CPU leaves a card idle between two
Progress = Callable[[int], None]
OnTokens = Callable[[int, npt.NDArray[np.float32]], None]

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
        pooling: ``mean``, ``cls``, ``max``, ``lasttoken`` or ``weightedmean`` in place of the model's own.
        remote_code: whether the model's own Python code may run.

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
        pooling: str | None = None,
        remote_code: bool = False,
    ) -> None:
        # Takes seconds to import; most scripts only ask whether anything is stale.
        from sentence_transformers import SentenceTransformer

        with explain_loading("ENCODERS", directory):
            self.model = SentenceTransformer(
                str(directory), device=device, trust_remote_code=remote_code, local_files_only=True
            )
        if pooling is not None:
            _set_pooling(self.model, pooling, directory)
            fingerprint = converted_as(fingerprint, pooling)
        if self.tokenizer.pad_token_id is None:
            raise UserError(
                f"ENCODERS: the tokenizer in {directory} has no padding token. Set pad_token in its "
                "tokenizer_config.json, or name another model."
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
        self.largest_batch: int | None = None
        self.runner: GraphRunner | None = None
        if cpu is not None and device == "cpu" and cpu.engine != "torch":
            self.runner = self._runner(directory.name, fingerprint, cpu)

    def _runner(self, name: str, fingerprint: str, cpu: CpuEngine) -> GraphRunner | None:
        try:
            folder = conversion_folder(cpu.kept, fingerprint)
            graph = ensure_converted(name, fingerprint, folder, lambda: _traceable(self.model))
            return GraphRunner(graph, "float32", cpu.threads, "the bi-encoder")
        except BackendUnavailableError as error:
            if cpu.engine == "openvino":
                raise UserError(f"OpenVINO cannot run the bi-encoder {name}: {error}.") from error
            log.warning("OpenVINO cannot run the bi-encoder %s (%s): torch runs it.", name, error)
            return None

    @property
    def backend(self) -> str:
        """What runs the model, for the log."""
        return "torch" if self.runner is None else "OpenVINO"

    @property
    def dimension(self) -> int:
        """Length D of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @cached_property
    def token_dimension(self) -> int:
        """Length of the vector of a token; a layer after the pooling may make that of a text another."""
        (features,) = self._by_torch(["a"], "document", 1, output_value=None)
        return int(features["token_embeddings"].shape[-1])

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer (Hugging Face, fast)."""
        return self.model.tokenizer

    def token_counts(self, texts: Sequence[str], role: Role) -> npt.NDArray[np.int64]:
        """How many token vectors each text has, int64 [N]: its tokens with the prefix, special ones left out."""
        rows = self._token_ids(texts, role)
        return np.array([len(row) for row in rows], dtype=np.int64) - self._special_tokens

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        batch_size: int = 32,
        progress: Progress | None = None,
        on_tokens: OnTokens | None = None,
    ) -> npt.NDArray[np.float32]:
        """Encode texts; equal texts are encoded once.

        Args:
            texts: N texts, without prefix.
            role: which prefix to put before them.
            batch_size: texts per forward pass.
            progress: called with the number of further texts done.
            on_tokens: called for every text with its number and the vectors of its tokens in the last layer, float32
                [:meth:`token_counts`, :attr:`token_dimension`], of unit length: what late interaction compares.

        Returns:
            float32 [N, D], rows of unit length.

        Raises:
            UserError: where the model returned a vector that is not finite, or memory does not hold a single text.
        """
        unique: dict[str, int] = {}
        copies_of: dict[str, list[int]] = {}
        if on_tokens is not None:
            for number, text in enumerate(texts):
                copies_of.setdefault(text, []).append(number)
        rows = np.fromiter((unique.setdefault(text, len(unique)) for text in texts), dtype=np.int64, count=len(texts))
        copies = np.bincount(rows, minlength=len(unique)) if len(texts) else np.zeros(0, dtype=np.int64)
        ordered = sorted(unique, key=len, reverse=True)
        vectors = np.zeros((len(unique), self.dimension), dtype=np.float32)
        # Blocks only pace the progress bar; within one, texts are sorted by length again.
        block = batch_size * 8
        for start in range(0, len(ordered), block):
            part = ordered[start : start + block]
            positions = [unique[text] for text in part]
            vectors[positions] = self._encode(part, role, batch_size, _to_copies(part, copies_of, on_tokens))
            if progress is not None:
                progress(int(copies[positions].sum()))
        if not np.isfinite(vectors).all():
            bad = (
                ordered[0]
                if len(ordered) == 1
                else next(t for t in ordered if not np.isfinite(vectors[unique[t]]).all())
            )
            raise UserError(
                f"the bi-encoder returned a vector that is not finite, for the text {bad[:80]!r}. The model's files "
                "may be damaged: copy them anew, or name another model in ENCODERS."
            )
        return vectors[rows]

    def encode_tokens(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[npt.NDArray[np.float32], TokenVectors]:
        """Vectors of texts and of their tokens, all in memory; arguments as in :meth:`encode`."""
        offsets = offsets_of(self.token_counts(texts, role))
        values = np.zeros((int(offsets[-1]), self.token_dimension), dtype=np.float16)

        def keep(number: int, vectors: npt.NDArray[np.float32]) -> None:
            values[offsets[number] : offsets[number + 1]] = vectors

        return self.encode(texts, role, batch_size, progress, keep), TokenVectors(values, offsets)

    @cached_property
    def _special_tokens(self) -> int:
        return len(self.tokenizer("")["input_ids"])

    def _token_ids(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(
            [self.prefixes[role] + text for text in texts], truncation=True, max_length=self.model.max_seq_length
        )["input_ids"]
        return found

    def _encode(
        self, texts: Sequence[str], role: Role, batch_size: int, on_tokens: OnTokens | None
    ) -> npt.NDArray[np.float32]:
        vectors = np.full((len(texts), self.dimension), np.nan, dtype=np.float32)
        if self.runner is None:
            self._encode_by_torch(texts, role, batch_size, vectors, on_tokens)
        else:
            rows = self._token_ids(texts, role)
            lengths = np.array([len(row) for row in rows], dtype=np.int64)

            def store(batch: npt.NDArray[np.int64], outputs: list[npt.NDArray[np.float32]]) -> None:
                vectors[batch] = outputs[0]
                if on_tokens is not None:
                    for place, i in enumerate(batch.tolist()):
                        on_tokens(i, self._inner_tokens(outputs[1][place, : lengths[i]]))

            batches = token_budget_batches(lengths, batch_size, CACHE_TOKENS)
            pad = int(self.tokenizer.pad_token_id)
            texts_of = (TokenBatch.of_rows(batch, [rows[i] for i in batch], pad) for batch in batches)
            try:
                self.runner.run(texts_of, store)
            except DoesNotFitError as error:
                raise _too_large(texts[error.row], error) from error
        return _unit(vectors)

    def _encode_by_torch(
        self,
        texts: Sequence[str],
        role: Role,
        batch_size: int,
        vectors: npt.NDArray[np.float32],
        on_tokens: OnTokens | None,
    ) -> None:
        if on_tokens is None:
            vectors[:] = self._by_torch(texts, role, batch_size, convert_to_numpy=True)
            return
        found = self._by_torch(texts, role, batch_size, output_value=None)
        # A card is waited for with every copy: one for all texts, not three for each.
        vectors[:] = torch.stack([one["sentence_embedding"] for one in found]).float().cpu().numpy()
        filled = torch.cat([one["attention_mask"] for one in found]).bool().cpu().numpy()
        tokens = torch.cat([one["token_embeddings"] for one in found]).float().cpu().numpy()
        ends = np.cumsum([len(one["attention_mask"]) for one in found])
        for i, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
            on_tokens(i, self._inner_tokens(tokens[start:end][filled[start:end]]))

    def _by_torch(self, texts: Sequence[str], role: Role, batch_size: int, **asked: Any) -> Any:
        """What sentence-transformers makes of texts, in smaller batches where memory runs out."""
        if self.model.device.type == "cuda":
            batch_size *= CARD_BATCHES
        while True:
            size = batch_size if self.largest_batch is None else min(batch_size, self.largest_batch)
            try:
                return self.model.encode(
                    list(texts), prompt=self.prefixes[role], batch_size=size, show_progress_bar=False, **asked
                )
            except (MemoryError, RuntimeError) as error:
                if not means_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Only here is the error, and with it the tensors that its frames hold, gone.
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            size = min(size, len(texts))
            device = str(self.model.device)
            if size == 1:
                longest = max(texts, key=len)
                tokens = len(self._token_ids([longest], role)[0])
                raise _too_large(longest, DoesNotFitError(0, tokens, device))
            self.largest_batch = size // 2
            log.warning(
                "WARNING: the bi-encoder ran out of memory on %s with %d texts (%s): %d at a time from now on.",
                device, size, reason[:100], self.largest_batch,
            )  # fmt: skip

    def _inner_tokens(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Unit vectors of all but the special tokens around a text."""
        before = self._tokens_before
        return _unit(vectors[before : len(vectors) - (self._special_tokens - before)])

    @cached_property
    def _tokens_before(self) -> int:
        mask = self.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        return int(np.argmin(mask))


def converted_as(fingerprint: str, pooling: str | None) -> str:
    """What names the conversion of a model with a pooling of the settings; ``None`` leaves the model's own."""
    return fingerprint if pooling is None else f"{pooling}-{fingerprint}"


def _set_pooling(model: "SentenceTransformer", pooling: str, directory: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for number, module in enumerate(model):
        if isinstance(module, Pooling):
            model[number] = Pooling(module.embedding_dimension, pooling_mode=pooling)
            return
    raise UserError(f"ENCODERS: pooling {pooling!r} was asked for, but {directory.name} has no pooling to replace.")


def _too_large(text: str, error: DoesNotFitError) -> UserError:
    return UserError(
        f"the text {text[:80]!r} alone ({error.tokens} tokens) does not fit into the memory of {error.device}. Free "
        "some, lower ENCODER_MAX_TOKENS, or name a smaller model in ENCODERS."
    )


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = (vectors / np.where(norms == 0.0, 1.0, norms)).astype(np.float32)
    return unit


def _to_copies(part: Sequence[str], copies_of: Mapping[str, list[int]], on_tokens: OnTokens | None) -> OnTokens | None:
    """``on_tokens`` of a block of distinct texts, in numbers of all texts."""
    if on_tokens is None:
        return None

    def spread(i: int, vectors: npt.NDArray[np.float32]) -> None:
        for number in copies_of[part[i]]:
            on_tokens(number, vectors)

    return spread


class _SentenceGraph(nn.Module):
    """Every module of a sentence-transformers model, pooling and further layers included."""

    def __init__(self, model: "SentenceTransformer") -> None:
        super().__init__()
        self.parts = nn.ModuleList(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for part in self.parts:
            features = part(features)
        return features["sentence_embedding"], features["token_embeddings"]


def _traceable(model: "SentenceTransformer") -> Traceable:
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
        per_token=frozenset({1}),
    )
