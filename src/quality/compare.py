"""Compare runs over the same questions: intervals, paired tests, and where the after-run lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.core.errors import UserError
from src.core.types import PAD, Corpus, Qrels, Queries, Run
from src.quality.evaluate import MEASURES, per_question
from src.quality.statistics import (
    Interval,
    Values,
    bootstrap_mean,
    holm,
    labels_needed,
    mcnemar,
    randomization,
)

POINTS_TO_SHOW = 3.0
WORST_LOSSES = 20


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        depth: longest list of the run, K.
        metrics: name -> mean over the labelled questions with its 95 % interval; those that are compared.
        gap: Recall@K - Hit@5 in [0, 1] (Recall here is the share of questions with a right page among the K), what is
            left to a better reranker.
    """

    name: str
    depth: int
    metrics: Mapping[str, Interval]
    gap: float


@dataclass(frozen=True)
class Difference:
    """One metric of two runs, question by question.

    Attributes:
        change: mean of after - before, with its 95 % interval.
        test: ``McNemar`` for hits, ``randomisation`` for the rest.
        p, p_adjusted: two-sided; the second one by Holm over all metrics and pairs of the comparison.
        wins, losses, ties: questions on which after is better, worse, equal.
    """

    metric: str
    change: Interval
    test: str
    p: float
    p_adjusted: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class Loss:
    """A question that the after-run answers worse.

    Attributes:
        right: ids of its relevant documents.
        rank_before, rank_after: rank of the first relevant document; ``None`` where it is not in the list.
        replaced_by: ids that stand above it now and did not before, best first (at most five).
    """

    query_id: str
    question: str
    right: tuple[str, ...]
    rank_before: int | None
    rank_after: int | None
    replaced_by: tuple[str, ...]


@dataclass(frozen=True)
class PairedComparison:
    """Before -> after.

    Attributes:
        worst_losses: at most twenty, by how far the first relevant document fell within the depth of both runs.
        labels_needed: labelled questions at which 3 points of Hit@5 would show; ``None`` where the two runs hit the
            same questions, or Hit@5 is left out.
    """

    before: str
    after: str
    differences: tuple[Difference, ...]
    worst_losses: tuple[Loss, ...]
    labels_needed: int | None


@dataclass(frozen=True)
class Comparison:
    """All runs, and each of them against the first.

    Attributes:
        labelled, unlabelled: numbers of questions; the latter are measured nowhere.
        ranks: run name -> rank of the first relevant document per labelled question, int64; 0 where it is not there.
        left_out: metrics that look deeper than the shallowest list: there its end, not its order, would be measured.
    """

    labelled: int
    unlabelled: int
    runs: tuple[RunSummary, ...]
    pairs: tuple[PairedComparison, ...]
    ranks: Mapping[str, np.ndarray]
    left_out: tuple[str, ...] = ()


def first_relevant_ranks(run: Run, corpus: Corpus, qrels: Qrels) -> np.ndarray:
    """Rank (from 1) of the first relevant document of each labelled question, int64; 0 where it is not in the list."""
    ranks = []
    for query_id, rows in zip(run.query_ids, run.doc_rows, strict=True):
        if query_id in qrels.relevant:
            relevant = [corpus.row_of[doc_id] for doc_id in qrels.relevant[query_id]]
            places = np.flatnonzero(np.isin(rows, relevant))
            ranks.append(int(places[0]) + 1 if len(places) else 0)
    return np.array(ranks, dtype=np.int64)


