"""Evaluate: a run against labels. The metrics come from ir_measures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import RR, R, ScoredDoc, Success, nDCG

from src.core.spool import blocks
from src.core.types import PAD, Corpus, Qrels, Run

Values = npt.NDArray[np.float64]

_BLOCK = 1024

MEASURES: Mapping[str, ir_measures.Measure] = {
    "Hit@1": Success @ 1,
    "Hit@5": Success @ 5,
    "Hit@10": Success @ 10,
    "MRR@10": RR @ 10,
    "nDCG@10": nDCG @ 10,
    "Recall@5": R @ 5,
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


def per_question(run: Run, corpus: Corpus, qrels: Qrels) -> tuple[tuple[str, ...], dict[str, Values]]:
    """Metrics of each labelled question of a run.

    Returns:
        The ids of the labelled questions, in the run's order, and name -> float64 [number of them]. A question whose
        list misses every relevant document has 0.
    """
    labelled = [i for i, query_id in enumerate(run.query_ids) if query_id in qrels.relevant]
    query_ids = tuple(run.query_ids[i] for i in labelled)
    place = {query_id: i for i, query_id in enumerate(query_ids)}
    names = {measure: name for name, measure in MEASURES.items()}
    values = {name: np.zeros(len(query_ids)) for name in MEASURES}
    # In blocks: the library wants an object per question and document.
    for rows in blocks(len(labelled), _BLOCK):
        part, ids = run.picked(labelled[rows]), query_ids[rows]
        judged = {query_id: dict.fromkeys(qrels.relevant[query_id], 1) for query_id in ids}
        for found in ir_measures.iter_calc(list(MEASURES.values()), judged, list(_scored(part, corpus))):
            values[names[found.measure]][place[found.query_id]] = found.value
    if not all(np.isfinite(column).all() for column in values.values()):
        raise ValueError(f"a metric of run {run.name} is not a number")
    return query_ids, values


def evaluate(run: Run, corpus: Corpus, qrels: Qrels) -> Evaluation | None:
    """Metrics of a run over the questions that have labels; ``None`` where none of its questions has any."""
    query_ids, values = per_question(run, corpus, qrels)
    if not query_ids:
        return None
    return Evaluation({name: float(column.mean()) for name, column in values.items()}, len(query_ids), run.depth)
