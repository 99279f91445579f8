"""Cross-encoder: (question, passage) pairs to scores."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from src.core.errors import UserError
from src.engine.batches import token_budget_batches
from src.engine.devices import Precision, explain_loading, half_precision
from src.engine.tokens import PairTemplate, TokenTable, tokenize

Pairs = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


class PairScorer(Protocol):
    """Anything that scores pairs of tokenised texts."""

    def tokenize(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts for this model."""
        ...

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs: int32 [P, 2] (row of ``questions``, row of ``passages``) -> float32 [P], higher is better."""
        ...

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have."""
        ...


class TorchPairScorer:
    """A Hugging Face sequence classifier with one logit, run by torch.

    Args:
        directory: the model's directory.
        device: torch device.
        batch_size: most pairs per forward pass; times ``max_length`` it also bounds the tokens.
        max_length: most tokens in a pair; the passage is cut, never the question. A question that would leave less
            than half of it to the passage may use the model's own limit.
        precision: ``exact`` is float32; ``fast`` runs under autocast to the 16-bit type that the device multiplies
            in hardware, where it has one.

    Raises:
        UserError: where the model has not exactly one logit, or its files cannot be loaded.
    """

    def __init__(
        self, directory: Path, device: str, batch_size: int, max_length: int, precision: Precision = "exact"
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
        self.directory = directory
        self.model: Any = None
        self.device = torch.device(device)
        self.half = half_precision(device) if precision == "fast" else None
        self.batch_size = batch_size
        self.template = PairTemplate.of(self.tokenizer)
        self.model_limit = self._model_limit(config)
        self.max_length = min(max_length, self.model_limit)

    def load(self) -> None:
        """Load the weights, once; scoring does so by itself. Tokenising needs none.

        Raises:
            UserError: where the model's files cannot be loaded.
        """
        if self.model is not None:
            return
        with explain_loading("CROSS_ENCODER_MODEL", self.directory):
            model = AutoModelForSequenceClassification.from_pretrained(
                self.directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32
            )
        self.model = model.to(self.device).eval()

    def _model_limit(self, config: Any) -> int:
        positions = int(getattr(config, "max_position_embeddings", 0) or 512)
        # RoBERTa counts positions from pad_token_id + 1, so two of its 514 can never be used.
        if config.model_type in {"roberta", "xlm-roberta", "camembert"}:
            positions -= int(config.pad_token_id) + 1
        return min(positions, int(self.tokenizer.model_max_length))

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have: the model's limit less the special tokens and one of the passage."""
        return self.model_limit - self.template.special_tokens - 1

    @property
    def arithmetic(self) -> str:
        """The type that matrices are multiplied in, for the log."""
        return str(self.half or torch.float32).removeprefix("torch.")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None)

    def tokenize(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts without special tokens."""
        return tokenize(self.tokenizer, texts)

    def _limits(self, question_lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        long = question_lengths > (self.max_length - self.template.special_tokens) // 2
        return np.where(long, self.model_limit, self.max_length)

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs, in batches of similar length.

        Returns:
            float32 [P]: raw logits, which keep order where a sigmoid would saturate.

        Raises:
            UserError: where the device runs out of memory, a question is too long, or a score is not finite.
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
        limits = self._limits(question_lengths)
        lengths = self.template.pair_lengths(question_lengths, passages.lengths[pairs[:, 1]], limits)
        scores = np.empty(len(pairs), dtype=np.float32)
        budget = self.batch_size * self.max_length
        for batch in token_budget_batches(lengths, self.batch_size, budget):
            scores[batch] = self._forward(questions, passages, pairs[batch], limits[batch], int(lengths[batch[0]]))
        if not np.isfinite(scores).all():
            raise UserError("the cross-encoder returned a score that is not finite. The model's files may be damaged.")
        return scores

    def _forward(
        self, questions: TokenTable, passages: TokenTable, pairs: Pairs, limits: npt.NDArray[np.int64], width: int
    ) -> Scores:
        pad = self.tokenizer.pad_token_id
        ids = np.full((len(pairs), width), 0 if pad is None else pad, dtype=np.int64)
        mask = np.zeros((len(pairs), width), dtype=np.int64)
        types = np.zeros((len(pairs), width), dtype=np.int64)
        for i, ((question, passage), limit) in enumerate(zip(pairs.tolist(), limits.tolist(), strict=True)):
            joined = self.template.join(questions[question], passages[passage], limit)
            ids[i, : len(joined)] = joined
            mask[i, : len(joined)] = 1
            types[i, : len(joined)] = self.template.types(len(questions[question]), len(joined))
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.template.uses_types:
            inputs["token_type_ids"] = types
        on_device = {name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
        try:
            with torch.inference_mode(), self._autocast():
                logits = self.model(**on_device).logits
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {self.device} with {len(pairs)} pairs of {width} tokens. "
                f"Halve RERANKER_BATCH_SIZE (now {self.batch_size}) in config/settings.py."
            ) from error
        result: Scores = logits[:, 0].float().cpu().numpy()
        return result
