from collections.abc import Callable

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Run
from src.quality.evaluate import evaluate
from src.quality.fit import FOLDS, WEIGHTS, fit_blend, fit_fusion
from src.stages.fuse import Method, Weighted, fuse
from src.stages.rerank import blend

CORPUS = Corpus(tuple("abcdefgh"), ("",) * 8, ("x",) * 8)


def problem(right: list[int], liked: list[int]) -> tuple[Run, Callable[[float], Run], Qrels]:
    """Stage one ranks 0..7; the cross-encoder likes one document of each question best, the rest as stage one."""
    count = len(right)
    ids = tuple(f"q{i}" for i in range(count))
    rows = np.tile(np.arange(8, dtype=np.int32), (count, 1))
    run = Run("fused", ids, rows, np.tile(np.arange(8, 0, -1, dtype=np.float32), (count, 1)), CORPUS.fingerprint)
    pair_scores = run.scores.copy()
    pair_scores[np.arange(count), liked] = 20.0
    qrels = Qrels({query_id: frozenset(CORPUS.doc_ids[row]) for query_id, row in zip(ids, right, strict=True)})
    return run, lambda weight: blend(run, pair_scores, weight, "on"), qrels


def test_a_right_cross_encoder_gets_weight_and_the_gain_is_shown() -> None:
    candidates, blended, qrels = problem([7] * 20, [7] * 20)
    run, fit = fit_blend(candidates, 0.0, blended, CORPUS, qrels)
    # One weight is enough for all: each fold chooses it, and every question gains a hit.
    assert 0 < fit.weight < 1
    assert set(fit.fold_weights) == {fit.weight}
    assert (fit.before, fit.after, fit.gain.mean, fit.gain.low, fit.in_force) == (0.0, 1.0, 1.0, 1.0, True)
    assert run.doc_rows[:, 0].tolist() == [7] * 20
    assert run.name == "on"


def test_a_wrong_cross_encoder_gets_none() -> None:
    # Alone it puts a wrong page on top, and the right one, fifth in stage one, falls to the sixth place.
    candidates, blended, qrels = problem([4] * 20, [7] * 20)
    run, fit = fit_blend(candidates, 1.0, blended, CORPUS, qrels)
    assert (fit.weight, fit.before, fit.after, fit.in_force) == (0.0, 0.0, 1.0, True)
    np.testing.assert_array_equal(run.doc_rows, candidates.doc_rows)


def test_a_weight_whose_gain_is_not_shown_is_not_used() -> None:
    # Two of twenty questions need the cross-encoder: a gain over the configured 0, but its interval reaches down to 0.
    candidates, blended, qrels = problem([7, 0, 7] + [0] * 17, [7, 0, 7] + [0] * 17)
    run, fit = fit_blend(candidates, 0.0, blended, CORPUS, qrels)
    assert fit.weight > 0
    assert (fit.before, fit.after, fit.gain.low, fit.in_force) == (0.9, 1.0, 0.0, False)
    np.testing.assert_array_equal(run.doc_rows, candidates.doc_rows)


def test_the_configured_weight_stays_where_the_fitted_one_is_no_better() -> None:
    candidates, blended, qrels = problem([7] * 20, [7] * 20)
    run, fit = fit_blend(candidates, 0.97, blended, CORPUS, qrels)
    assert (fit.before, fit.after, fit.gain.mean, fit.in_force) == (1.0, 1.0, 0.0, False)
    np.testing.assert_array_equal(run.scores, blended(0.97).scores)


def one_that_needs_more() -> tuple[Run, Callable[[float], Run], Qrels]:
    """Twenty questions whose right page, 7, the cross-encoder lifts; the first one needs a larger weight."""
    candidates, _, qrels = problem([7] * 20, [7] * 20)
    pair_scores = candidates.scores.copy()
    pair_scores[:, 7] = 20.0
    pair_scores[0, 7] = 5.5
    return candidates, lambda weight: blend(candidates, pair_scores, weight, "on"), qrels


def test_in_the_run_no_question_is_answered_with_a_weight_that_it_chose() -> None:
    candidates, blended, qrels = one_that_needs_more()
    run, fit = fit_blend(candidates, 0.0, blended, CORPUS, qrels)
    low, high = sorted(set(fit.fold_weights))
    assert fit.weight == high
    assert sorted(fit.fold_weights) == [low] + [high] * (FOLDS - 1)
    # With the weight of all labels the first question is a hit, but it alone asked for so much.
    assert blended(high).doc_rows[0, :5].tolist().count(7) == 1
    assert run.doc_rows[0].tolist() == blended(low).doc_rows[0].tolist()
    assert run.doc_rows[0, :5].tolist().count(7) == 0
    assert run.doc_rows[1:, 0].tolist() == [7] * 19
    assert (fit.in_force, fit.after) == (True, 0.95)
    assert evaluate(run, CORPUS, qrels).metrics["Hit@5"] == 0.95  # type: ignore[union-attr]


