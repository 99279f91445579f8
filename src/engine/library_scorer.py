"""Cross-encoders that are no plain one-logit classifier, run by sentence-transformers: the slow, general path.

Causal models with a template (Qwen3-Reranker, mxbai-rerank-v2), classifiers with two outputs, models with Python code
of their own. The library takes template and yes and no tokens from the model's own files.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from src.core.errors import UserError
from src.core.memory import first_line, means_out_of_memory
from src.engine.devices import Precision, explain_loading, half_precision
from src.engine.tokens import TokenTable, tokenize

# Of the Qwen3-Reranker card; for files from before sentence-transformers 5.4, whose template knows no pairs.
_QWEN3_RERANKER = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
<|im_start|>assistant
<think>

</think>{{ "\\n\\n" }}"""

Pairs = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable(TokenTable):
    """Token ids and the texts that they came from: this path joins texts, not ids."""

    texts: tuple[str, ...] = ()


class LibraryScorer:
    """Scores by ``sentence_transformers.CrossEncoder``.

    Args:
        directory: the model's directory.
        device: torch device.
        batch_size: pairs per forward pass.
        max_length: most tokens of question and passage together; the model's template comes on top of them. The
            passage is cut, never the question.
        precision: ``exact`` is float32; ``fast`` loads the weights in the 16-bit type that the device multiplies in
            hardware, where it has one.
        remote_code: whether the model's own Python code may run.

    Raises:
        UserError: where the model's files cannot be loaded.
    """

    def __init__(
        self, directory: Path, device: str, batch_size: int, max_length: int, precision: Precision, remote_code: bool
    ) -> None:
        self.directory = directory
        self.device = device
        self.batch_size = batch_size
        self.max_length = max_length
        self.remote_code = remote_code
        self.half = half_precision(device) if precision == "fast" else None
        self.arithmetic = str(self.half or torch.float32).removeprefix("torch.")
        self.model: Any = None
        with explain_loading("CROSS_ENCODER_MODEL", directory):
            from transformers import AutoTokenizer

            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=remote_code
            )

    @property
    def backend_name(self) -> str:
        """What runs the model, for the log."""
        return "sentence-transformers"

    def load(self) -> None:
        """Load the weights, once.

        Raises:
            UserError: where that fails, or the model has more than two outputs.
        """
        if self.model is not None:
            return
        from sentence_transformers import CrossEncoder

        with explain_loading("CROSS_ENCODER_MODEL", self.directory):
            model = CrossEncoder(
                str(self.directory),
                device=self.device,
                trust_remote_code=self.remote_code,
                local_files_only=True,
                activation_fn=torch.nn.Identity(),
                model_kwargs={"dtype": self.half or torch.float32},
            )
        if model.num_labels > 2:
            raise UserError(
                f"CROSS_ENCODER_MODEL: {self.directory} has {model.num_labels} outputs, a reranker has 1 or 2. "
                "Name a cross-encoder."
            )
        self._check_template(model)
        if self.tokenizer.pad_token_id is None:
            # Without a padding token a batch can only hold pairs of one length.
            self.batch_size = 1
        self.model = model

    def _check_template(self, model: Any) -> None:
        """Score one pair, so that a template that cannot hold a pair is known before the run."""
        try:
            model.predict([("a", "b")], show_progress_bar=False)
            return
        except ValueError as error:
            reason = str(error).splitlines()[0]
        if "qwen3-reranker" in str(self.directory).lower():
            model.processor.chat_template = _QWEN3_RERANKER
            model.predict([("a", "b")], show_progress_bar=False)
            return
        raise UserError(
            f"CROSS_ENCODER_MODEL: {self.directory} does not say how a pair is put to it: {reason} Take a revision "
            "with a modules.json for sentence-transformers, or name another model."
        )

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have: all but one of the pair."""
        return self.max_length - 1

    def tokenize(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts; the table keeps the texts too."""
        table = tokenize(self.tokenizer, texts)
        return TextTable(table.ids, table.offsets, tuple(texts))

    def pair_lengths(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> npt.NDArray[np.int64]:
        """Tokens that are read of each pair, without the model's template, int64 [P]."""
        whole = questions.lengths[pairs[:, 0]] + passages.lengths[pairs[:, 1]]
        lengths: npt.NDArray[np.int64] = np.minimum(whole, self.max_length)
        return lengths

    def characters_read(self, question: str, passage: str) -> int:
        """Characters of a passage that fit beside the question; what follows them is never read."""
        asked, read = self.tokenize([question]), self.tokenize([passage])
        assert isinstance(read, TextTable)
        return len(self._cut(read, 0, self.max_length - int(asked.lengths[0]), {}))

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs; see :class:`src.engine.pair_scorer.PairScorer`.

        Returns:
            float32 [P]: the raw score; of two outputs, the second less the first (the log-odds of "relevant").

        Raises:
            UserError: where memory does not hold one pair, or a score is not finite.
        """
        if not isinstance(questions, TextTable) or not isinstance(passages, TextTable):
            raise TypeError("tables of another scorer")
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        self.load()
        ends: dict[int, list[int]] = {}
        texts = [
            (questions.texts[q], self._cut(passages, p, self.max_length - int(questions.lengths[q]), ends))
            for q, p in pairs.tolist()
        ]
        raw = self._predict(texts)
        scores: Scores = np.asarray(raw, dtype=np.float32)
        if scores.ndim == 2:
            scores = scores[:, 1] - scores[:, 0]
        if not np.isfinite(scores).all():
            raise UserError("the cross-encoder returned a score that is not finite. The model's files may be damaged.")
        return scores

    def _predict(self, texts: list[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Raw scores; where memory runs out, the batch is halved for the rest of the run."""
        while True:
            try:
                raw: npt.NDArray[np.float32] = self.model.predict(
                    texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
                )
                return raw
            except (MemoryError, RuntimeError) as error:
                if not means_out_of_memory(error):
                    raise
                reason = first_line(error)
            if self.batch_size == 1:
                raise UserError(
                    f"one pair alone does not fit into the memory of {self.device} ({reason[:100]}). Lower "
                    "RERANKER_MAX_LENGTH, or name a smaller CROSS_ENCODER_MODEL."
                )
            self.batch_size //= 2
            log.warning(
                "WARNING: the cross-encoder ran out of memory on %s: %d pairs at a time from now on.",
                self.device, self.batch_size,
            )  # fmt: skip

    def _cut(self, passages: TextTable, row: int, room: int, ends: dict[int, list[int]]) -> str:
        """The beginning of a passage that has at most ``room`` tokens; ``ends`` keeps where its tokens end."""
        text = passages.texts[row]
        if int(passages.lengths[row]) <= room:
            return text
        if row not in ends:
            offsets = self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
            )["offset_mapping"]
            ends[row] = [end for _, end in offsets]
        return text[: ends[row][max(room, 1) - 1]]
