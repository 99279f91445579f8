"""Cross-encoder: (question, passage) pairs to scores."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from transformers import AutoConfig, AutoTokenizer

from src.core.errors import UserError
from src.engine.batches import TokenBatch, token_budget_batches
from src.engine.devices import CpuEngine, Precision, every_device, explain_loading, settled_precision
from src.engine.library_scorer import LibraryScorer
from src.engine.memory_limit import DoesNotFitError, PairTooLargeError
from src.engine.multi_vector_scorer import MultiVectorScorer, is_multi_vector
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.openvino_graphs import BackendUnavailableError
from src.engine.packed_backend import PackedBackend
from src.engine.pair_backends import PairBackend
from src.engine.split_backend import SplitBackend
from src.engine.tokens import PairTemplate, TokenTable, tokenize, usable_positions
from src.engine.torch_backend import TorchBackend

Pairs = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


class PairScorer(Protocol):
    """Anything that scores pairs of tokenised texts.

    Attributes:
        max_length: most tokens in a pair.
        joint: whether question and passage are read together, so that a pair costs what its tokens cost.
    """

    max_length: int
    joint: bool

    def load(self) -> None:
        """Load the weights, once; scoring does so by itself. Tokenising needs none."""
        ...

    def tokenize(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts for this model."""
        ...

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs: int32 [P, 2] (row of ``questions``, row of ``passages``) -> float32 [P], higher is better."""
        ...

    def pair_lengths(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> npt.NDArray[np.int64]:
        """Tokens that are read of each pair, int64 [P]: what its cost grows with."""
        ...

    def characters_read(self, question: str, passage: str) -> int:
        """Characters of a passage that fit beside the question; what follows them is never read."""
        ...

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have."""
        ...

    @property
    def arithmetic(self) -> str:
        """The type that matrices are multiplied in."""
        ...

    @property
    def backend_name(self) -> str:
        """What runs the model, for the log."""
        ...


