from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from src.stages.index import Bm25Index, FaissIndex

TERM_LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), min_size=1, max_size=20).filter(any)


@settings(deadline=None)
@given(TERM_LISTS, st.lists(st.sampled_from("abcdefghz"), max_size=6), st.floats(0.5, 2.0), st.floats(0.0, 1.0))
def test_backends_agree(lists: list[list[str]], query: list[str], k1: float, b: float) -> None:
    fast, slow = (Bm25Index.build(lists, k1, b, backend) for backend in ("bm25s", "rank_bm25"))
    np.testing.assert_allclose(fast.scores(query), slow.scores(query), rtol=1e-4, atol=1e-5)


def test_score_by_hand() -> None:
    # "card" is in 1 of 3 lists, once in a list of 2 words; the mean length is (2 + 1 + 3) / 3 = 2.
    # idf = ln(1 + (3 - 1 + 0.5) / (1 + 0.5)) = ln(2.6667) = 0.98083; tf = 1 / (1 + 1.2 * (1 - 0.75 + 0.75 * 2 / 2)).
    index = Bm25Index.build([["card", "free"], ["loan"], ["rate", "loan", "rate"]], 1.2, 0.75, "bm25s")
    assert index.scores(["card"]).tolist() == pytest.approx([0.98083 / 2.2, 0.0, 0.0], abs=1e-5)


def test_our_idf_is_the_only_difference_to_rank_bm25() -> None:
    lists = [["a", "b"], ["b", "c"], ["c", "d", "d"], ["e"]]
    ours = Bm25Index.build(lists, 1.5, 0.75, "rank_bm25")
    plain = BM25Okapi(lists, k1=1.5, b=0.75)
    idf = np.log(1 + (4 - 1 + 0.5) / 1.5)
    np.testing.assert_allclose(ours.scores(["d"]) / idf, plain.get_scores(["d"]) / plain.idf["d"] / 2.5, rtol=1e-6)


@pytest.mark.parametrize("backend", ["bm25s", "rank_bm25"])
def test_documents_without_a_term_do_not_enter(backend: str, tmp_path: Path) -> None:
    lists = [["a"], ["b"], [], ["a", "b"]]
    index = Bm25Index.build(lists, 1.2, 0.75, backend)  # type: ignore[arg-type]
    index.save(tmp_path, lists)
    for found in (index, Bm25Index.load(tmp_path)):
        rows, scores = found.search([["a"], ["zzz"], []], 3)
        assert rows.tolist() == [[0, 3, -1], [-1, -1, -1], [-1, -1, -1]]
        assert scores[0, 0] > scores[0, 1] > scores[0, 2] == 0


def test_equal_scores_come_in_row_order() -> None:
    index = Bm25Index.build([["x"], ["a"], ["a"], ["a"]], 1.2, 0.75, "bm25s")
    assert index.search([["a"]], 2)[0].tolist() == [[1, 2]]


def test_faiss_is_exact_and_pads(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(20, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    FaissIndex.build(vectors).save(tmp_path / "index.faiss")
    index = FaissIndex.load(tmp_path / "index.faiss", use_gpu=False)
    rows, scores = index.search(vectors[:3], 25)
    exact = vectors[:3] @ vectors.T
    np.testing.assert_array_equal(rows[:, :20], np.argsort(-exact, axis=1))
    np.testing.assert_allclose(scores[:, :20], -np.sort(-exact, axis=1), atol=1e-6)
    assert (rows[:, 20:] == -1).all()


def test_faiss_refuses_vectors_that_are_not_unit() -> None:
    with pytest.raises(ValueError, match="not of unit length"):
        FaissIndex.build(np.full((2, 4), 2.0, dtype=np.float32))


def test_equal_vectors_come_in_row_order() -> None:
    vectors = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (4, 1))
    assert FaissIndex.build(vectors).search(vectors[:1], 4)[0].tolist() == [[0, 1, 2, 3]]
