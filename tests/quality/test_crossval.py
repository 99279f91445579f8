from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.types import Corpus, Floats, Qrels, Queries, Run
from src.quality.crossval import LabelledCandidates, out_of_fold_scores, split_folds
from src.quality.mining import Example

CORPUS = Corpus(("a", "b", "c"), ("", "", ""), ("one", "two", "three"))
QUERIES = Queries(("q0", "q1", "q2", "q3"), ("one?", "two?", "three?", "?"))
QRELS = Qrels({"q0": frozenset("a"), "q1": frozenset("b"), "q2": frozenset("c")})
TEXTS = ("one", "two", "three")


def labelled() -> LabelledCandidates:
    rows = np.array([[0, 1], [1, 2], [2, -1], [0, 1]], np.int32)
    scores = np.array([[2, 1], [2, 1], [2, 0], [2, 1]], np.float32)
    candidates = Run("fused", QUERIES.query_ids, rows, scores, CORPUS.fingerprint)
    return LabelledCandidates(QUERIES, QRELS, candidates, CORPUS, TEXTS, rows[:, :, None])


@given(st.integers(2, 9), st.integers(0, 30), st.integers(0, 5))
def test_folds_part_the_questions_evenly(count: int, more: int, seed: int) -> None:
    ids = [f"q{i}" for i in range(count + more)]
    folds = split_folds(ids, count, seed)
    assert sorted(query_id for fold in folds for query_id in fold) == sorted(ids)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


@pytest.mark.parametrize(("count", "labels"), [(1, 5), (5, 4)])
def test_too_few_labels_for_the_folds(count: int, labels: int) -> None:
    with pytest.raises(UserError, match=rf"--folds {count}: {labels} questions are labelled"):
        split_folds([str(i) for i in range(labels)], count, 0)


def lengths(pairs: Sequence[tuple[str, str]]) -> Floats:
    return np.array([len(passage) for _, passage in pairs], np.float32)


def test_no_question_is_scored_by_a_model_that_saw_it(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    scored: list[set[str]] = []

    def train(number: int, examples: list[Example]) -> object:
        seen.append({example.question for example in examples})
        scored.append(set())

        def score(pairs: Sequence[tuple[str, str]]) -> Floats:
            scored[number].update(question for question, _ in pairs)
            return lengths(pairs)

        return score

    folds = split_folds(labelled().labelled, 3, 0)
    found = out_of_fold_scores(labelled(), folds, train, tmp_path, "key")  # type: ignore[arg-type]
    # "three" is longer than "one" and "two"; the missing candidate of q2 takes the lowest; q3 has no label.
    assert found.tolist() == [[3, 3], [3, 5], [5, 5], [0, 0]]
    for learned, asked in zip(seen, scored, strict=True):
        assert len(asked) == 1
        assert not learned & asked
        assert len(learned) == 2


def test_finished_folds_are_kept_for_the_same_training_only(tmp_path: Path) -> None:
    calls: list[int] = []

    def train(number: int, examples: list[Example]) -> object:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return lengths

    folds = split_folds(labelled().labelled, 3, 0)
    with pytest.raises(KeyboardInterrupt):
        out_of_fold_scores(labelled(), folds, train, tmp_path, "key")  # type: ignore[arg-type]
    found = out_of_fold_scores(labelled(), folds, train, tmp_path, "key")  # type: ignore[arg-type]
    assert calls == [0, 1, 1, 2]
    assert found[:3].tolist() == [[3, 3], [3, 5], [5, 5]]
    out_of_fold_scores(labelled(), folds, train, tmp_path, "other")  # type: ignore[arg-type]
    assert calls == [0, 1, 1, 2, 0, 1, 2]
