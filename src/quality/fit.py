"""Fit the blend and the fusion on labels, and say what that gains on questions that did not choose it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Run
from src.quality.evaluate import Values, per_question
from src.quality.statistics import Interval, bootstrap_mean
from src.stages.fuse import Method

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
FOLDS = 5

C = TypeVar("C")


@dataclass(frozen=True)
class BlendFit:
    """A fitted weight and its proof.

    Attributes:
        weight: fitted on all labelled questions; in force where the gain is shown, else the configured one is.
        configured: the weight of the settings.
        fold_weights: fitted without each fold.
        before, after: Hit@5 with the configured weight, and of the labelled questions each blended with the weight of
            the folds that it is not in.
        gain: their mean difference with its 95 % interval, in [-1, 1].
    """

    weight: float
    configured: float
    fold_weights: tuple[float, ...]
    before: float
    after: float
    gain: Interval

    @property
    def in_force(self) -> bool:
        """Whether the fitted weight is used: its gain on held-out questions is above 0, interval and all."""
        return self.gain.low > 0


def fit_blend(
    candidates: Run,
    configured: float,
    blended: Callable[[float], Run],
    corpus: Corpus,
    qrels: Qrels,
    seed: int = 0,
) -> tuple[Run, BlendFit]:
    """Choose the weight of :data:`WEIGHTS` with the best mean of Hit@5 and MRR@10, by cross-validation.

    The half of MRR keeps the choice steady where few questions are labelled; among equals the lowest weight wins, the
    one nearest to stage one.

    Args:
        candidates: run of stage one.
        configured: the weight that is used without a fit.
        blended: weight -> the blended run over the same questions and candidates.

    Returns:
        A run and the fit. Where the gain is shown, a labelled question is blended with the weight that was fitted
        without it and an unlabelled one with that fitted on all, so that whatever is measured on the run is held out.
        Where it is not, all are blended with the configured weight.

    Raises:
        UserError: where fewer questions are labelled than there are folds.
    """
    labelled = _labelled_rows(candidates, qrels)
    count = len(labelled)
    if count < FOLDS:
        raise UserError(
            f"--fit-blend: {count} questions of this run are labelled, at least {FOLDS} are needed. "
            "Label more, or leave RERANKER_BLEND_WEIGHT as it is."
        )
    goals, hits = [], []
    for weight in WEIGHTS:
        _, values = per_question(blended(weight).cut(10), corpus, qrels)
        goals.append((values["Hit@5"] + values["MRR@10"]) / 2)
        hits.append(values["Hit@5"])
    goal = np.stack(goals)
    folds = np.random.default_rng(seed).permutation(count) % FOLDS
    chosen = [_best(goal[:, folds != fold]) for fold in range(FOLDS)]
    own = np.array(chosen)[folds]
    held_out = np.stack(hits)[own, np.arange(count)]
    start = blended(configured)
    as_configured = per_question(start.cut(10), corpus, qrels)[1]["Hit@5"]
    weight = WEIGHTS[_best(goal)]
    fold_weights = tuple(WEIGHTS[i] for i in chosen)
    gain = bootstrap_mean(held_out - as_configured, seed)
    fit = BlendFit(weight, configured, fold_weights, float(as_configured.mean()), float(held_out.mean()), gain)
    if not fit.in_force:
        return start, fit
    return _each_by_its_fold(blended(weight), labelled, folds, fold_weights, blended), fit


def _labelled_rows(run: Run, qrels: Qrels) -> npt.NDArray[np.int64]:
    return np.flatnonzero([query_id in qrels.relevant for query_id in run.query_ids])


def _each_by_its_fold(
    run: Run,
    labelled: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int64],
    chosen: Sequence[C],
    made: Callable[[C], Run],
) -> Run:
    """``run``, but each labelled question answered by what was chosen without its fold.

    Args:
        labelled: rows of the labelled questions.
        folds: the fold of each of them.
        chosen: what was chosen without each fold.
        made: a choice -> the run that it gives.
    """
    rows, scores = run.doc_rows.copy(), run.scores.copy()
    for choice in dict.fromkeys(chosen):
        own = labelled[np.isin(folds, [fold for fold, other in enumerate(chosen) if other == choice])]
        other = made(choice)
        rows[own], scores[own] = other.doc_rows[own], other.scores[own]
    return replace(run, doc_rows=rows, scores=scores)


Choice = tuple[Method, tuple[float, ...]]
STEPS = (0.0, 0.5, 0.75, 1.5, 2.0)
SWEEPS = 2


@dataclass(frozen=True)
class FusionFit:
    """A fitted fusion and its proof.

    Attributes:
        method, weights: fitted on all labelled questions; in force where the gain is shown, else those configured are.
        fold_choices: method and weights fitted without each fold.
        before, after: Hit@5 of the fusion as configured, and of the labelled questions each searched with the choice
            of the folds that it is not in.
        gain: their mean difference with its 95 % interval, in [-1, 1].
    """

    method: Method
    weights: tuple[float, ...]
    fold_choices: tuple[Choice, ...]
    before: float
    after: float
    gain: Interval

    @property
    def in_force(self) -> bool:
        """Whether the fitted choice is used: its gain on held-out questions is above 0, interval and all."""
        return self.gain.low > 0


def fit_fusion(
    method: Method,
    weights: Sequence[float],
    fused: Callable[[Method, Sequence[float]], Run],
    corpus: Corpus,
    qrels: Qrels,
    seed: int = 0,
) -> tuple[Run, FusionFit]:
    """Fit method and weights by coordinate ascent on the mean of Hit@5 and MRR@10, by cross-validation.

    Args:
        method, weights: as configured: where the ascent starts, and what stays where nothing is better.
        fused: method and weights -> the fused run.

    Returns:
        A run and the fit. Where the gain is shown, a labelled question is searched with weights that were fitted
        without it and an unlabelled one with those fitted on all, so that whatever is measured on the run is held out.
        Where it is not, all are searched as configured: weights that did not help questions unseen would not help
        the next ones.

    Raises:
        UserError: where fewer questions are labelled than there are folds.
    """
    goals: dict[Choice, Values] = {}
    hits: dict[Choice, Values] = {}

    def goal(choice: Choice) -> Values:
        if choice not in goals:
            _, values = per_question(fused(*choice).cut(10), corpus, qrels)
            goals[choice], hits[choice] = (values["Hit@5"] + values["MRR@10"]) / 2, values["Hit@5"]
        return goals[choice]

    start: Choice = (method, tuple(weights))
    count = len(goal(start))
    if count < FOLDS:
        raise UserError(
            f"--fit-fusion: {count} questions of this run are labelled, at least {FOLDS} are needed. "
            "Label more, or leave the weights as they are."
        )
    folds = np.random.default_rng(seed).permutation(count) % FOLDS
    every = np.ones(count, dtype=bool)
    chosen = [_ascend(start, goal, folds != fold) for fold in range(FOLDS)]
    final = _ascend(start, goal, every)
    held_out = np.stack([hits[choice] for choice in chosen])[folds, np.arange(count)]
    gain = bootstrap_mean(held_out - hits[start], seed)
    fit = FusionFit(*final, tuple(chosen), float(hits[start].mean()), float(held_out.mean()), gain)
    if not fit.in_force:
        return fused(*start), fit
    run = fused(*final)
    return _each_by_its_fold(run, _labelled_rows(run, qrels), folds, chosen, lambda choice: fused(*choice)), fit


def _ascend(start: Choice, goal: Callable[[Choice], Values], used: npt.NDArray[np.bool_]) -> Choice:
    """Change one weight at a time to a multiple of itself as long as that helps on the used questions."""

    def value(choice: Choice) -> float:
        # Rounded, so that the order of a sum does not choose among equals.
        return round(float(goal(choice)[used].mean()), 9)

    best = start
    other: Method = "rrf" if start[0] == "convex" else "convex"
    for first in (start, (other, start[1])):
        at: Choice = first
        for _ in range(SWEEPS):
            for place in range(len(at[1])):
                options = [
                    (at[0], (*at[1][:place], step * at[1][place], *at[1][place + 1 :]))
                    for step in STEPS
                    if any(weight > 0 for i, weight in enumerate(at[1]) if i != place) or step > 0
                ]
                at = max([at, *options], key=value)  # the first among equals: what is there
        if value(at) > value(best):
            best = at
    return best


def _best(goal: Values) -> int:
    # Rounded, so that the order of a sum does not choose among equals.
    return int(np.round(goal.mean(axis=1), 9).argmax())
