from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.pair_scores import PairScores, hash_texts

Q, P = hash_texts(["раз", "раз", "два"]), hash_texts(["a", "b", "a"])


def test_what_was_saved_is_found_by_another_process(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q, P, np.array([1.5, -2.0, 3.25], np.float32))
    assert np.isnan(kept.lookup(Q, P)).all()
    kept.save()
    for scores in (kept, PairScores(tmp_path)):
        assert scores.lookup(Q[::-1], P[::-1]).tolist() == [3.25, -2.0, 1.5]
        assert np.isnan(scores.lookup(hash_texts(["два"]), hash_texts(["b"]))).all()
        assert len(scores) == 3


def test_the_order_of_the_two_texts_matters(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q[:1], P[:1], np.array([1.0], np.float32))
    kept.save()
    assert np.isnan(kept.lookup(P[:1], Q[:1])).all()


def test_fresh_forgets(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q, P, np.ones(3, np.float32))
    kept.save()
    assert len(PairScores(tmp_path, fresh=True)) == 0
    assert len(PairScores(tmp_path)) == 0


def test_a_damaged_file_costs_only_its_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = PairScores(tmp_path)
    for part in range(2):
        kept.add(Q[part : part + 1], P[part : part + 1], np.array([part], np.float32))
        kept.save()
    first, _ = sorted(tmp_path.glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:40])
    found = PairScores(tmp_path).lookup(Q[:2], P[:2])
    assert np.isnan(found[0])
    assert found[1] == 1.0
    assert "its pairs are scored again" in caplog.text


def test_a_flipped_byte_is_never_a_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q, P, np.array([1.5, -2.0, 3.25], np.float32))
    kept.save()
    path = next(tmp_path.glob("*.parquet"))
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
        assert len(PairScores(tmp_path)) == 0
        assert not path.exists()
    assert "its bytes are not those that were written" in caplog.text


def test_many_small_files_become_one(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    texts = hash_texts(map(str, range(70)))
    for i in range(70):
        kept.add(texts[i : i + 1], texts[i : i + 1], np.array([i], np.float32))
        kept.save()
    assert PairScores(tmp_path).lookup(texts, texts).tolist() == list(range(70))
    # The 65th file made one of all; five more came after it.
    assert len(list(tmp_path.glob("*.parquet"))) == 6
    assert PairScores(tmp_path).lookup(texts, texts).tolist() == list(range(70))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(-9, 9, width=32)), max_size=30))
def test_it_behaves_as_a_dictionary(entries: list[tuple[int, int, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kept, expected = PairScores(Path(folder)), {}
        for question, passage, score in entries:
            if (question, passage) not in expected:
                kept.add(np.array([question], np.uint64), np.array([passage], np.uint64), np.array([score], np.float32))
                kept.save()
                expected[question, passage] = score
        grid = [(q, p) for q in range(6) for p in range(6)]
        found = kept.lookup(np.array([q for q, _ in grid], np.uint64), np.array([p for _, p in grid], np.uint64))
        for key, value in zip(grid, found.tolist(), strict=True):
            assert (value == expected[key]) if key in expected else np.isnan(value)
