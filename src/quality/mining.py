"""Training pairs and their hard negatives: near in vectors or in words, yet not a right answer."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from src.core.artifacts import fingerprint, write_json
from src.core.errors import UserError
from src.core.text import terms
from src.core.types import PAD, Corpus, Floats, Progress, Qrels, Queries, Rows, Run, TokenVectors
from src.engine.devices import half_precision
from src.engine.encoder import Role, SentenceEncoder
from src.stages.index import Bm25Index
from src.stages.late_interaction import maxsim

Bars = Callable[[str, int], AbstractContextManager[Progress]]
Pair = tuple[str, str]

DENSE_DEPTH = 30
LEXICAL_DEPTH = 10
MARGIN = 0.03

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One question with one relevant passage and its mined negatives, best first.

    Attributes:
        similarities: of the positive and of each negative to the question, see :meth:`Miner.examples`; empty where they
            were not asked for.
    """

    question: str
    positive: str
    negatives: tuple[str, ...]
    similarities: tuple[float, ...] = ()


def read_pairs(path: Path) -> list[Pair]:
    """Read (question, passage) pairs from JSON lines ``{"question": ..., "passage": ...}``; ``"questions": [...]``
    gives a passage several.

    Raises:
        UserError: where the file is missing or empty, or a line has not these fields.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of training pairs. Give --pairs a JSON-lines file.")
    pairs: list[Pair] = []
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                questions = record["questions"] if "questions" in record else [record["question"]]
                if not isinstance(questions, list) or not all(isinstance(text, str) for text in questions):
                    raise TypeError("questions is not a list of texts")
                pairs.extend((str(question).strip(), str(record["passage"]).strip()) for question in questions)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f'{path}, line {number}: expected {{"question": "...", "passage": "..."}} ({error!r}).'
                ) from error
    if not pairs:
        raise UserError(f"{path}: empty: no training pairs.")
    return pairs


def mine_negatives(
    questions: Sequence[str],
    positive_rows: Sequence[frozenset[int]],
    passages: Sequence[str],
    dense_scores: Callable[[int, int], npt.NDArray[np.float32]],
    lexical_top: Callable[[int, int], Sequence[Sequence[int]]],
    dense_depth: int = DENSE_DEPTH,
    margin: float = MARGIN,
    block: int = 256,
) -> list[tuple[int, ...]]:
    """Hard negatives per question.

    A candidate is among the ``dense_depth`` nearest by cosine or the best by BM25. It is dropped where it is a
    positive, repeats a positive's text, or lies nearer to the question than the best positive plus ``margin``
    (probably an unlabelled right answer).

    Args:
        questions: Q texts.
        positive_rows: for each question the rows of its relevant passages.
        passages: N texts.
        dense_scores: (first question, last + 1) -> cosine float32 [block, N].
        lexical_top: (first question, last + 1) -> rows of the best passages by BM25, for each question.
        margin: infinite where every right answer is labelled.

    Returns:
        For each question the rows of its negatives, nearest first (may be empty).
    """
    negatives: list[tuple[int, ...]] = []
    for start in range(0, len(questions), block):
        stop = min(start + block, len(questions))
        cosines, lexical = dense_scores(start, stop), lexical_top(start, stop)
        for offset in range(stop - start):
            positives = positive_rows[start + offset]
            row = cosines[offset]
            bound = max(float(row[p]) for p in positives) + margin
            texts = {passages[p].casefold() for p in positives}
            depth = min(dense_depth + len(positives), len(row))
            near = np.argpartition(-row, depth - 1)[:depth]
            candidates = dict.fromkeys(int(i) for i in near[np.argsort(-row[near], kind="stable")])
            candidates.update(dict.fromkeys(int(i) for i in lexical[offset]))
            negatives.append(
                tuple(
                    i
                    for i in candidates
                    if i not in positives and row[i] < bound and passages[i].casefold() not in texts
                )
            )
    return negatives


def labelled_examples(
    queries: Queries, qrels: Qrels, candidates: Run, corpus: Corpus, texts: Sequence[str], rows: Rows, depth: int = 30
) -> list[Example]:
    """Examples from labels and stage one's own candidates: what the cross-encoder will have to tell apart.

    Args:
        candidates: run of stage one, [Q, K].
        texts, rows: passages that the cross-encoder reads: int32 [Q, K, m] rows of ``texts``, -1 where there is none;
            the first one of each document is taken.
        depth: documents per question that may serve as negatives.

    Returns:
        One example per question and right document among the candidates; questions without one give none.
    """
    examples: list[Example] = []
    for i, query_id in enumerate(queries.query_ids):
        relevant = {corpus.row_of[doc_id] for doc_id in qrels.relevant.get(query_id, ())}
        read = [
            (doc, texts[row]) for doc, row in zip(candidates.doc_rows[i].tolist(), rows[i, :, 0].tolist(), strict=True)
            if doc != PAD and row != PAD
        ]  # fmt: skip
        positives = [text for doc, text in read if doc in relevant]
        negatives = tuple(text for doc, text in read[:depth] if doc not in relevant and text not in positives)
        examples.extend(Example(queries.texts[i], positive, negatives) for positive in positives)
    return examples


class Miner:
    """Mines with the bi-encoder and BM25, and keeps what it found, so that a second training asks nothing twice.

    Args:
        encoder: the bi-encoder.
        encoder_fingerprint: of the bi-encoder, for the name of the kept file.
        cache: folder of the kept files.
        bars: makes a progress bar.
    """

    def __init__(self, encoder: SentenceEncoder, encoder_fingerprint: str, cache: Path, bars: Bars) -> None:
        self.encoder = encoder
        self.encoder_fingerprint = encoder_fingerprint
        self.cache = cache
        self.bars = bars

    def examples(
        self,
        pairs: Sequence[Pair],
        extra_passages: Sequence[str] = (),
        margin: float = MARGIN,
        similarities: bool = False,
    ) -> list[Example]:
        """One example per distinct question.

        Args:
            pairs: (question, right passage); a question may come several times.
            extra_passages: further passages that may serve as negatives.
            margin: see :func:`mine_negatives`.
            similarities: also how near the bi-encoder finds each passage: the mean of the cosine of the texts and of
                late interaction (:func:`~src.stages.late_interaction.maxsim`).
        """
        passages = list(dict.fromkeys([*(passage for _, passage in pairs), *extra_passages]))
        row_of = {passage: row for row, passage in enumerate(passages)}
        rows: dict[str, set[int]] = {}
        for question, passage in pairs:
            rows.setdefault(question, set()).add(row_of[passage])
        questions = list(rows)
        positives = [frozenset(found) for found in rows.values()]
        made_from = [self.encoder_fingerprint, questions, [sorted(p) for p in positives], passages]
        key = fingerprint(made_from if margin == MARGIN else [*made_from, margin])
        path, near_path = self.cache / f"{key}.json", self.cache / f"{key}-similarities.json"
        encoded: _Encoded | None = None
        if not path.is_file() or (similarities and not near_path.is_file()):
            encoded = self._encode(passages, questions, similarities)
        if path.is_file():
            negatives = json.loads(path.read_text(encoding="utf-8"))
        else:
            assert encoded is not None
            negatives = _mine(encoded, questions, positives, passages, margin)
            write_json(path, negatives)
        near: list[list[float]] = [[] for _ in questions]
        if similarities and near_path.is_file():
            near = json.loads(near_path.read_text(encoding="utf-8"))
        elif similarities:
            assert encoded is not None
            near = _similarities(encoded, [[min(p), *n] for p, n in zip(positives, negatives, strict=True)])
            write_json(near_path, near)
        return [
            Example(question, passages[min(positive)], tuple(passages[row] for row in found), tuple(similar))
            for question, positive, found, similar in zip(questions, positives, negatives, near, strict=True)
        ]

    def _encode(self, passages: Sequence[str], questions: Sequence[str], with_tokens: bool) -> "_Encoded":
        # Half precision changes no cosine by more than the margin, and mining needs no exact order.
        device = self.encoder.model.device.type
        half = half_precision(device)
        with torch.autocast(device, half, enabled=half is not None):
            with self.bars("Mining: encoding passages", len(passages)) as progress:
                read = self._vectors(passages, "document", with_tokens, progress)
            with self.bars("Mining: encoding questions", len(questions)) as progress:
                asked = self._vectors(questions, "query", with_tokens, progress)
        return _Encoded(*asked, *read)

    def _vectors(
        self, texts: Sequence[str], role: Role, with_tokens: bool, progress: Progress
    ) -> tuple[Floats, TokenVectors | None]:
        if with_tokens:
            return self.encoder.encode_tokens(texts, role, 32, progress)
        return self.encoder.encode(texts, role, 32, progress), None


@dataclass(frozen=True)
class _Encoded:
    """Unit vectors of texts, float32 [N, D], and of their tokens where they were asked for."""

    questions: Floats
    question_tokens: TokenVectors | None
    passages: Floats
    passage_tokens: TokenVectors | None


def _similarities(encoded: _Encoded, lists: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each question the similarity of every passage of its list."""
    assert encoded.question_tokens is not None
    assert encoded.passage_tokens is not None
    found = []
    for i, rows in enumerate(np.asarray(listed, dtype=np.int32) for listed in lists):
        late = maxsim(encoded.question_tokens[i].astype(np.float32), encoded.passage_tokens, rows)
        means = (late + encoded.passages[rows] @ encoded.questions[i]) / 2
        found.append([round(float(value), 5) for value in means])
    return found


def _mine(
    encoded: _Encoded,
    questions: Sequence[str],
    positives: Sequence[frozenset[int]],
    passages: Sequence[str],
    margin: float,
) -> list[tuple[int, ...]]:
    index = Bm25Index.build([terms(passage) for passage in passages], 1.2, 0.75, "bm25s")

    def lexical_top(start: int, stop: int) -> list[list[int]]:
        rows, _ = index.search([terms(question) for question in questions[start:stop]], LEXICAL_DEPTH)
        return [[row for row in found if row != PAD] for found in rows.tolist()]

    return mine_negatives(
        questions,
        positives,
        passages,
        lambda start, stop: encoded.questions[start:stop] @ encoded.passages.T,
        lexical_top,
        margin=margin,
    )
