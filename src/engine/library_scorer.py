"""Cross-encoders that are no plain one-logit classifier, run by sentence-transformers: the slow, general path.

Causal models with a template (Qwen3-Reranker, mxbai-rerank-v2), classifiers with two outputs, models with Python code
of their own. The library takes template and yes and no tokens from the model's own files.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from src.core.errors import UserError
from src.engine.devices import explain_loading
from src.engine.memory_limit import PairTooLargeError
from src.engine.text_scorer import Pairs, Scores, TextScorer, TextTable, checked, text_tables
from src.engine.tokens import TokenTable, usable_positions

_TEMPLATE_TOKENS = 256  # more than the templates of causal models take
_QUERY = '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}'
_DOCUMENT = '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'


@dataclass(frozen=True)
class Prompting:
    """How pairs are put to a causal model whose files do not say it: from before sentence-transformers 5.4.

    Attributes:
        name: part of the model's name.
        template: of the chat, in Jinja.
        true_token, false_token: the score is the log-odds of the first against the second.
    """

    name: str
    template: str
    true_token: str
    false_token: str


_PROMPTINGS = (
    # Of the card of Qwen/Qwen3-Reranker-0.6B.
    Prompting(
        "qwen3-reranker",
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        f"<Query>: {_QUERY}\n<Document>: {_DOCUMENT}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>"
        '{{ "\\n\\n" }}',
        "yes",
        "no",
    ),
    # Of the Python package mxbai-rerank, for version 2 of the models.
    Prompting(
        "mxbai-rerank",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nquery: {_QUERY}\ndocument: {_DOCUMENT}\n"
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant"
        '{{ "\\n" }}',
        "1",
        "0",
    ),
)


class LibraryScorer(TextScorer):
    """Scores by ``sentence_transformers.CrossEncoder``; see :class:`~src.engine.text_scorer.TextScorer`.

    The model's template comes on top of ``max_length``. The passage is cut, never the question; one that would leave
    less than half of ``max_length`` to the passage may use the model's own limit.
    """

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
        for known in _PROMPTINGS:
            if known.name in str(self.directory).lower():
                model.processor.chat_template = known.template
                model[-1].true_token_id = self.tokenizer.convert_tokens_to_ids(known.true_token)
                model[-1].false_token_id = self.tokenizer.convert_tokens_to_ids(known.false_token)
                model.predict([("a", "b")], show_progress_bar=False)
                return
        raise UserError(
            f"CROSS_ENCODER_MODEL: {self.directory} does not say how a pair is put to it: {reason} Take a revision "
            "with a modules.json for sentence-transformers, or name another model."
        )

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have: all but one of the longest pair."""
        return self._model_limit - 1

    @cached_property
    def _model_limit(self) -> int:
        """Most tokens of question and passage that the model takes beside its template."""
        config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        positions = usable_positions(SimpleNamespace(**{"pad_token_id": 1, **config}), self.max_length)
        causal = str((config.get("architectures") or [""])[0]).endswith("ForCausalLM")
        template = _TEMPLATE_TOKENS if causal else int(self.tokenizer.num_special_tokens_to_add(pair=True))
        return max(self.max_length, min(positions, int(self.tokenizer.model_max_length)) - template)

    def _limits(self, question_lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(question_lengths > self.max_length // 2, self._model_limit, self.max_length)

    def pair_lengths(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> npt.NDArray[np.int64]:
        """Tokens that are read of each pair, without the model's template, int64 [P]."""
        asked = questions.lengths[pairs[:, 0]]
        lengths: npt.NDArray[np.int64] = np.minimum(asked + passages.lengths[pairs[:, 1]], self._limits(asked))
        return lengths

    def characters_read(self, question: str, passage: str) -> int:
        """Characters of a passage that fit beside the question; what follows them is never read."""
        asked, read = self.tokenize([question]), self.tokenize([passage])
        assert isinstance(read, TextTable)
        return len(self._cut(read, 0, int(self._limits(asked.lengths)[0] - asked.lengths[0]), {}))

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs; see :class:`src.engine.pair_scorer.PairScorer`.

        Returns:
            float32 [P]: the raw score; of two outputs, the second less the first (the log-odds of "relevant").

        Raises:
            UserError: where memory does not hold one pair, or a score is not finite.
        """
        questions, passages = text_tables(questions, passages)
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        self.load()
        ends: dict[int, list[int]] = {}
        room = self._limits(questions.lengths) - questions.lengths
        texts = [(questions.texts[q], self._cut(passages, p, int(room[q]), ends)) for q, p in pairs.tolist()]
        lengths = self.pair_lengths(questions, passages, pairs)
        longest = int(lengths.argmax())
        question, passage = pairs[longest].tolist()
        raw: npt.NDArray[np.float32] = self.halving(
            lambda: self.model.predict(
                texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
            ),
            PairTooLargeError(question, passage, int(lengths[longest]), self.device),
        )
        return checked(raw[:, 1] - raw[:, 0] if raw.ndim == 2 else raw)

    def _cut(self, passages: TextTable, row: int, room: int, ends: dict[int, list[int]]) -> str:
        """The beginning of a passage that has at most ``room`` tokens; ``ends`` keeps where its tokens end."""
        text = passages.texts[row]
        if int(passages.lengths[row]) <= room:
            return text
        if row not in ends:
            ends[row] = self.token_ends(text)
        return text[: ends[row][max(room, 1) - 1]]
