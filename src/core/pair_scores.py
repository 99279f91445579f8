"""Scores of (question, passage) pairs that a cross-encoder has given, kept so that no pair is ever scored twice.

One folder per model and per whatever else shapes its scores; in it one parquet file per saved block. The key of a pair
is a hash of both texts, so scores outlive changes of the corpus, the questions, the candidates and the blend. The name
of a file ends in the hash of its bytes, so a score that a disk has altered is never used.
"""

import hashlib
import io
import logging
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
MERGE_AT_FILES = 64
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
        # Those that were read or written here: nobody else's files may be replaced by a merged one.
        self._files: list[Path] = []
        self._new: list[tuple[Hashes, Hashes, Floats]] = []
        # The pairs of question i are those from _starts[i] to _ends[i].
        self._questions: Hashes = np.zeros(0, dtype=np.uint64)
        self._starts = self._ends = np.zeros(0, dtype=np.int64)
        self._passages: Hashes = np.zeros(0, dtype=np.uint64)
        self._scores: Floats = np.zeros(0, dtype=np.float32)
        files = sorted(folder.glob("*.parquet"))
        if fresh:
            for path in files:
                self._remove(path)
        else:
            self._load(files)
            self._compact()

    def __len__(self) -> int:
        return int((self._ends - self._starts).sum())

    def _load(self, files: list[Path]) -> None:
        questions, counts = self._questions, np.zeros(0, dtype=np.int64)
        for path in files:
            try:
                if file_sha256(path)[:_DIGITS] != path.stem.rpartition("-")[2]:
                    raise OSError("its bytes are not those that were written")
                for batch in _batches(path):
                    every = np.concatenate([questions, batch[0]])
                    weights = np.concatenate([counts, np.ones(len(batch[0]), dtype=np.int64)])
                    questions, places = np.unique(every, return_inverse=True)
                    counts = np.zeros(len(questions), dtype=np.int64)
                    np.add.at(counts, places, weights)
                self._files.append(path)
            except FileNotFoundError:
                # Another process has merged it with others since the folder was listed.
                continue
            except (OSError, KeyError, pa.ArrowException) as error:
                # Scores can always be computed again, so a damaged file costs time and nothing else.
                log.warning("WARNING: %s cannot be read (%s); its pairs are scored again", path, str(error)[:120])
                self._remove(path)
        offsets = offsets_of(counts)
        self._questions, self._starts, self._ends = questions, offsets[:-1], offsets[:-1].copy()
        spool = Spool(None if self.read_only else self.folder)
        self._passages = spool.array((int(offsets[-1]),), np.uint64)
        self._scores = spool.array((int(offsets[-1]),), np.float32)
        for path in list(self._files):
            try:
                for batch in _batches(path):
                    self._place(*batch)
                    release()
            except FileNotFoundError:
                self._files.remove(path)

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

    def _compact(self) -> None:
        if len(self._files) <= MERGE_AT_FILES or self.read_only:
            return
        replaced, self._files = self._files, []
        merged = self.folder / "merged"
        with atomic_path(merged) as temporary, pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
            for path in replaced:
                # One that is gone has been merged by another process.
                for batch in _batches(path) if path.is_file() else ():
                    writer.write_table(pa.table(list(batch), schema=_SCHEMA))
        path = self._next_path(file_sha256(merged))
        merged.replace(path)
        self._files.append(path)
        for path in replaced:
            self._remove(path)

    def lookup(self, questions: Hashes, passages: Hashes) -> Floats:
        """Scores of P pairs, float32 [P], that were kept when this object was made; NaN where there is none."""
        found = np.full(len(questions), np.nan, dtype=np.float32)
        if not len(self._questions) or not len(questions):
            return found
        unique, owners = np.unique(questions, return_inverse=True)
        rows = np.minimum(np.searchsorted(self._questions, unique), len(self._questions) - 1)
        for number in np.flatnonzero(self._questions[rows] == unique).tolist():
            kept = slice(self._starts[rows[number]], self._ends[rows[number]])
            known, scores = self._passages[kept], self._scores[kept]
            order = np.argsort(known, kind="stable")
            asked = np.flatnonzero(owners == number)
            places = np.minimum(np.searchsorted(known, passages[asked], sorter=order), len(known) - 1)
            same = known[order[places]] == passages[asked]
            found[asked[same]] = scores[order[places[same]]]
        return found

    def add(self, questions: Hashes, passages: Hashes, scores: Floats) -> None:
        """Take scores; :meth:`save` writes them."""
        if len(scores):
            self._new.append((questions, passages, scores.astype(np.float32)))

    def save(self) -> None:
        """Write what was added since the last save, as one file, atomically; see ``read_only``."""
        if not self._new:
            return
        table = pa.table([np.concatenate(column) for column in zip(*self._new, strict=True)], schema=_SCHEMA)
        self._new = []
        if self.read_only:
            return
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        path = self._next_path(hashlib.sha256(data).hexdigest())
        with atomic_path(path, len(data)) as temporary:
            temporary.write_bytes(data)
        self._files.append(path)
        self._compact()

    def _next_path(self, sha256: str) -> Path:
        stems = [path.stem.partition("-")[0] for path in self.folder.glob("*.parquet")]
        number = max((int(stem) for stem in stems if stem.isdigit()), default=0) + 1
        return self.folder / f"{number:06d}-{sha256[:_DIGITS]}.parquet"


def _batches(path: Path) -> Iterator[tuple[Hashes, Hashes, Floats]]:
    """Questions, passages and scores of a file, some at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1 << 16, columns=_SCHEMA.names):
            questions, passages, scores = (batch.column(name).to_numpy(zero_copy_only=False) for name in _SCHEMA.names)
            yield questions, passages, scores
