import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.types import Chunks, Corpus, Qrels, Queries, Run, passage_text, ranked


def make_run(rows: list[list[int]], scores: list[list[float]]) -> Run:
    ids = tuple(f"q{i}" for i in range(len(rows)))
    return Run("test", ids, np.array(rows, dtype=np.int32), np.array(scores, dtype=np.float32), "corpus")


def test_run_accepts_order_by_score_then_row() -> None:
    run = make_run([[4, 1, 3, -1]], [[2.0, 1.0, 1.0, 0.0]])
    assert run.depth == 4
    assert run.cut(2).doc_rows.tolist() == [[4, 1]]


@pytest.mark.parametrize(
    ("rows", "scores", "complaint"),
    [
        ([[1, 2]], [[1.0, 2.0]], "not in order"),
        ([[2, 1]], [[1.0, 1.0]], "not in order"),
        ([[1, 1]], [[2.0, 1.0]], "twice"),
        ([[-1, 1]], [[0.0, 0.0]], "gap"),
        ([[1, 2]], [[np.nan, 0.0]], "not finite"),
    ],
)
def test_run_refuses(rows: list[list[int]], scores: list[list[float]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_run(rows, scores)


def test_run_refuses_other_dtypes() -> None:
    with pytest.raises(ValueError, match="dtypes"):
        Run("x", ("q",), np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.float32), "c")  # type: ignore[arg-type]


def test_ids_must_be_distinct() -> None:
    with pytest.raises(UserError, match="'7' occurs more than once"):
        Queries(("7", "7"), ("a", "b"))


def test_corpus_is_sorted_by_id() -> None:
    with pytest.raises(ValueError, match="not sorted"):
        Corpus(("b", "a"), ("", ""), ("x", "y"))


def test_fingerprint_knows_column_borders() -> None:
    first = Corpus(("1", "2"), ("ab", ""), ("", "c"))
    second = Corpus(("1", "2"), ("a", "b"), ("", "c"))
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == Corpus(("1", "2"), ("ab", ""), ("", "c")).fingerprint


def test_chunks_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Chunks(*(np.array(v, dtype=np.int32) for v in ([1, 0], [0, 0], [1, 1])))


def test_empty_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="empty set"):
        Qrels({"q": frozenset()})


@pytest.mark.parametrize(
    ("title", "text", "joined"), [("T", "x", "T\nx"), ("", "x", "x"), ("T", "", "T"), ("", "", "")]
)
def test_passage_text(title: str, text: str, joined: str) -> None:
    assert passage_text(title, text) == joined


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from([0.0, 0.5, 1.0, 2.0])), unique_by=lambda p: p[0]),
    st.integers(1, 8),
)
def test_ranked_equals_a_full_sort(pairs: list[tuple[int, float]], depth: int) -> None:
    expected = sorted(pairs, key=lambda p: (-p[1], p[0]))[:depth]
    rows, scores = ranked(
        np.array([p[0] for p in pairs], dtype=np.int32), np.array([p[1] for p in pairs], dtype=np.float32), depth
    )
    assert rows[: len(expected)].tolist() == [p[0] for p in expected]
    assert scores[: len(expected)].tolist() == [p[1] for p in expected]
    assert (rows[len(expected) :] == -1).all()
