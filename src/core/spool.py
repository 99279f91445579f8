"""Arrays with a row per question that lie in files: memory does not grow with the number of questions."""

import errno
import logging
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src.core.atomic import explain_full_disk

BLOCK = 2048
_mapped: list[weakref.ref[mmap.mmap]] = []

log = logging.getLogger(__name__)


def blocks(count: int, size: int | None = None) -> Iterator[slice]:
    """Slices of at most ``size`` rows (:data:`BLOCK` where it is not given) that cover ``count`` rows, in order.

    After each, the resident pages of all spooled arrays are let go; what the arrays hold stays, in their files.
    """
    size = size or BLOCK
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
        release()


class Spool:
    """Makes arrays; large ones are mapped from files without a name, which vanish with the array or the process.

    Args:
        folder: where the files lie; ``None`` keeps everything in memory.

    Attributes:
        smallest_file: arrays of fewer bytes stay in memory.
    """

    smallest_file = 1 << 20

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of zeros.

        Raises:
            DiskFullError: where the disk has no room for it.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.folder is None or size < self.smallest_file:
            return np.zeros(shape, dtype)
        mapped = self._map(self.folder, size)
        if mapped is None:
            return np.zeros(shape, dtype)
        _mapped.append(weakref.ref(mapped))
        return np.frombuffer(mapped, dtype).reshape(shape)

    def _map(self, folder: Path, size: int) -> mmap.mmap | None:
        folder.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(folder / "spool", size), tempfile.TemporaryFile(dir=folder) as handle:
            _reserve(handle.fileno(), size)
            try:
                return mmap.mmap(handle.fileno(), size)
            except OSError as error:
                log.warning(
                    "WARNING: %s: files there cannot be mapped (%s): memory grows by %d bytes", folder, error, size
                )
                return None

    def filled(
        self, count: int, row: Sequence[int], dtype: npt.DTypeLike, made: Callable[[slice], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """An array [count, *row] whose rows are made block by block."""
        values = self.array((count, *row), dtype)
        for part in blocks(count):
            values[part] = made(part)
        return values


def release() -> None:
    """Let go of the resident pages of all spooled arrays: reading them again costs a copy at most."""
    living = [(reference, mapped) for reference in _mapped if (mapped := reference()) is not None]
    _mapped[:] = [reference for reference, _ in living]
    if hasattr(mmap, "MADV_DONTNEED"):
        for _, mapped in living:
            mapped.madvise(mmap.MADV_DONTNEED)


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: a full disk would else end the process in the middle of a write, with a signal."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            os.pwrite(descriptor, zeros[: size - start], start)