class CrossEncoderScorer:
    """A Hugging Face sequence classifier with one logit: tokenises, joins, sorts and batches pairs for a backend.

    Args:
        directory: the model's directory.
        backend: what runs the model.
        batch_size: most pairs per forward pass; times ``max_length`` it also bounds the tokens.
        max_length: most tokens in a pair; the passage is cut, never the question. A question that would leave less
            than half of it to the passage may use the model's own limit.
        fallback: makes the backend to take instead, where the first one cannot run the model.

    Raises:
        UserError: where the model has not exactly one logit, or its files cannot be loaded.
    """

    joint = True

    def __init__(
        self,
        directory: Path,
        backend: PairBackend,
        batch_size: int,
        max_length: int,
        fallback: Callable[[], PairBackend] | None = None,
    ) -> None:
        with explain_loading("CROSS_ENCODER_MODEL", directory):
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        if config.num_labels != 1:
            raise UserError(
                f"CROSS_ENCODER_MODEL: {directory} has {config.num_labels} outputs, a reranker has 1. "
                "Name a cross-encoder with one logit."
            )
        with explain_loading("CROSS_ENCODER_MODEL", directory):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        self.backend = backend
        self.fallback = fallback
        self.loaded = False
        self.batch_size = batch_size
        self.template = PairTemplate.of(self.tokenizer)
        self.model_limit = min(usable_positions(config, 512), int(self.tokenizer.model_max_length))
        self.max_length = min(max_length, self.model_limit)

    def load(self) -> None:
        """Load the weights, once; scoring does so by itself. Tokenising needs none.

        Raises:
            UserError: where the model's files cannot be loaded.
        """
        if self.loaded:
            return
        reason: str | None = None
        try:
            self.backend.load()
        except BackendUnavailableError as error:
            reason = str(error)
        # Only here are the error, and with it the weights that its frames hold, gone.
        if reason is not None and self.fallback is None:
            raise UserError(f"{self.backend.name} cannot run the cross-encoder: {reason}.")
        if reason is not None and self.fallback is not None:
            unable, self.backend = self.backend.name, self.fallback()
            log.warning("%s cannot run the cross-encoder (%s): %s runs it.", unable, reason, self.backend.name)
            self.backend.load()
        self.loaded = True

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have: the model's limit less the special tokens and one of the passage."""
        return self.model_limit - self.template.special_tokens - 1

    @property
    def arithmetic(self) -> str:
        """The type that matrices are multiplied in."""
        return self.backend.arithmetic

    @property
    def backend_name(self) -> str:
        """What runs the model, for the log."""
        return self.backend.name

    def tokenize(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts without special tokens."""
        return tokenize(self.tokenizer, texts)

    def characters_read(self, question: str, passage: str) -> int:
        """Characters of a passage that fit beside the question; what follows them is never read.

        A tokenizer that cannot tell where its tokens stand in the text gives the length of the whole passage.
        """
        if not self.tokenizer.is_fast:
            return len(passage)
        asked = self.tokenize([question]).lengths
        room = int(self._limits(asked)[0] - asked[0]) - self.template.special_tokens
        found = self.tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = found["offset_mapping"]
        return len(passage) if len(spans) <= room else int(spans[room - 1][1]) if room > 0 else 0

    def _limits(self, question_lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        long = question_lengths > (self.max_length - self.template.special_tokens) // 2
        return np.where(long, self.model_limit, self.max_length)

    def pair_lengths(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> npt.NDArray[np.int64]:
        """Tokens of each pair with its special tokens, cut as it will be, int64 [P]."""
        asked, read = questions.lengths[pairs[:, 0]], passages.lengths[pairs[:, 1]]
        return self.template.pair_lengths(asked, read, self._limits(asked))

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs, in batches of similar length.

        Returns:
            float32 [P]: raw logits, which keep order where a sigmoid would saturate.

        Raises:
            PairTooLargeError: where memory does not hold a single pair.
            UserError: where a question is too long, or a score is not finite.
        """
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        self.load()
        question_lengths = questions.lengths[pairs[:, 0]]
        if int(question_lengths.max()) > self.longest_question:
            raise UserError(
                f"a question has {int(question_lengths.max())} tokens; this cross-encoder reads at most "
                f"{self.longest_question}. Shorten the question."
            )
        scores = np.full(len(pairs), np.nan, dtype=np.float32)
        try:
            self.backend.run(self.batches(questions, passages, pairs), scores)
        except DoesNotFitError as error:
            question, passage = pairs[error.row].tolist()
            raise PairTooLargeError(question, passage, error.tokens, error.device) from error
        if not np.isfinite(scores).all():
            raise UserError("the cross-encoder returned a score that is not finite. The model's files may be damaged.")
        return scores

    def batches(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Iterator[TokenBatch]:
        """Pairs as the backend gets them: joined, sorted by length, in batches."""
        limits = self._limits(questions.lengths[pairs[:, 0]])
        for rows in token_budget_batches(self.pair_lengths(questions, passages, pairs), *self._bounds()):
            joined = self.template.join(questions, passages, pairs[rows], limits[rows])
            yield TokenBatch(rows, joined, int(self.tokenizer.pad_token_id or 0))

    def _bounds(self) -> tuple[int, int]:
        """Most pairs and most tokens of a batch; halving the batch size halves both, and so the memory."""
        if self.backend.tokens_per_pair is not None:
            tokens = self.batch_size * self.backend.tokens_per_pair
            return tokens, tokens
        return self.batch_size, min(self.batch_size * self.max_length, self.backend.most_tokens or sys.maxsize)


def make_scorer(
    directory: Path,
    fingerprint: str,
    device: str,
    batch_size: int,
    max_length: int,
    precision: Precision,
    cpu: CpuEngine,
    remote_code: bool = False,
) -> PairScorer:
    """A scorer that fits the model, with the backend that fits the device.

    Args:
        fingerprint: of the model, which names its conversion.
        cpu: how a CPU runs the model; any other device runs it by torch.
        remote_code: whether the model's own Python code may run.

    Raises:
        UserError: where the model is no reranker.
    """
    precision = settled_precision(precision, device)
    reason = needs_library(directory)
    if reason is not None:
        log.info("%s is %s: sentence-transformers runs it (the slow path).", directory.name, reason)
        scorer = MultiVectorScorer if is_multi_vector(directory) else LibraryScorer
        return scorer(directory, device, batch_size, max_length, precision, remote_code)

    def torch_backend() -> PairBackend:
        return _on_all([TorchBackend(directory, each, precision) for each in every_device(device)])

    if device.startswith("cuda") and precision == "fast":
        packed = _on_all([PackedBackend(directory, each) for each in every_device(device)])
        return CrossEncoderScorer(directory, packed, batch_size, max_length, fallback=torch_backend)
    if cpu.engine == "torch" or device != "cpu":
        return CrossEncoderScorer(directory, torch_backend(), batch_size, max_length)
    backend = OpenVinoBackend(directory, fingerprint, cpu.kept, precision, cpu.threads)
    return CrossEncoderScorer(
        directory, backend, batch_size, max_length, fallback=torch_backend if cpu.engine == "auto" else None
    )


def _on_all(backends: Sequence[PairBackend]) -> PairBackend:
    return backends[0] if len(backends) == 1 else SplitBackend(backends)


def needs_library(directory: Path) -> str | None:
    """Why a model cannot take the fast path, which joins pairs itself and reads one logit; ``None`` where it can.

    Raises:
        UserError: where its files cannot be read, or are those of a bi-encoder.
    """
    with explain_loading("CROSS_ENCODER_MODEL", directory):
        if is_multi_vector(directory):
            return "a late-interaction model"
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        modules_file = directory / "modules.json"
        modules = json.loads(modules_file.read_text(encoding="utf-8")) if modules_file.is_file() else []
    if "AutoModelForSequenceClassification" in (config.get("auto_map") or {}):
        return "a model with Python code of its own"
    types = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if "Pooling" in types:
        raise UserError(
            f"CROSS_ENCODER_MODEL: {directory} is a bi-encoder (it has a pooling module), and would score at random. "
            "Name a cross-encoder, and this one in ENCODERS."
        )
    if "Dense" in types:
        raise UserError(
            f"CROSS_ENCODER_MODEL: {directory} is no cross-encoder (it has a Dense module, as encoders have), and "
            "would score at random. Name a cross-encoder."
        )
    if any(kind != "Transformer" for kind in types):
        return "a model of several modules"
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForCausalLM"):
        return "a causal language model"
    # transformers leaves the labels out of a configuration where there are two, its default.
    if architecture.endswith("ForSequenceClassification") and len(config.get("id2label") or "01") == 2:
        return "a classifier with two outputs"
    return None
