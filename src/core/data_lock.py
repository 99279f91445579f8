"""One writer per data folder: a lock that says who holds it, and that dies with its holder."""

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.core.atomic import remove_leftovers
from src.core.errors import DataFolderInUseError

LOCK_NAME = ".lock"
_POLL_SECONDS = 0.5
# Folders whose half-written files this project made; a user's own files under raw/ are never touched.
_OWN = ("processed", "embeddings", "indices", "runs")

log = logging.getLogger(__name__)


@contextmanager
def data_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``folder`` for this process; what killed processes left half-written there is removed first.

    The kernel frees the lock when its holder ends, however that happens, so a dead process never blocks anyone.

    Args:
        folder: the data folder; made where it is missing, and removed again where nothing was put into it.
        wait: wait until it is free.

    Raises:
        DataFolderInUseError: where another process holds it and ``wait`` is off; names its pid, host and start.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    with path.open("a+", encoding="utf-8") as handle:
        _acquire(handle, folder, wait)
        previous = _holder(handle)
        if previous:
            log.info("The last run here (%s) ended without a word; its finished work is kept.", _describe(previous))
        left = sum(remove_leftovers(folder / name) for name in _OWN if (folder / name).is_dir())
        # Benchmarks write there too, and hold no data folder.
        left += remove_leftovers(folder / "results", shared=True)
        if left:
            log.info("Removed %d half-written file(s) of processes that are gone.", left)
        _write(handle, {
            "pid": os.getpid(), "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"), "command": Path(sys.argv[0]).name,
        })  # fmt: skip
        try:
            yield
        finally:
            _write(handle, None)
            if made:
                _remove_empty(path, made)


def holder_of(folder: Path) -> str | None:
    """Who holds a data folder at the moment; ``None`` where nobody does."""
    path = folder / LOCK_NAME
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _describe(_holder(handle) or {})
    return None


def _remove_empty(lock: Path, made: list[Path]) -> None:
    """Take back the folders that were made for the lock alone."""
    if lock.parent.exists() and [found.name for found in lock.parent.iterdir()] == [LOCK_NAME]:
        lock.unlink()
    for folder in made:
        with suppress(OSError):  # something has been put into it
            folder.rmdir()


def _acquire(handle: Any, folder: Path, wait: bool) -> None:
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _describe(_holder(handle) or {})
            if not wait:
                raise DataFolderInUseError(
                    f"{folder}: in use by {holder}. Let it end, wait for it with --wait, or take another --data-dir."
                ) from None
            if not told:
                log.info("%s: in use by %s; waiting ...", folder, holder)
                told = True
            time.sleep(_POLL_SECONDS)


def _holder(handle: Any) -> dict[str, Any] | None:
    handle.seek(0)
    try:
        found = json.loads(handle.read())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return (
        f"{holder.get('command', 'a process')}, pid {holder.get('pid')} on {holder.get('host')}, "
        f"since {holder.get('since')}"
    )


def _write(handle: Any, holder: dict[str, Any] | None) -> None:
    handle.seek(0)
    handle.truncate()
    if holder is not None:
        handle.write(json.dumps(holder))
    handle.flush()
