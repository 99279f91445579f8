from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core import pair_scores
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


def test_scores_of_some_questions_with_some_passages_are_counted(tmp_path: Path) -> None:
    kept = PairScores(tmp_path)
    kept.add(Q, P, np.zeros(3, np.float32))  # раз with a and b, два with a
    kept.save()
    found = PairScores(tmp_path)
    for questions, passages, count in (
        (["раз", "два"], ["a", "b"], 3), (["раз"], ["a", "c"], 1), (["два", "три"], ["a"], 1), (["три"], ["a"], 0),
        (["раз", "раз"], ["b", "b"], 1), ([], [], 0),
    ):  # fmt: skip
        assert found.count(hash_texts(questions), hash_texts(passages)) == count
    assert PairScores(tmp_path / "none").count(Q, P) == 0


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
    for part, kept in enumerate((PairScores(tmp_path), PairScores(tmp_path))):
        kept.add(Q[part : part + 1], P[part : part + 1], np.array([part], np.float32))
        kept.save()
    first = next(path for path in tmp_path.glob("*.parquet") if pq.read_table(path)["score"].to_pylist() == [0.0])
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


def save_one(kept: PairScores, number: int) -> None:
    kept.add(*NUMBERS[number], np.array([number], np.float32))
    kept.save()


NUMBERS = [(hash_texts([str(i)]), hash_texts([str(i)])) for i in range(70)]
ALL = np.concatenate([question for question, _ in NUMBERS])


def test_what_one_run_saves_is_one_file_until_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.core.pair_scores.SEGMENT_PAIRS", 30)
    kept = PairScores(tmp_path)
    for i in range(70):
        save_one(kept, i)
        assert len(list(tmp_path.glob("*.parquet"))) == i // 30 + 1
    assert PairScores(tmp_path).lookup(ALL, ALL).tolist() == list(range(70))
    assert {path.name[:7] for path in tmp_path.iterdir()} == {"000001-", "000002-", "000003-"}


def test_two_processes_leave_each_other_s_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.core.pair_scores.SEGMENT_PAIRS", 8)
    one, other = PairScores(tmp_path), PairScores(tmp_path)
    for i in range(0, 70, 2):
        save_one(one, i)
        save_one(other, i + 1)
    assert PairScores(tmp_path).lookup(ALL, ALL).tolist() == list(range(70))


def test_a_kill_between_two_versions_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = PairScores(tmp_path)
    save_one(kept, 0)
    (first,) = tmp_path.glob("*.parquet")
    old = first.read_bytes()
    save_one(kept, 1)
    first.write_bytes(old)  # as if the process had ended before it removed the first version
    reader = PairScores(tmp_path, read_only=True)
    assert (len(reader), first.exists()) == (2, True)
    again = PairScores(tmp_path)
    assert (len(again), first.exists()) == (2, False)
    assert again.lookup(ALL[:2], ALL[:2]).tolist() == [0.0, 1.0]


def test_files_of_earlier_releases_are_read(tmp_path: Path) -> None:
    for i in range(2):
        save_one(PairScores(tmp_path), i)
    for number, path in enumerate(sorted(tmp_path.glob("*.parquet")), start=1):
        path.rename(tmp_path / f"{number:06d}-{path.stem.rpartition('-')[2]}.parquet")
    assert sorted(PairScores(tmp_path).lookup(ALL[:2], ALL[:2]).tolist()) == [0.0, 1.0]


def test_a_version_that_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = PairScores(tmp_path)
    save_one(writer, 0)
    replaced, real = [], pair_scores._batches

    def batches(path: Path) -> Iterator[tuple[np.ndarray, ...]]:
        replaced.append(path)
        if len(replaced) == 2:  # after the file was counted, before it is read
            save_one(writer, 1)
        return real(path)

    monkeypatch.setattr(pair_scores, "_batches", batches)
    found = PairScores(tmp_path, read_only=True)
    assert found.lookup(ALL[:3], ALL[:3])[:2].tolist() == [0.0, 1.0]
    assert len(replaced) == 4
    assert not caplog.records


def test_a_file_that_goes_away_leaves_questions_without_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_one(PairScores(tmp_path), 0)
    real, calls = pair_scores._batches, []

    def batches(path: Path) -> Iterator[tuple[np.ndarray, ...]]:
        calls.append(path)
        if len(calls) == 2:
            path.unlink()
        return real(path)

    monkeypatch.setattr(pair_scores, "_batches", batches)
    assert np.isnan(PairScores(tmp_path).lookup(ALL[:1], ALL[:1])).all()


@pytest.mark.parametrize("fresh", [False, True])
def test_read_only_changes_nothing_in_the_folder(tmp_path: Path, fresh: bool) -> None:
    for i in range(3):
        save_one(PairScores(tmp_path), i)
    (tmp_path / "000099-damaged.parquet").write_bytes(b"x")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 4
    kept = PairScores(tmp_path, fresh, read_only=True)
    assert len(kept) == (0 if fresh else 3)
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
