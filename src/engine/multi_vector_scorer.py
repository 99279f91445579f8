"""Late-interaction rerankers (ColBERT and its kin), run by sentence-transformers.

Question and passage are encoded apart, a vector a token; the score is MaxSim (Khattab & Zaharia 2020, "ColBERT"). A
passage is encoded once, however many questions meet it.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from src.engine.devices import explain_loading
from src.engine.text_scorer import Pairs, Scores, TextScorer, checked, text_tables
from src.engine.tokens import TokenTable

KEPT_BYTES = 1 << 29  # of passages' vectors in memory
_TYPES = {"MultiVectorEncoder", "ColBERT"}  # the second one is PyLate's


def is_multi_vector(directory: Path) -> bool:
    """Whether a model's files say that it gives a vector per token, to be compared by MaxSim."""
    found: dict[str, Any] = {}
    for name in ("config_sentence_transformers.json", "config.json"):
        if (directory / name).is_file():
            found[name] = json.loads((directory / name).read_text(encoding="utf-8"))
    kind = found.get("config_sentence_transformers.json", {}).get("model_type")
    return kind in _TYPES or "HF_ColBERT" in (found.get("config.json", {}).get("architectures") or ())


class MultiVectorScorer(TextScorer):
    """Scores by ``sentence_transformers.MultiVectorEncoder``; see :class:`~src.engine.text_scorer.TextScorer`.

    A passage is read up to the model's own limit or ``max_length``, whichever is lower. A question is never cut: one
    that is longer than the model pads questions to is read as it is, without padding.
    """

    joint = False

    def load(self) -> None:
        """Load the weights, once.

        Raises:
            UserError: where that fails.
        """
        if self.model is not None:
            return
        from sentence_transformers import MultiVectorEncoder

        with explain_loading("CROSS_ENCODER_MODEL", self.directory):
            model = MultiVectorEncoder(
                str(self.directory),
                device=self.device,
                trust_remote_code=self.remote_code,
                local_files_only=True,
                model_kwargs={"dtype": self.half or torch.float32},
            )
            transformer: Any = model[0]
            whole = int(transformer.max_seq_length or self.max_length)
            transformer.document_length = min(transformer.document_length or whole, self.max_length, whole)
        self._transformer = transformer
        self._whole = whole
        self._table: TokenTable | None = None
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._kept_bytes = 0
        self.model = model

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have."""
        self.load()
        return self._whole - self._marks("query")

    def pair_lengths(
        self,
        questions: TokenTable,  # noqa: ARG002
        passages: TokenTable,  # noqa: ARG002
        pairs: Pairs,
    ) -> npt.NDArray[np.int64]:
        """One for each pair, int64 [P]: a passage is read once, and a pair costs next to nothing beyond that."""
        return np.ones(len(pairs), dtype=np.int64)

    def characters_read(self, question: str, passage: str) -> int:  # noqa: ARG002
        """Characters of a passage that the model reads; what follows them is never read."""
        self.load()
        room = self._transformer.document_length - self._marks("document")
        ends = self.token_ends(passage)
        return len(passage) if len(ends) <= room else ends[room - 1]

    def _marks(self, task: str) -> int:
        """Tokens that the model adds to a text."""
        with self._without_query_limit():
            features = self.model.preprocess(["a"], prompt=self.model.prompts.get(task) or "", task=task)
        return int(features["attention_mask"].sum()) - len(self.token_ends("a"))

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs; see :class:`src.engine.pair_scorer.PairScorer`.

        Returns:
            float32 [P]: MaxSim, by the model's own rule (a sum or a mean over the question's tokens).

        Raises:
            UserError: where memory does not hold one text, or a score is not finite.
        """
        questions, passages = text_tables(questions, passages)
        scores = np.zeros(len(pairs), dtype=np.float32)
        if not len(pairs):
            return scores
        self.load()
        asked, owners = np.unique(pairs[:, 0], return_inverse=True)
        vectors = self._of_questions([questions.texts[row] for row in asked.tolist()])
        if self._table is not passages:
            self._table, self._kept_bytes = passages, 0
            self._kept.clear()
        found = self._of_passages(passages.texts, np.unique(pairs[:, 1]).tolist())
        for number, question in enumerate(vectors):
            own = np.flatnonzero(owners == number)
            read = [found[row] for row in pairs[own, 1].tolist()]
            filled = np.array([len(vectors) > 0 for vectors in read])
            # A passage without a token that counts is as unlike the question as can be.
            scores[own] = -1.0 if self.model.similarity_fn_name == "meanmaxsim" else -len(question)
            with torch.inference_mode():
                near = self.model.similarity([question], [vectors for vectors in read if len(vectors)])
            scores[own[filled]] = near[0].float().cpu().numpy()
        return checked(scores)

    def _of_questions(self, texts: Sequence[str]) -> list[torch.Tensor]:
        transformer, marks = self._transformer, self._marks("query")
        room = (transformer.query_expansion or {}).get("length") or transformer.query_length or self._whole
        long = [len(self.token_ends(text)) + marks >= room for text in texts]
        found: dict[int, torch.Tensor] = {}
        for kind in (False, True):
            rows = [row for row, is_long in enumerate(long) if is_long == kind]
            with self._without_query_limit() if kind else nullcontext():
                vectors = self._encode([texts[row] for row in rows], "query")
            found.update(zip(rows, vectors, strict=True))
        return [found[row] for row in range(len(texts))]

    @contextmanager
    def _without_query_limit(self) -> Iterator[None]:
        """Read questions as they are: no padding with mask tokens, no cut below the model's own limit."""
        transformer = self._transformer
        expansion, length = transformer.query_expansion, transformer.query_length
        transformer.query_expansion, transformer.query_length = None, self._whole
        try:
            yield
        finally:
            transformer.query_length, transformer.query_expansion = length, expansion

    def _of_passages(self, texts: Sequence[str], rows: Sequence[int]) -> dict[int, torch.Tensor]:
        """Vectors of passages; those of the last ones stay in memory for the next questions."""
        missing = [row for row in rows if row not in self._kept]
        for row, vectors in zip(missing, self._encode([texts[row] for row in missing], "document"), strict=True):
            self._kept[row] = vectors
            self._kept_bytes += vectors.nbytes
        for row in rows:
            self._kept.move_to_end(row)
        found = {row: self._kept[row] for row in rows}
        while self._kept_bytes > KEPT_BYTES and self._kept:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _encode(self, texts: Sequence[str], task: str) -> list[torch.Tensor]:
        if not texts:
            return []
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        found: list[torch.Tensor] = self.halving(
            lambda: encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)
        )
        return found
