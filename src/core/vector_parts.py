"""Finished blocks of an embedding that is still being made, kept so that a killed run goes on where it was."""

import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    fingerprint_strings,
    require_current,
    save_manifest,
)
from src.core.atomic import atomic_path, explain_full_disk
from src.core.errors import StaleArtifactError
from src.core.types import Floats, offsets_of

_KIND = "unfinished embeddings"
_NO_TOKENS = -1

log = logging.getLogger(__name__)


def block_key(texts: Sequence[str]) -> str:
    """What names a block: a fingerprint of its texts, in their order."""
    return fingerprint_strings(texts)


class VectorParts:
    """The kept blocks of one embedding.

    A block is found by the texts in it. Every file carries checksums (that of the zip format for the vectors, one of
    its own for the token vectors), and a block that does not agree with them is made again.

    Args:
        folder: where they lie; made when something is saved.
        inputs, settings: identity of the embedding; blocks of another one are dropped.
        fresh: start with nothing, whatever lies there.
    """

    def __init__(
        self, folder: Path, inputs: Mapping[str, str], settings: Mapping[str, Any], fresh: bool = False
    ) -> None:
        self.folder = folder
        self._manifest = Manifest(_KIND, inputs, settings)
        self._kept: dict[str, tuple[Floats, int]] = {}
        self._new: dict[str, tuple[Floats, int]] = {}
        if not folder.exists():
            return
        try:
            if fresh:
                raise StaleArtifactError("not wanted")
            require_current(folder, _KIND, inputs, settings, fix="automatic")
        except StaleArtifactError:
            self.drop()
            return
        for path in sorted(folder.glob("*.npz")):
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as found:
                keys, sizes, vectors, checksums = (found[name] for name in ("keys", "sizes", "vectors", "checksums"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            log.warning("WARNING: %s cannot be read (%s); its texts are encoded again", path, str(error)[:120])
            path.unlink()
            return
        offsets = offsets_of(sizes)
        for i, key in enumerate(keys.tolist()):
            self._kept[key] = vectors[offsets[i] : offsets[i + 1]], int(checksums[i])

    def __len__(self) -> int:
        return len(self._kept) + len(self._new)

    def find(self, texts: Sequence[str], tokens: "TokenFile | None", numbers: Sequence[int]) -> Floats | None:
        """The kept vectors of a block, float32 [len(texts), D]; ``None`` where it has to be encoded.

        Args:
            tokens: where its token vectors must be too.
            numbers: of all texts with a text of this block, in ``tokens``.
        """
        found = self._kept.get(block_key(texts))
        if found is None or len(found[0]) != len(texts):
            return None
        if tokens is not None and found[1] != tokens.checksum(numbers):
            return None
        return found[0]

    def add(self, texts: Sequence[str], vectors: Floats, tokens: "TokenFile | None", numbers: Sequence[int]) -> None:
        """Remember a finished block; :meth:`save` writes it. Arguments as in :meth:`find`."""
        checksum = _NO_TOKENS if tokens is None else tokens.checksum(numbers)
        self._new[block_key(texts)] = vectors, checksum

    def save(self, tokens: "TokenFile | None") -> None:
        """Write what was added since the last save as one file, atomically, after the token vectors it vouches for."""
        if not self._new:
            return
        if tokens is not None:
            tokens.sync()
        if not (self.folder / MANIFEST_NAME).is_file():
            save_manifest(self.folder / MANIFEST_NAME, self._manifest)
        numbers = [int(path.stem) for path in self.folder.glob("*.npz") if path.stem.isdigit()]
        path = self.folder / f"{max(numbers, default=0) + 1:06d}.npz"
        vectors = np.concatenate([found for found, _ in self._new.values()])
        with atomic_path(path, vectors.nbytes) as temporary, temporary.open("wb") as handle:
            np.savez(
                handle,
                keys=np.array(list(self._new)),
                sizes=np.array([len(found) for found, _ in self._new.values()]),
                vectors=vectors,
                checksums=np.array([checksum for _, checksum in self._new.values()], dtype=np.int64),
            )
        self._kept.update(self._new)
        self._new = {}

    def drop(self) -> None:
        """Remove everything that is kept."""
        self._kept, self._new = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)


class TokenFile:
    """Token vectors on their way to an artefact: an npy file of float16 [T, D], filled text by text in any order.

    Written through a file handle, not through mapped memory: a full disk is then an error and not a killed process.

    Args:
        path: the file; gone on with where it has the right shape, else made anew.
        counts: int64 [N], tokens of each text.
        dimension: D.
    """

    def __init__(self, path: Path, counts: npt.NDArray[np.int64], dimension: int) -> None:
        self.path = path
        self.offsets = offsets_of(counts)
        self.dimension = dimension
        self.bytes = int(self.offsets[-1]) * dimension * 2
        shape = (int(self.offsets[-1]), dimension)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._fits(shape):
            with explain_full_disk(path, self.bytes), path.open("wb") as handle:
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(handle, header)
                handle.truncate(handle.tell() + self.bytes)
        self.start = path.stat().st_size - self.bytes
        self.handle = path.open("r+b", buffering=0)

    def _fits(self, shape: tuple[int, int]) -> bool:
        try:
            with self.path.open("rb") as handle:
                np.lib.format.read_magic(handle)
                found = np.lib.format.read_array_header_1_0(handle)
                whole = handle.tell() + self.bytes == self.path.stat().st_size
        except (OSError, ValueError):
            return False
        return bool(found[0] == shape and not found[1] and found[2] == np.float16 and whole)

    def write(self, number: int, vectors: Floats) -> None:
        """Put the vectors of one text, float32 [counts, D], in their place.

        Raises:
            DiskFullError: where the disk has no room for them.
            ValueError: where they are of another shape, and would lie over those of other texts.
        """
        shape = (int(self.offsets[number + 1] - self.offsets[number]), self.dimension)
        if vectors.shape != shape:
            raise ValueError(f"token vectors of text {number} are of shape {vectors.shape}, not {shape}")
        data = np.ascontiguousarray(vectors, dtype=np.float16).tobytes()
        with explain_full_disk(self.path, self.bytes):
            self._seek(number)
            view = memoryview(data)
            while view:
                view = view[self.handle.write(view) :]

    def checksum(self, numbers: Sequence[int]) -> int:
        """CRC-32 of the vectors of some texts, as they lie in the file."""
        value = 0
        for number in numbers:
            self._seek(number)
            value = zlib.crc32(self.handle.read(self._bytes_of(number)), value)
        return value

    def _bytes_of(self, number: int) -> int:
        return int(self.offsets[number + 1] - self.offsets[number]) * self.dimension * 2

    def _seek(self, number: int) -> None:
        self.handle.seek(self.start + int(self.offsets[number]) * self.dimension * 2)

    def sync(self) -> None:
        """See to it that everything written is on the disk."""
        with explain_full_disk(self.path, self.bytes):
            os.fsync(self.handle.fileno())

    def close(self) -> None:
        """Close the file."""
        self.handle.close()
