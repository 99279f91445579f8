"""Fit the weight of the blend on labels, and say what it gains on questions that did not choose it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Run
from src.quality.evaluate import Values, per_question
from src.quality.statistics import Interval, bootstrap_mean

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
FOLDS = 5


@dataclass(frozen=True)
class BlendFit:
    """A fitted weight and its proof.

    Attributes:
        weight: fitted on all labelled questions; what unlabelled questions are answered with.
        fold_weights: fitted without each fold.
        held_out: the labelled questions, each blended with the weight of the folds that it is not in.
        gain: mean difference in Hit@5 between ``held_out`` and stage one, in [-1, 1], with its 95 % interval.
    """

    weight: float
    fold_weights: tuple[float, ...]
    held_out: Run
    gain: Interval

    @property
    def shown(self) -> bool:
        """Whether the interval of the gain leaves out 0."""
        return self.gain.low > 0 or self.gain.high < 0


def fit_blend(
    candidates: Run, blended: Callable[[float], Run], corpus: Corpus, qrels: Qrels, seed: int = 0
) -> BlendFit:
    """Choose the weight of :data:`WEIGHTS` with the best mean of Hit@5 and MRR@10, by cross-validation.

    The half of MRR keeps the choice steady where few questions are labelled; among equals the lowest weight wins, the
    one nearest to stage one. Fitting and reporting never share a question: what is reported is ``held_out``.

    Args:
        candidates: run of stage one.
        blended: weight -> the blended run over the same questions and candidates.

    Raises:
        UserError: where fewer questions are labelled than there are folds.
    """
    query_ids, stage_one = per_question(candidates, corpus, qrels)
    if len(query_ids) < FOLDS:
        raise UserError(
            f"--fit-blend: {len(query_ids)} questions of this run are labelled, at least {FOLDS} are needed. "
            "Label more, or leave RERANKER_BLEND_WEIGHT as it is."
        )
    labelled = np.flatnonzero(np.isin(candidates.query_ids, query_ids))
    goals, rows, scores = [], [], []
    for weight in WEIGHTS:
        run = blended(weight)
        _, values = per_question(run.cut(10), corpus, qrels)
        goals.append((values["Hit@5"] + values["MRR@10"]) / 2)
        rows.append(run.doc_rows[labelled])
        scores.append(run.scores[labelled])
    goal = np.stack(goals)
    folds = np.random.default_rng(seed).permutation(len(query_ids)) % FOLDS
    chosen = [_best(goal[:, folds != fold]) for fold in range(FOLDS)]
    own = np.array(chosen)[folds]
    places = np.arange(len(query_ids))
    held_out = Run(
        "held-out", query_ids, np.stack(rows)[own, places], np.stack(scores)[own, places], candidates.corpus_fingerprint
    )
    _, after = per_question(held_out, corpus, qrels)
    return BlendFit(
        WEIGHTS[_best(goal)],
        tuple(WEIGHTS[i] for i in chosen),
        held_out,
        bootstrap_mean(after["Hit@5"] - stage_one["Hit@5"], seed),
    )


def _best(goal: Values) -> int:
    # Rounded, so that the order of a sum does not choose among equals.
    return int(np.round(goal.mean(axis=1), 9).argmax())
