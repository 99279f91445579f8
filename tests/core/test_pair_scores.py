from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.pair_scores import PairScores, hash_texts
from src.core.spool import Spool

Q, P = hash_texts(["раз", "раз", "два"]), hash_texts(["a", "b", "a"])


def test_what_was_saved_is_found_by_another_process(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q, P, np.array([1.5, -2.0, 3.25], np.float32))
    assert np.isnan(kept.lookup(Q, P)).all()
    kept.save()
    found = PairScores(tmp_path)
    assert found.lookup(Q[::-1], P[::-1]).tolist() == [3.25, -2.0, 1.5]
    assert np.isnan(found.lookup(hash_texts(["два"]), hash_texts(["b"]))).all()
    assert np.isnan(found.lookup(hash_texts(["раз", "пять"]), hash_texts(["c", "a"]))).all()
    assert len(found) == 3


def test_the_order_of_the_two_texts_matters(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q[:1], P[:1], np.array([1.0], np.float32))
    kept.save()
    assert np.isnan(PairScores(tmp_path).lookup(P[:1], Q[:1])).all()


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


def save_one(kept: PairScores, number: int) -> None:
    kept.add(*NUMBERS[number], np.array([number], np.float32))
    kept.save()


NUMBERS = [(hash_texts([str(i)]), hash_texts([str(i)])) for i in range(70)]


def test_merging_leaves_alone_what_another_process_wrote_since(tmp_path: Path) -> None:
    ours, other = PairScores(tmp_path), PairScores(tmp_path)
    for i in range(64):
        save_one(ours, i)
    save_one(other, 68)
    save_one(ours, 64)  # our 65th file: ours are merged
    save_one(other, 69)
    found = PairScores(tmp_path)
    assert [found.lookup(*NUMBERS[i])[0] for i in (*range(65), 68, 69)] == [*range(65), 68, 69]
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_files_that_another_process_merged_are_gone_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = PairScores(tmp_path)
    for i in range(64):
        save_one(ours, i)
    next(tmp_path.glob("*.parquet")).unlink()  # the other process has its pair in a file of its own
    save_one(ours, 64)
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    assert len(PairScores(tmp_path)) == 64
    listed, real = [tmp_path / "000001-gone.parquet", *tmp_path.glob("*.parquet")], Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: listed if path == tmp_path else real(path, pattern))
    assert len(PairScores(tmp_path)) == 64
    assert len(PairScores(tmp_path, fresh=True)) == 0
    assert not caplog.records


@pytest.mark.parametrize("fresh", [False, True])
def test_read_only_changes_nothing_in_the_folder(tmp_path: Path, fresh: bool) -> None:
    for i in range(66):
        save_one(PairScores(tmp_path / str(i)), i)
        (path,) = (tmp_path / str(i)).glob("*.parquet")
        path.rename(tmp_path / path.name.replace("000001", f"{i:06d}"))
        path.parent.rmdir()
    (tmp_path / "000099-damaged.parquet").write_bytes(b"x")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 67
    kept = PairScores(tmp_path, fresh, read_only=True)
    assert len(kept) == (0 if fresh else 66)
    save_one(kept, 69)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_memory_does_not_hold_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spool, "smallest_file", 1)
    chance = np.random.default_rng(0)
    questions, passages = np.repeat(np.arange(300, dtype=np.uint64), 50), np.tile(np.arange(50, dtype=np.uint64), 300)
    order = chance.permutation(len(questions))
    questions, passages = questions[order], passages[order]
    scores = (questions * 50 + passages).astype(np.float32)
    kept = PairScores(tmp_path)
    for part in np.array_split(np.arange(len(order)), 3):
        kept.add(questions[part], passages[part], scores[part])
        kept.save()
    found = PairScores(tmp_path)
    assert len(found) == 15_000
    assert isinstance(found._scores.base, np.ndarray)  # mapped, see the spool
    assert found.lookup(questions, passages).tolist() == scores.tolist()


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
        found = PairScores(Path(folder)).lookup(
            np.array([q for q, _ in grid], np.uint64), np.array([p for _, p in grid], np.uint64)
        )
        for key, value in zip(grid, found.tolist(), strict=True):
            assert (value == expected[key]) if key in expected else np.isnan(value)