def compare(runs: Sequence[Run], corpus: Corpus, queries: Queries, qrels: Qrels) -> Comparison:
    """Compare every run with the first one.

    Raises:
        UserError: fewer than two runs, two of one name, runs of another corpus or of other questions (both are
            named), or no labelled question.
    """
    _require_comparable(runs, corpus, queries)
    found = {run.name: per_question(run, corpus, qrels) for run in runs}
    labelled = found[runs[0].name][0]
    if not labelled:
        raise UserError("none of the questions has a label: nothing can be compared. Give --labels FILE.")
    left_out = _too_deep(runs, corpus)
    values = {
        name: {metric: column for metric, column in columns.items() if metric not in left_out}
        for name, (_, columns) in found.items()
    }
    hits = {name: columns["Hit@5"] for name, (_, columns) in found.items()}
    ranks = {run.name: first_relevant_ranks(run, corpus, qrels) for run in runs}
    summaries = tuple(
        RunSummary(
            run.name,
            run.depth,
            {metric: bootstrap_mean(column) for metric, column in values[run.name].items()},
            float((ranks[run.name] > 0).mean() - hits[run.name].mean()),
        )
        for run in runs
    )
    before = runs[0]
    raw = {run.name: _differences(values[before.name], values[run.name]) for run in runs[1:]}
    adjusted = iter(holm([difference.p for run in runs[1:] for difference in raw[run.name]]))
    pairs = []
    for run in runs[1:]:
        differences = tuple(
            Difference(d.metric, d.change, d.test, d.p, next(adjusted), d.wins, d.losses, d.ties) for d in raw[run.name]
        )
        losses = _worst_losses(before, run, corpus, queries, qrels, ranks)
        needed = labels_needed(hits[before.name], hits[run.name], POINTS_TO_SHOW) if "Hit@5" not in left_out else None
        pairs.append(PairedComparison(before.name, run.name, differences, losses, needed))
    return Comparison(len(labelled), len(queries) - len(labelled), summaries, tuple(pairs), ranks, left_out)


def _too_deep(runs: Sequence[Run], corpus: Corpus) -> tuple[str, ...]:
    """Metrics whose k is beyond the end of the shallowest list; a list of the whole corpus has no end."""
    depth = min(run.depth for run in runs)
    return tuple(m for m in MEASURES if int(m.split("@")[1]) > depth) if depth < len(corpus) else ()


def _require_comparable(runs: Sequence[Run], corpus: Corpus, queries: Queries) -> None:
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run given, at least 2 are needed for a comparison.")
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs have the name {name!r}. Give each its own.")
    for run in runs:
        if run.corpus_fingerprint != corpus.fingerprint:
            raise UserError(
                f"run {run.name!r} is over the corpus {run.corpus_fingerprint}, this one is {corpus.fingerprint}: "
                "runs over different corpora cannot be compared. Name the data folder it was made in (--data-dir)."
            )
        if run.query_ids != queries.query_ids:
            raise UserError(
                f"run {run.name!r} answers {len(run.query_ids)} questions that are not the {len(queries)} asked here: "
                "runs of different questions cannot be compared. Give its own questions (--questions, --limit)."
            )


def _differences(before: Mapping[str, Values], after: Mapping[str, Values]) -> list[Difference]:
    found = []
    for metric, old in before.items():
        new = after[metric]
        is_hit = metric.startswith("Hit@")
        p = mcnemar(old, new) if is_hit else randomization(old, new)
        wins, losses = int((new > old).sum()), int((new < old).sum())
        test = "McNemar" if is_hit else "randomisation"
        change = bootstrap_mean(new - old)
        found.append(Difference(metric, change, test, p, p, wins, losses, len(old) - wins - losses))
    return found


def _worst_losses(
    before: Run, after: Run, corpus: Corpus, queries: Queries, qrels: Qrels, ranks: Mapping[str, np.ndarray]
) -> tuple[Loss, ...]:
    labelled = [i for i, query_id in enumerate(queries.query_ids) if query_id in qrels.relevant]
    # Below the end of the shorter list nothing is known of it: no page can be said to have fallen there.
    depth = min(before.depth, after.depth)
    both = (ranks[before.name], ranks[after.name])
    old, new = (np.where((found == 0) | (found > depth), np.inf, found) for found in both)
    fall = np.where(old < new, 1 / old - 1 / new, 0.0)
    losses = []
    for place in np.lexsort((np.arange(len(fall)), -fall))[:WORST_LOSSES].tolist():
        if fall[place] <= 0:
            break
        i = labelled[place]
        rank_after = int(new[place]) if np.isfinite(new[place]) else None
        above = after.doc_rows[i][: rank_after - 1 if rank_after else depth]
        stood_above = set(before.doc_rows[i][: int(old[place]) - 1].tolist())
        newcomers = [row for row in above.tolist() if row != PAD and row not in stood_above]
        losses.append(
            Loss(
                queries.query_ids[i],
                queries.texts[i],
                tuple(sorted(qrels.relevant[queries.query_ids[i]])),
                int(ranks[before.name][place]),
                rank_after,
                tuple(corpus.doc_ids[row] for row in newcomers[:5]),
            )
        )
    return tuple(losses)
