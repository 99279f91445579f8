"""Files and folders that appear whole or not at all, and what a full disk or a killed process leaves of them."""

import errno
import glob
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.core.errors import DiskFullError

_TEMPORARY, _OLD = ".tmp-", "-old"
_FULL_DISK = re.compile(r"No space left|File too large|quota exceeded|\d+ requested and \d+ written")


@contextmanager
def atomic_path(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block ends without an error.

    The file that was there before stays untouched until the rename, and for good where the block fails.

    Args:
        needed: bytes of the finished file where they are known, for the message of a full disk.

    Raises:
        DiskFullError: where the disk has no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        # mkstemp (and some writers) make the file private; a result is readable by whom the umask allows.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        _raise_if_disk_full(error, path, needed, temporary)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; swap it in for ``path`` when the block ends without an error.

    Args:
        needed: bytes of the finished files where they are known, for the message of a full disk.

    Raises:
        DiskFullError: where the disk has no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        _swap(temporary, path)
    except (OSError, RuntimeError) as error:
        _raise_if_disk_full(error, path, needed, temporary)
        raise
    finally:
        if temporary is not None:
            old = _old(temporary)
            if old.exists() and not path.exists():
                old.replace(path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f"{path.name}{_TEMPORARY}{os.getpid()}-"


def _old(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + _OLD)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _swap(temporary: Path, path: Path) -> None:
    old = _old(temporary)
    for attempt in range(10):
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.replace(old)
        try:
            temporary.replace(path)
            return
        except OSError as error:
            # Another process may have put its own there in between (models are shared by all data folders).
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or attempt == 9:
                raise


def remove_leftovers(folder: Path, shared: bool = False) -> int:
    """Remove what killed processes left half-written anywhere under ``folder``.

    Where a process was killed between the two renames of a swap, the earlier artefact takes its name again.

    Args:
        shared: others may be writing there: what belongs to a living process of this machine stays. Otherwise nobody
            else may be.

    Returns:
        How many temporary files and folders there were.
    """
    found = [path for path in folder.rglob(f"*{_TEMPORARY}*") if _TEMPORARY not in str(path.parent.relative_to(folder))]
    if shared:
        found = [path for path in found if _is_dead(path)]
    for path in found:
        target = path.with_name(path.name.split(_TEMPORARY)[0])
        if path.name.endswith(_OLD) and not target.exists():
            path.replace(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def remove_dead_temporaries(path: Path) -> None:
    """Remove temporary files of the one file ``path`` whose process, on this machine, has ended."""
    for found in path.parent.glob(f"{glob.escape(path.name)}{_TEMPORARY}*"):
        if _is_dead(found):
            found.unlink(missing_ok=True)


def _is_dead(temporary: Path) -> bool:
    number = temporary.name.split(_TEMPORARY)[1].split("-")[0]
    return number.isdigit() and not _alive(int(number))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def explain_full_disk(path: Path, needed: int) -> Iterator[None]:
    """For a file that is written in place: a full disk as one line.

    Raises:
        DiskFullError: where the disk has no room for the ``needed`` bytes.
    """
    try:
        yield
    except OSError as error:
        _raise_if_disk_full(error, path, needed, None)
        raise


def _raise_if_disk_full(error: Exception, path: Path, needed: int | None, temporary: Path | None) -> None:
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    # numpy and faiss say it in words alone.
    if not (full or _FULL_DISK.search(str(error))):
        return
    wanted = f"{needed:,} bytes are needed" if needed is not None else "more bytes are needed"
    if temporary is not None:
        if needed is None:
            wanted = f"more than {_bytes_in(temporary):,} bytes are needed"
        # Before the free bytes are counted: they are what the user will see.
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    bound = f", and no file may be larger than {limit:,}" if limit != resource.RLIM_INFINITY else ""
    raise DiskFullError(
        f"{path}: the disk is full: {wanted}, {shutil.disk_usage(path.parent).free:,} are free{bound}. Earlier results "
        "are as they were. Make room (or take another --data-dir), then give the same command again."
    ) from error


def _bytes_in(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
