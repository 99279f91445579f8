"""Full disks, killed processes, and what they leave."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.atomic import atomic_directory, atomic_path, explain_full_disk, remove_dead_temporaries, remove_leftovers
from src.core.errors import DiskFullError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        OSError("1000000 requested and 131056 written"),  # numpy
        RuntimeError("Error in write_index: write error in x: 4051 != 5120000 (No space left on device)"),  # faiss
    ],
)
def test_a_full_disk_is_one_line(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file.npy"
    path.write_bytes(b"old")

    def write(needed: int | None) -> None:
        with atomic_path(path, needed) as temporary:
            temporary.write_bytes(b"x" * 2000)
            raise error

    with pytest.raises(
        DiskFullError, match=r"file\.npy: the disk is full: 5,000,000 bytes are needed, [\d,]+ are free"
    ):
        write(5_000_000)
    with pytest.raises(DiskFullError, match=r"file\.npy: the disk is full: more than 2,000 bytes are needed") as caught:
        write(None)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file.npy"]


def test_a_full_disk_under_a_folder(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "index") as temporary:
            (temporary / "a").write_bytes(b"x" * 30)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match=r"index: the disk is full: more than 30 bytes are needed"):
        write()
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("a shape is wrong")):
        with pytest.raises(type(error), match=str(error)[-10:]), atomic_path(tmp_path / "a"):
            raise error
    with pytest.raises(PermissionError), explain_full_disk(tmp_path / "a", 3):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_leftovers_of_the_dead(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "a.csv.tmp-1-x").write_text("half")
    deep = tmp_path / "indices"
    for name in ("one", "one.tmp-2-x", "one.tmp-2-x-old", "two.tmp-3-x", "two.tmp-3-x-old"):
        (deep / name).mkdir(parents=True)
        (deep / name / "data.tmp-9-y").write_text(name)
    # "two" was killed between its two renames: the earlier one comes back.
    assert remove_leftovers(tmp_path) == 6
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a.csv", "indices", "indices/one", "indices/two", "indices/two/data.tmp-9-y",
    ]  # fmt: skip
    assert (deep / "two" / "data.tmp-9-y").read_text() == "two.tmp-3-x-old"


def test_temporaries_of_the_living_stay(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"s.csv.tmp-{os.getpid()}-a", f"s.csv.tmp-{gone.pid}-b", f"other.csv.tmp-{gone.pid}-c", "s.csv.tmp-old"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_dead_temporaries(tmp_path / "s.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], *names[2:]])


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    code = f"""
import resource, sys
import numpy as np
from pathlib import Path
from src.core.atomic import atomic_path
from src.core.errors import DiskFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with atomic_path(Path({str(tmp_path / "v.npy")!r}), 80_000) as temporary, temporary.open("wb") as handle:
        np.save(handle, np.zeros(10_000))
except DiskFullError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "v.npy: the disk is full: 80,000 bytes are needed, " in done.stdout
    assert "are free, and no file may be larger than 10,000." in done.stdout
    assert not list(tmp_path.iterdir())
