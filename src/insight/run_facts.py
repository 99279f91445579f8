"""The facts of a run's report: what was measured, in which group, and where pages were lost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from src.core.spool import blocks
from src.core.text import language, words
from src.core.types import PAD, Corpus, Qrels, Queries, Rows, Run
from src.insight.losses import ORDER, Lost, rank_in, where_lost
from src.quality.compare import first_relevant_ranks
from src.quality.statistics import Interval, bootstrap_mean, mcnemar, wilson

TOP = 5
LENGTHS = ((1, 3), (4, 6), (7, 10), (11, 15), (16, 0))
LANGUAGES = {"ru": "Russian", "en": "English", "mixed": "both", "other": "neither"}
_ORIGINS = ((1, 1), (2, 3), (4, 5), (6, 10), (11, 20), (21, 50), (51, 0))


@dataclass(frozen=True)
class Group:
    """Labelled questions of one kind.

    Attributes:
        before, after: share with a right page among the first five, with a 95 % interval.
    """

    name: str
    questions: int
    before: Interval
    after: Interval


@dataclass(frozen=True)
class Measured:
    """What labels show.

    Attributes:
        rows: int32 [L], places of the labelled questions among the run's.
        before, after: int64 [L], rank of the first right page in stage one and in the end; 0 where it is not there.
        hit: Hit@5 in the end.
        change: of Hit@5 from stage one.
        p: of McNemar's exact test on that change.
        lost: where the right page of each question was lost, or ``found``.
    """

    rows: Rows
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    hit: Interval
    change: Interval
    p: float
    lost: tuple[Lost, ...]
    lengths: tuple[Group, ...]
    languages: tuple[Group, ...]

    @property
    def ceiling(self) -> float:
        """Share of the questions with a right page among the candidates: no reranker can do better."""
        return float((self.before > 0).mean())


def hits_of(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """1 where the first right page is among the first five, else 0: float64 [L]."""
    return ((ranks > 0) & (ranks <= TOP)).astype(np.float64)


def places_of(run: Run, query_ids: Sequence[str]) -> list[int]:
    """Rows of some questions in a run."""
    place = {query_id: i for i, query_id in enumerate(run.query_ids)}
    return [place[query_id] for query_id in query_ids]


def measure(
    indices: Sequence[Run], fused: Run, before: Run, after: Run, corpus: Corpus, queries: Queries, qrels: Qrels
) -> Measured | None:
    """Measure a run; ``None`` where none of its questions has a label.

    Args:
        indices: the run of each index.
        fused: the candidates in the order of the fusion.
        before: the candidates in stage one's final order, [Q, K].
        after: the final run; it may hold the labelled questions alone.
    """
    rows = np.array([i for i, query_id in enumerate(queries.query_ids) if query_id in qrels.relevant], dtype=np.int32)
    if not len(rows):
        return None
    ids = [queries.query_ids[row] for row in rows.tolist()]
    texts = [queries.texts[row] for row in rows.tolist()]
    every = (*indices, fused, before, after)
    places = [places_of(run, ids) for run in every]
    lost: list[Lost] = []
    parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for part in blocks(len(ids)):
        runs = [run.picked(own[part]) for run, own in zip(every, places, strict=True)]
        parts.append((first_relevant_ranks(runs[-2], corpus, qrels), first_relevant_ranks(runs[-1], corpus, qrels)))
        for i, query_id in enumerate(ids[part]):
            lost.append(_lost(runs, i, [corpus.row_of[doc_id] for doc_id in qrels.relevant[query_id]]))
    ranks = [np.concatenate(column) for column in zip(*parts, strict=True)]
    old, new = (hits_of(column) for column in ranks)
    return Measured(
        rows,
        ranks[0],
        ranks[1],
        bootstrap_mean(new),
        bootstrap_mean(new - old),
        mcnemar(old, new),
        tuple(lost),
        _groups([_length(text) for text in texts], [_span(*span) for span in LENGTHS], old, new),
        _groups([LANGUAGES[language(text)] for text in texts], list(LANGUAGES.values()), old, new),
    )


def _lost(runs: Sequence[Run], question: int, right: Sequence[int]) -> Lost:
    """The stage that lost the right page that came furthest."""
    *indices, fused, before, after = runs

    def of_page(row: int) -> Lost:
        found = [rank_in(run, question, row) for run in indices]
        order, candidate, final = (rank_in(run, question, row) for run in (fused, before, after))
        return where_lost(found, order, candidate, final, before.depth, TOP)

    return min((of_page(row) for row in right), key=ORDER.index)


def _span(first: int, last: int) -> str:
    return f"{first} or more" if not last else str(first) if first == last else f"{first} to {last}"


def _length(text: str) -> str:
    count = max(1, len(words(text)))
    return next(_span(first, last) for first, last in LENGTHS if first <= count and (not last or count <= last))


def _groups(
    keys: Sequence[str], names: Sequence[str], old: npt.NDArray[np.float64], new: npt.NDArray[np.float64]
) -> tuple[Group, ...]:
    found = np.array(keys)
    groups = []
    for name in names:
        inside = found == name
        count = int(inside.sum())
        if count:
            before, after = (wilson(int(hits[inside].sum()), count) for hits in (old, new))
            groups.append(Group(name, count, before, after))
    return tuple(groups)


@dataclass(frozen=True)
class Moved:
    """How reranking changed the lists, whatever the labels.

    Attributes:
        first_changed: share of the questions with another first page.
        kept: mean share of stage one's first five that are still among the first five.
        origins: range of ranks in stage one -> pages of the final first five that stood there.
        new: int64 [Q], pages of the final first five that were not among them before.
        gap: float64 [Q], score of the final first page less that of the second; infinite where there is one page.
    """

    first_changed: float
    kept: float
    origins: dict[str, int]
    new: npt.NDArray[np.int64]
    gap: npt.NDArray[np.float64]


def moved(before: Run, after: Run) -> Moved:
    """Compare two runs over the same questions."""
    count = len(before.query_ids)
    came, gap = np.zeros(count, dtype=np.int64), np.full(count, np.inf)
    other_first, new_share, origins = 0, 0.0, dict.fromkeys(_ORIGINS, 0)
    for part in blocks(count):
        old, new, scores = before.doc_rows[part], after.doc_rows[part, :TOP], after.scores[part, :2]
        filled = new != PAD
        place = np.zeros(new.shape, dtype=np.int64)
        for column in range(before.depth):
            place[(old[:, column : column + 1] == new) & filled] = column + 1
        came[part] = (place > TOP).sum(axis=1)
        other_first += int((old[:, 0] != new[:, 0]).sum())
        new_share += float((came[part] / np.maximum(filled.sum(axis=1), 1)).sum())
        for first, last in origins:
            origins[first, last] += int(((place >= first) & ((place <= last) | (last == 0))).sum())
        if after.depth > 1:
            two = new[:, 1] != PAD
            gap[part][two] = (scores[:, 0] - scores[:, 1])[two]
    return Moved(
        other_first / max(1, count), 1 - new_share / max(1, count),
        {_span(*span): pages for span, pages in origins.items() if pages}, came, gap,
    )  # fmt: skip


def worst(measured: Measured, count: int) -> list[int]:
    """Places (in ``measured.rows``) of questions that have no right page in the first five, worst losses first.

    Those that a late stage lost come first, and among them those that fell furthest.
    """
    fall = _reciprocal(measured.before) - _reciprocal(measured.after)
    stage = np.array([ORDER.index(lost) for lost in measured.lost])
    order = np.lexsort((np.arange(len(fall)), -fall, stage))
    return [place for place in order.tolist() if measured.lost[place] != "found"][:count]


def furthest(measured: Measured, count: int) -> list[int]:
    """Places (in ``measured.rows``) of the questions that moved furthest, up or down."""
    move = np.abs(_reciprocal(measured.after) - _reciprocal(measured.before))
    order = np.lexsort((np.arange(len(move)), -move))
    return [place for place in order.tolist() if move[place] > 0][:count]


def _reciprocal(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0.0)
