"""Evaluate: a run against labels. The metrics come from ir_measures."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ir_measures
from ir_measures import RR, R, ScoredDoc, Success, nDCG

from src.core.types import PAD, Corpus, Qrels, Run

MEASURES: Mapping[str, ir_measures.Measure] = {
    "Hit@1": Success @ 1,
    "Hit@5": Success @ 5,
    "Hit@10": Success @ 10,
    "MRR@10": RR @ 10,
    "nDCG@10": nDCG @ 10,
    "Recall@20": R @ 20,
    "Recall@50": R @ 50,
    "Recall@100": R @ 100,
}


@dataclass(frozen=True)
class Evaluation:
    """Means over the labelled questions of a run.

    Attributes:
        metrics: name -> mean in [0, 1]. A labelled question whose list misses counts as zero.
        questions: number of labelled questions of the run.
        depth: longest list of the run; Recall@k with k above it is the recall of that list.
    """

    metrics: Mapping[str, float]
    questions: int
    depth: int


def _scored(run: Run, corpus: Corpus) -> Iterator[ScoredDoc]:
    # Ranks stand in for scores: the library would break ties by its own rule, not by (-score, id).
    for query_id, rows in zip(run.query_ids, run.doc_rows.tolist(), strict=True):
        for rank, row in enumerate(rows):
            if row != PAD:
                yield ScoredDoc(query_id, corpus.doc_ids[row], float(-rank))


def evaluate(run: Run, corpus: Corpus, qrels: Qrels) -> Evaluation | None:
    """Metrics of a run over the questions that have labels; ``None`` where none of its questions has any."""
    asked = set(run.query_ids)
    judged = {q: dict.fromkeys(docs, 1) for q, docs in qrels.relevant.items() if q in asked}
    if not judged:
        return None
    labelled = [i for i, q in enumerate(run.query_ids) if q in judged]
    part = Run(
        run.name,
        tuple(run.query_ids[i] for i in labelled),
        run.doc_rows[labelled],
        run.scores[labelled],
        run.corpus_fingerprint,
    )
    found = ir_measures.calc_aggregate(list(MEASURES.values()), judged, list(_scored(part, corpus)))
    metrics = {name: float(found[measure]) for name, measure in MEASURES.items()}
    if any(math.isnan(value) for value in metrics.values()):
        raise ValueError(f"a metric is not a number: {metrics}")
    return Evaluation(metrics, len(judged), run.depth)
