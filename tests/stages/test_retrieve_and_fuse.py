import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.types import Chunks, Run
from src.stages.fuse import Weighted, fuse, standardize
from src.stages.retrieve import best_chunks, first_chunks, to_documents


def array(values: object, dtype: type = np.int32) -> np.ndarray:
    return np.array(values, dtype=dtype)


def make_run(name: str, rows: list[list[int]], scores: list[list[float]], corpus: str = "c") -> Run:
    ids = tuple(f"q{i}" for i in range(len(rows)))
    return Run(name, ids, array(rows), array(scores, np.float32), corpus)


CHUNKS = Chunks(array([0, 0, 1, 3, 3, 3]), array([0, 5, 0, 0, 5, 9]), array([5, 9, 4, 5, 9, 12]))


def test_a_document_scores_as_its_best_chunk() -> None:
    units, scores = array([[4, 0, 1, 2, -1]]), array([[0.9, 0.8, 0.7, 0.8, 0.0]], np.float32)
    rows, values = to_documents(units, scores, CHUNKS.doc_rows, 4)
    # Document 3 by chunk 4 (.9); documents 0 and 1 tie at .8 and come in row order; document 2 has no chunk.
    assert rows.tolist() == [[3, 0, 1, -1]]
    assert values.tolist() == [pytest.approx([0.9, 0.8, 0.8, 0.0])]


def test_best_chunks_are_the_nearest_to_the_question() -> None:
    vectors = array([[1, 0], [0, 1], [1, 0], [0, 1], [0.6, 0.8], [1, 0]], np.float32)
    run = make_run("r", [[3, 0, 2]], [[3.0, 2.0, 1.0]])
    chosen = best_chunks(run, CHUNKS, array([[1, 0]], np.float32), vectors, 2)
    # Document 3 has chunks 3 (0), 4 (.6), 5 (1); document 0 chunks 0 (1), 1 (0); document 2 none.
    assert chosen.tolist() == [[[5, 4], [0, 1], [-1, -1]]]


def test_first_chunks() -> None:
    run = make_run("r", [[3, 1, -1]], [[3.0, 2.0, 0.0]])
    assert first_chunks(run, CHUNKS, 2).tolist() == [[[3, 4], [2, -1], [-1, -1]]]


def test_rrf_by_hand() -> None:
    first = make_run("a", [[5, 7, 2]], [[9.0, 8.0, 1.0]])
    second = make_run("b", [[7, 5, -1]], [[0.4, 0.3, 0.0]])
    fused = fuse([Weighted(first, 1.0), Weighted(second, 2.0)], "rrf", 60, 3)
    assert fused.doc_rows.tolist() == [[7, 5, 2]]
    expected = [1 / (60 + 2) + 2 / (60 + 1), 1 / (60 + 1) + 2 / (60 + 2), 1 / (60 + 3)]
    assert fused.scores[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_convex_by_hand() -> None:
    dense = make_run("dense", [[0, 1, 2]], [[0.9, 0.6, 0.3]])
    bm25 = make_run("bm25", [[2, 1]], [[6.0, 3.0]])
    fused = fuse([Weighted(dense, 0.6), Weighted(bm25, 0.2, absent_is_zero=True)], "convex", 60, 3)
    # dense: mean .6, deviation sqrt(.06) = .24495, z = 1.22474, 0, -1.22474 for documents 0, 1, 2
    # bm25 (document 0 scores 0): mean 3, deviation sqrt(6) = 2.44949, z = -1.22474, 0, 1.22474
    # weights .75 and .25: .61237, 0, -.61237
    assert fused.doc_rows.tolist() == [[0, 1, 2]]
    assert fused.scores[0].tolist() == pytest.approx([0.61237, 0.0, -0.61237], abs=1e-4)


def test_absent_from_a_dense_list_counts_as_its_lowest_score() -> None:
    dense = make_run("dense", [[0, 1]], [[0.9, 0.5]])
    other = make_run("other", [[2, 0, 1]], [[3.0, 2.0, 1.0]])
    fused = fuse([Weighted(dense, 1.0), Weighted(other, 1.0)], "convex", 60, 3)
    # dense over 0, 1, 2 is .9, .5, .5: z = 1.41421, -.70711, -.70711; other is 2, 1, 3: z = 0, -1.22474, 1.22474
    assert fused.doc_rows.tolist() == [[0, 2, 1]]
    assert fused.scores[0].tolist() == pytest.approx([0.70711, 0.25882, -0.96593], abs=1e-4)


def test_runs_of_different_corpora_are_refused() -> None:
    first, second = make_run("a", [[0]], [[1.0]]), make_run("b", [[0]], [[1.0]], corpus="other")
    with pytest.raises(ValueError, match="different questions or corpora"):
        fuse([Weighted(first, 1.0), Weighted(second, 1.0)], "rrf", 60, 1)


def test_no_weight_at_all() -> None:
    with pytest.raises(ValueError, match="no run with a positive weight"):
        fuse([Weighted(make_run("a", [[0]], [[1.0]]), 0.0)], "rrf", 60, 1)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_standardize(values: list[float]) -> None:
    z = standardize(array(values, np.float32))
    assert z.mean() == pytest.approx(0.0, abs=1e-2)
    assert z.std() == pytest.approx(1.0, abs=1e-2) or (z == 0).all()
