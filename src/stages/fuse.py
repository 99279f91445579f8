"""Fuse: several runs become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from src.core.types import PAD, Floats, Rows, Run, ranked

Method = Literal["convex", "rrf"]


@dataclass(frozen=True)
class Weighted:
    """A run with its weight.

    Attributes:
        absent_is_zero: what a document that is not in the list scores in the convex combination: 0 (BM25: it has no
            matching term) or, where false, the lowest score of the list (dense: it is no better than that).
    """

    run: Run
    weight: float
    absent_is_zero: bool = False


def standardize(scores: Floats) -> Floats:
    """Z-scores of one list, float32 [n]; all zero where the scores are equal."""
    values = scores.astype(np.float64)
    spread = float(values.std())
    if spread < 1e-9:
        return np.zeros_like(scores)
    standardized: Floats = ((values - values.mean()) / spread).astype(np.float32)
    return standardized


def reciprocal_ranks(count: int, k: int) -> Floats:
    """1 / (k + rank) for ranks 1 to ``count`` (Cormack et al. 2009, "Reciprocal Rank Fusion"): float32 [count]."""
    return (1.0 / (k + np.arange(1, count + 1))).astype(np.float32)


def fuse(runs: Sequence[Weighted], method: Method, rrf_k: int, depth: int, name: str = "fused") -> Run:
    """Combine runs over the same questions and corpus.

    ``rrf``: sum of weight / (k + rank), ranks from 1; a document that is not in a list gets nothing from it.
    ``convex``: weighted sum of per-question z-scores over the union of the lists, weights scaled to sum 1
    (convex combination; Bruch et al. 2022, "An Analysis of Fusion Functions for Hybrid Retrieval").

    Args:
        depth: documents to keep per question.

    Raises:
        ValueError: where the runs are not of the same questions and corpus, or none has a positive weight.
    """
    runs = [item for item in runs if item.weight > 0]
    if not runs:
        raise ValueError("no run with a positive weight")
    first = runs[0].run
    for item in runs[1:]:
        if item.run.query_ids != first.query_ids or item.run.corpus_fingerprint != first.corpus_fingerprint:
            raise ValueError(f"runs {first.name} and {item.run.name} are of different questions or corpora")
    total = sum(item.weight for item in runs)
    rows = np.full((len(first.query_ids), depth), PAD, dtype=np.int32)
    scores = np.zeros((len(first.query_ids), depth), dtype=np.float32)
    for i in range(len(first.query_ids)):
        lists = [(item.run.doc_rows[i][item.run.doc_rows[i] != PAD], item) for item in runs]
        union = np.unique(np.concatenate([docs for docs, _ in lists])).astype(np.int32)
        combined = np.zeros(len(union), dtype=np.float32)
        for docs, item in lists:
            if not len(docs):
                continue
            places = np.searchsorted(union, docs)
            if method == "rrf":
                combined[places] += np.float32(item.weight) * reciprocal_ranks(len(docs), rrf_k)
            else:
                combined += np.float32(item.weight / total) * _spread(item, i, places, len(docs), len(union))
        rows[i], scores[i] = ranked(union, combined, depth)
    return Run(name, first.query_ids, rows, scores, first.corpus_fingerprint)


def fuse_wordings(
    run: Run, count: int, owners: Rows, weight: float, method: Method, rrf_k: int, absent_is_zero: bool
) -> Run:
    """The lists of a question and of its variants, all from one index, become the one list of the question.

    That list then enters :func:`fuse` as that of the question alone would: an index has the same say however many
    variants a question has. The question weighs 1, each variant ``weight``. A question without variants keeps its
    list as it is.

    ``rrf``: weighted reciprocal ranks. ``convex``: weighted mean of the scores as they are, which are on one scale
    within an index: a wording that fits nothing has low scores that hardly differ, and hardly changes the order.

    Args:
        run: [N, K], the Q questions first, then their variants.
        count: Q.
        owners: int32 [N - Q], row of the question of each variant, ascending.
        absent_is_zero: as in :class:`Weighted`.
    """
    if len(run.query_ids) == count:
        return run
    rows, scores = run.doc_rows[:count].copy(), run.scores[:count].copy()
    for i in np.unique(owners).tolist():
        first, last = np.searchsorted(owners, [i, i + 1])
        members = [i, *range(count + int(first), count + int(last))]
        weights = [1.0] + [weight] * (len(members) - 1)
        lists = [run.doc_rows[m][run.doc_rows[m] != PAD] for m in members]
        union = np.unique(np.concatenate(lists)).astype(np.int32)
        combined = np.zeros(len(union), dtype=np.float64)
        for member, docs, share in zip(members, lists, weights, strict=True):
            if not len(docs):
                continue
            places, values = np.searchsorted(union, docs), run.scores[member][: len(docs)]
            if method == "rrf":
                combined[places] += share * reciprocal_ranks(len(docs), rrf_k)
            else:
                full = np.full(len(union), 0.0 if absent_is_zero else values.min(), dtype=np.float64)
                full[places] = values
                combined += share / sum(weights) * full
        rows[i], scores[i] = ranked(union, combined.astype(np.float32), run.depth)
    return Run(run.name, run.query_ids[:count], rows, scores, run.corpus_fingerprint)


def _spread(item: Weighted, query: int, places: Rows, found: int, size: int) -> Floats:
    values = item.run.scores[query][:found]
    absent = np.float32(0.0) if item.absent_is_zero else values.min()
    full = np.full(size, absent, dtype=np.float32)
    full[places] = values
    return standardize(full)
