from collections.abc import Callable

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Run
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
    run, blended, qrels = problem([7] * 20, [7] * 20)
    found = fit_blend(run, blended, CORPUS, qrels)
    # One weight is enough for all: each fold chooses it, and every question gains a hit.
    assert 0 < found.weight < 1
    assert set(found.fold_weights) == {found.weight}
    assert (found.gain.mean, found.gain.low) == (1.0, 1.0)
    assert found.shown
    assert found.held_out.doc_rows[:, 0].tolist() == [7] * 20


def test_a_wrong_cross_encoder_gets_none() -> None:
    run, blended, qrels = problem([0] * 20, [7] * 20)
    found = fit_blend(run, blended, CORPUS, qrels)
    assert (found.weight, found.gain.mean, found.shown) == (0.0, 0.0, False)
    np.testing.assert_array_equal(found.held_out.doc_rows, run.doc_rows)


def test_no_question_chooses_its_own_weight() -> None:
    # One question alone gains a hit; without it, only harm is seen, and the weight for its own fold is 0.
    run, blended, qrels = problem([7] + [0] * 14, [7] * 15)
    found = fit_blend(run, blended, CORPUS, qrels)
    assert sorted(found.fold_weights)[0] == 0.0
    assert sorted(found.fold_weights)[1] > 0.0
    assert len(found.fold_weights) == FOLDS
    assert found.held_out.doc_rows[0, 0] == 0


def test_unlabelled_questions_have_no_say() -> None:
    run, blended, qrels = problem([7] * 12 + [0] * 8, [7] * 20)
    some = Qrels({query_id: docs for query_id, docs in qrels.relevant.items() if docs == {"h"}})
    found = fit_blend(run, blended, CORPUS, some)
    assert found.held_out.query_ids == run.query_ids[:12]
    assert found.weight > 0


def test_the_ends_are_allowed() -> None:
    assert (WEIGHTS[0], WEIGHTS[-1], len(WEIGHTS)) == (0.0, 1.0, 21)


def test_too_few_labels() -> None:
    run, blended, qrels = problem([0] * 4, [7] * 4)
    with pytest.raises(UserError, match="4 questions of this run are labelled, at least 5 are needed"):
        fit_blend(run, blended, CORPUS, qrels)


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
