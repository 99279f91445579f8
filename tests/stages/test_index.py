from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from src.stages import index as index_module
from src.stages.index import Bm25Index, FaissIndex

import faiss  # isort: skip

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
    index = FaissIndex.load(tmp_path / "index.faiss", device="cpu")
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


class FakeGpuFaiss:
    """The GPU part of faiss in front of a real CPU index; ``fails`` names the step that has no memory."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.placed: list[int] = []
        self.asked: list[int] = []
        self.scratch: list[int] = []
        self.resources: list[SimpleNamespace] = []
        self.IndexFlatIP, self.read_index, self.write_index = faiss.IndexFlatIP, faiss.read_index, faiss.write_index

    def StandardGpuResources(self) -> SimpleNamespace:
        return SimpleNamespace(setTempMemory=self.scratch.append)

    def get_num_gpus(self) -> int:
        return 4

    def index_cpu_to_gpu(self, resources: SimpleNamespace, number: int, index: Any) -> Any:
        self.resources.append(resources)
        if self.fails == "copy":
            raise RuntimeError("Error in virtual void* StandardGpuResourcesImpl::allocMemory: out of memory")
        self.placed.append(number)
        return SimpleNamespace(search=partial(self._search, index))

    def _search(self, index: Any, vectors: Any, k: int) -> Any:
        assert k <= 2048
        self.asked.append(k)
        if self.fails == "search":
            raise RuntimeError("CUDA error 2 out of memory")
        return index.search(vectors, k)


@pytest.fixture(autouse=True)
def _no_scratch_from_before() -> None:
    index_module._gpu_memory.cache_clear()


UNITS = 2100


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    vectors = np.random.default_rng(1).normal(size=(UNITS, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    path = tmp_path_factory.mktemp("index") / "index.faiss"
    FaissIndex.build(vectors).save(path)
    return path, vectors


def test_the_indices_of_a_card_share_its_scratch_memory(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeGpuFaiss()
    monkeypatch.setattr(index_module, "faiss", fake)
    for device in ("cuda:0", "cuda:0", "cuda:1"):
        FaissIndex.load(saved[0], device)
    assert fake.scratch == [256 << 20] * 2
    assert fake.resources[0] is fake.resources[1]
    assert fake.resources[0] is not fake.resources[2]


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1), ("cuda:3", 3)])
def test_the_index_goes_onto_the_one_card_that_is_named(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, device: str, number: int
) -> None:
    fake = FakeGpuFaiss()
    monkeypatch.setattr(index_module, "faiss", fake)
    index = FaissIndex.load(saved[0], device)
    assert fake.placed == [number]
    assert len(index) == UNITS
    expected = FaissIndex.load(saved[0], "cpu").search(saved[1][:2], 7)
    np.testing.assert_array_equal(index.search(saved[1][:2], 7)[0], expected[0])
    assert fake.asked == [7]


def test_a_search_deeper_than_a_gpu_answers_uses_the_cpu_index(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeGpuFaiss()
    monkeypatch.setattr(index_module, "faiss", fake)
    index = FaissIndex.load(saved[0], "cuda")
    for depth in (2048, 2049, 5000):
        rows = index.search(saved[1][:1], depth)[0]
        assert (rows[0] >= 0).sum() == min(depth, UNITS)
    assert fake.asked == [2048]


def test_a_card_that_faiss_does_not_see(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeGpuFaiss()
    monkeypatch.setattr(index_module, "faiss", fake)
    assert FaissIndex.load(saved[0], "cuda:4").search(saved[1][:1], 1)[0].tolist() == [[0]]
    assert fake.placed == []
    assert "it sees 4 of them, not cuda:4" in caplog.records[0].message


@pytest.mark.parametrize("fails", ["copy", "search"])
def test_no_memory_on_the_card_is_a_warning_and_the_cpu_index(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    monkeypatch.setattr(index_module, "faiss", FakeGpuFaiss(fails))
    index = FaissIndex.load(saved[0], "cuda:1")
    for _ in range(2):
        assert index.search(saved[1][:3], 1)[0][:, 0].tolist() == [0, 1, 2]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "out of memory): the CPU index is used" in record.message
