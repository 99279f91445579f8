from collections.abc import Callable

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Run
from src.quality.fit import FOLDS, WEIGHTS, fit_blend
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
