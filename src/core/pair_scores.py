"""Scores of (question, passage) pairs that a cross-encoder has given, kept for later runs.

One folder per model and per whatever else shapes its scores; in it parquet files. The key of a pair is a hash of both
texts, so scores outlive changes of the corpus, the questions, the candidates and the blend. The name of a file ends in
the hash of its bytes, so a score that a disk has altered is never used.

A run writes segments. The last one is written anew with all that it holds, under the next version, each time something
is saved, until it is full; then a new one begins. No run touches the segments of another.
"""

import hashlib
import io
import logging
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from src.core.artifacts import atomic_path, file_sha256
from src.core.spool import Spool, release
from src.core.types import Floats, offsets_of

Hashes = npt.NDArray[np.uint64]

_SCHEMA = pa.schema([("question", pa.uint64()), ("passage", pa.uint64()), ("score", pa.float32())])
SEGMENT_PAIRS = 1 << 17
_TRIES = 5
_DIGITS = 16

log = logging.getLogger(__name__)


def hash_texts(texts: Iterable[str]) -> Hashes:
    """64-bit BLAKE2b hash of each text, uint64 [N]."""
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
            for text in texts
        ],
        dtype=np.uint64,
    )


class PairScores:
    """The kept scores of one model.

    They lie in arrays of a spool, those of one question side by side, so memory does not grow with their number.

    Args:
        folder: where its files lie; made when something is saved.
        fresh: start with nothing, whatever lies there; what is saved then replaces it.
        read_only: change nothing in the folder, which another process may be writing to.
    """

    def __init__(self, folder: Path, fresh: bool = False, read_only: bool = False) -> None:
        self.folder = folder
        self.read_only = read_only
        self._new: list[tuple[Hashes, Hashes, Floats]] = []
        self._run = secrets.token_hex(4)
        self._segment, self._version = 1, 0
        self._segment_file: Path | None = None
        self._segment_tables: list[pa.Table] = []
        # The pairs of question i are those from _starts[i] to _ends[i].
        self._questions: Hashes = np.zeros(0, dtype=np.uint64)
        self._starts = self._ends = np.zeros(0, dtype=np.int64)
        self._passages: Hashes = np.zeros(0, dtype=np.uint64)
        self._scores: Floats = np.zeros(0, dtype=np.float32)
        if fresh:
            for path in folder.glob("*.parquet"):
                self._remove(path)
            return
        # Another process may replace its last segment by the next version while this one reads.
        for _ in range(_TRIES):
            if self._load(list(folder.glob("*.parquet"))):
                break

    def __len__(self) -> int:
        return int((self._ends - self._starts).sum())

    def _load(self, files: list[Path]) -> bool:
        """Read files; false where one of them was there no longer, whose scores are missing then."""
        whole, kept, counted = True, list[Path](), list[tuple[Hashes, npt.NDArray[np.int64]]]()
        for *older, path in _versions(files):
            found = []
            try:
                if file_sha256(path)[:_DIGITS] != path.stem.rpartition("-")[2]:
                    raise OSError("its bytes are not those that were written")
                for questions, _, _ in _batches(path):
                    found.append(np.unique(questions, return_counts=True))
            except FileNotFoundError:
                whole = False
            except (OSError, KeyError, pa.ArrowException) as error:
                # Scores can always be computed again, so a damaged file costs time and nothing else.
                log.warning("WARNING: %s cannot be read (%s); its pairs are scored again", path, str(error)[:120])
                self._remove(path)
            else:
                kept.append(path)
                counted += found
                # Left by a run that was killed between writing a version and removing the last one.
                for superseded in older:
                    self._remove(superseded)
        if not counted:
            return whole
        self._questions, places = np.unique(np.concatenate([keys for keys, _ in counted]), return_inverse=True)
        counts = np.zeros(len(self._questions), dtype=np.int64)
        np.add.at(counts, places, np.concatenate([number for _, number in counted]))
        offsets = offsets_of(counts)
        self._starts, self._ends = offsets[:-1], offsets[:-1].copy()
        spool = Spool(None if self.read_only else self.folder)
        self._passages = spool.array((int(offsets[-1]),), np.uint64)
        self._scores = spool.array((int(offsets[-1]),), np.float32)
        for path in kept:
            try:
                for batch in _batches(path):
                    self._place(*batch)
                    release()
            except FileNotFoundError:
                whole = False
        return whole

    def _place(self, questions: Hashes, passages: Hashes, scores: Floats) -> None:
        rows = np.searchsorted(self._questions, questions)
        order = np.argsort(rows, kind="stable")
        unique, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
        places = np.repeat(self._ends[unique] - first, counts) + np.arange(len(rows))
        self._passages[places], self._scores[places] = passages[order], scores[order]
        self._ends[unique] += counts

    def _remove(self, path: Path) -> None:
        if not self.read_only:
            path.unlink(missing_ok=True)

    def lookup(self, questions: Hashes, passages: Hashes) -> Floats:
        """Scores of P pairs, float32 [P], that were kept when this object was made; NaN where there is none."""
        found = np.full(len(questions), np.nan, dtype=np.float32)
        if not len(self._questions) or not len(questions):
            return found
        unique, owners = np.unique(questions, return_inverse=True)
        rows = np.minimum(np.searchsorted(self._questions, unique), len(self._questions) - 1)
        there = (self._questions[rows] == unique) & (self._ends[rows] > self._starts[rows])
        for number in np.flatnonzero(there).tolist():
            kept = slice(self._starts[rows[number]], self._ends[rows[number]])
            known, scores = self._passages[kept], self._scores[kept]
            order = np.argsort(known, kind="stable")
            asked = np.flatnonzero(owners == number)
            places = np.minimum(np.searchsorted(known, passages[asked], sorter=order), len(known) - 1)
            same = known[order[places]] == passages[asked]
            found[asked[same]] = scores[order[places[same]]]
        return found

    def count(self, questions: Hashes, passages: Hashes) -> int:
        """How many scores are kept of these questions with these passages."""
        known = np.isin(self._passages, passages)
        sums = np.concatenate([[0], np.cumsum(known)])
        asked = np.isin(self._questions, questions)
        return int((sums[self._ends[asked]] - sums[self._starts[asked]]).sum())

    def add(self, questions: Hashes, passages: Hashes, scores: Floats) -> None:
        """Take scores; :meth:`save` writes them."""
        if len(scores):
            self._new.append((questions, passages, scores.astype(np.float32)))

    def save(self) -> None:
        """Write what was added since the last save, atomically; see ``read_only``."""
        added, self._new = self._new, []
        if not added or self.read_only:
            return
        table = pa.table([np.concatenate(column) for column in zip(*added, strict=True)], schema=_SCHEMA)
        self._segment_tables.append(table)
        whole = pa.concat_tables(self._segment_tables)
        buffer = io.BytesIO()
        pq.write_table(whole, buffer, compression="zstd")
        data = buffer.getvalue()
        self._version += 1
        name = f"{self._segment:06d}-{self._run}-{self._version:06d}-{hashlib.sha256(data).hexdigest()[:_DIGITS]}"
        path = self.folder / f"{name}.parquet"
        with atomic_path(path, len(data)) as temporary:
            temporary.write_bytes(data)
        if self._segment_file is not None:
            self._remove(self._segment_file)
        self._segment_file = path
        if len(whole) >= SEGMENT_PAIRS:
            self._segment, self._version = self._segment + 1, 0
            self._segment_file, self._segment_tables = None, []


def _versions(files: Iterable[Path]) -> list[list[Path]]:
    """The files of each segment, the newest version last."""
    segments: dict[str, list[Path]] = {}
    for path in sorted(files):
        name, _, digest = path.stem.rpartition("-")
        # Files of earlier releases have no versions.
        segment = name.rpartition("-")[0] if name.count("-") == 2 else f"{name}-{digest}"
        segments.setdefault(segment, []).append(path)
    return list(segments.values())


def _batches(path: Path) -> Iterator[tuple[Hashes, Hashes, Floats]]:
    """Questions, passages and scores of a file, some at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1 << 16, columns=_SCHEMA.names):
            questions, passages, scores = (batch.column(name).to_numpy(zero_copy_only=False) for name in _SCHEMA.names)
            yield questions, passages, scores