def test_unlabelled_questions_have_no_say_and_get_the_weight_of_all() -> None:
    candidates, blended, qrels = one_that_needs_more()
    some = Qrels({query_id: docs for query_id, docs in qrels.relevant.items() if query_id != "q0"})
    run, fit = fit_blend(candidates, 0.0, blended, CORPUS, some)
    assert set(fit.fold_weights) == {fit.weight}
    assert run.query_ids == candidates.query_ids
    np.testing.assert_array_equal(run.doc_rows, blended(fit.weight).doc_rows)
    assert run.doc_rows[0, :5].tolist().count(7) == 0


def test_the_ends_are_allowed() -> None:
    assert (WEIGHTS[0], WEIGHTS[-1], len(WEIGHTS)) == (0.0, 1.0, 21)


def test_too_few_labels() -> None:
    run, blended, qrels = problem([0] * 4, [7] * 4)
    with pytest.raises(UserError, match="4 questions of this run are labelled, at least 5 are needed"):
        fit_blend(run, 0.35, blended, CORPUS, qrels)


def fused_of(good: list[bool], weights_seen: list[tuple[str, tuple[float, ...]]] | None = None) -> Callable[..., Run]:
    """Two runs over 8 documents: the first ranks 0..7, the second 7..0; ``good``: whose right page is document 7."""
    count = len(good)
    ids = tuple(f"q{i}" for i in range(count))
    rows = np.tile(np.arange(8, dtype=np.int32), (count, 1))
    scores = np.tile(np.arange(8, 0, -1, dtype=np.float32), (count, 1))
    first = Run("first", ids, rows, scores, CORPUS.fingerprint)
    second = Run("second", ids, rows[:, ::-1].copy(), scores, CORPUS.fingerprint)

    def fused(method: Method, weights: tuple[float, ...]) -> Run:
        if weights_seen is not None:
            weights_seen.append((method, tuple(weights)))
        return fuse([Weighted(first, weights[0]), Weighted(second, weights[1])], method, 60, 8)

    return fused


def labels(right: list[int]) -> Qrels:
    return Qrels({f"q{i}": frozenset(CORPUS.doc_ids[row]) for i, row in enumerate(right)})


def test_fusion_finds_the_run_that_is_right() -> None:
    run, fit = fit_fusion("convex", [1.0, 0.5], fused_of([True] * 20), CORPUS, labels([7] * 20))
    # As configured the first run outweighs the second, and document 7 comes last.
    assert (fit.before, fit.after, fit.gain.low, fit.in_force) == (0.0, 1.0, 1.0, True)
    assert fit.weights[1] > fit.weights[0]
    assert run.doc_rows[:, 0].tolist() == [7] * 20


def test_fusion_stays_as_configured_where_nothing_is_better() -> None:
    run, fit = fit_fusion("rrf", [1.0, 0.5], fused_of([False] * 10), CORPUS, labels([0] * 10))
    assert (fit.method, fit.weights, fit.gain.mean, fit.in_force) == ("rrf", (1.0, 0.5), 0.0, False)
    assert set(fit.fold_choices) == {("rrf", (1.0, 0.5))}
    assert run.doc_rows[:, 0].tolist() == [0] * 10


def test_no_question_chooses_its_own_fusion() -> None:
    # One question alone wants the second run: the folds that hold it out search it as configured.
    run, fit = fit_fusion("convex", [1.0, 0.5], fused_of([True] + [False] * 14), CORPUS, labels([7] + [0] * 14))
    assert run.doc_rows[0, 0] == 0
    assert fit.after <= fit.before == 14 / 15


def test_a_fusion_whose_gain_is_not_shown_is_not_used() -> None:
    # Two of twenty questions want what only another fusion finds: a gain, but its interval reaches down to 0.
    run, fit = fit_fusion("convex", [1.0, 0.5], fused_of([True] * 20), CORPUS, labels([7, 0, 7] + [0] * 17))
    assert fit.before == 0.9
    assert fit.after > fit.before
    assert (fit.gain.low, fit.in_force) == (0.0, False)
    assert run.doc_rows[:, 0].tolist() == [0] * 20


def test_unlabelled_questions_get_the_weights_of_all() -> None:
    run, _ = fit_fusion("convex", [1.0, 0.5], fused_of([True] * 12), CORPUS, labels([7] * 9))
    assert run.doc_rows[9:, 0].tolist() == [7] * 3


def test_no_run_is_ever_left_without_weight() -> None:
    seen: list[tuple[str, tuple[float, ...]]] = []
    fit_fusion("convex", [1.0, 0.5], fused_of([True] * 10, seen), CORPUS, labels([7] * 10))
    assert all(any(weight > 0 for weight in weights) for _, weights in seen)
    assert {method for method, _ in seen} == {"convex", "rrf"}


def test_too_few_labels_for_a_fusion() -> None:
    with pytest.raises(UserError, match="--fit-fusion: 4 questions of this run are labelled, at least 5 are needed"):
        fit_fusion("convex", [1.0, 0.5], fused_of([True] * 4), CORPUS, labels([7] * 4))
