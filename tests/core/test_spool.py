import errno
import os
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import DiskFullError
from src.core.spool import Spool, blocks, release
from src.core.types import Run


@pytest.fixture(autouse=True)
def everything_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spool, "smallest_file", 1)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_blocks_cover_all_rows_in_order() -> None:
    assert list(blocks(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(blocks(0)) == []


def test_an_array_keeps_its_values_when_its_pages_are_let_go(tmp_path: Path) -> None:
    array = Spool(tmp_path).array((3, 4), np.int32)
    assert array.tolist() == [[0] * 4] * 3
    array[1] = [5, 6, 7, 8]
    release()
    assert array.tolist() == [[0] * 4, [5, 6, 7, 8], [0] * 4]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="counts resident pages as Linux does")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    before, most = resident(), 0

    def made(rows: slice) -> np.ndarray:
        nonlocal most
        most = max(most, resident())
        return np.full((rows.stop - rows.start, 250), rows.start, np.float32)

    values = Spool(tmp_path).filled(100_000, (250,), np.float32, made)
    assert max(most, resident()) - before < 20_000_000  # of the 100 MB
    assert values[[0, 2047, 2048, 99_999], 249].tolist() == [0, 0, 2048, 98_304]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, None])
def test_where_files_cannot_be_reserved_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, "not supported")

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    array = Spool(tmp_path).array((300_000,), np.float64)
    assert array.base is not None
    assert (len(array), array.any()) == (300_000, False)


def test_files_that_cannot_be_mapped_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("src.core.spool.mmap.mmap", refuse)
    assert Spool(tmp_path).array((10,), np.int32).tolist() == [0] * 10
    assert "files there cannot be mapped ([Errno 19] No such device): memory grows by 40 bytes" in caplog.text


def test_without_a_folder_and_when_small_it_lies_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Spool().array((2,), np.int32).base is None
    monkeypatch.undo()
    assert Spool(tmp_path).array((10,), np.int32).base is None
    assert Spool(tmp_path).array((1 << 18,), np.int32).base is not None


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(DiskFullError, match=r"4,000 bytes are needed"):
        Spool(tmp_path).array((1000,), np.float32)


def test_a_run_made_in_blocks_is_the_run(tmp_path: Path) -> None:
    count = 5000
    rows = np.stack([np.arange(count), np.arange(count) + 1], axis=1).astype(np.int32)
    scores = np.tile(np.array([2.0, 1.0], np.float32), (count, 1))
    whole = Run("x", tuple(map(str, range(count))), rows, scores, "c")
    made = Run.in_blocks("x", whole.query_ids, 2, "c", Spool(tmp_path), whole.part)
    assert made.doc_rows.tobytes() == rows.tobytes()
    assert made.scores.tobytes() == scores.tobytes()
