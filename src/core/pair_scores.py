"""Scores of (question, passage) pairs that a cross-encoder has given, kept so that no pair is ever scored twice.

One folder per model and per whatever else shapes its scores; in it one parquet file per saved block. The key of a pair
is a hash of both texts, so scores outlive changes of the corpus, the questions, the candidates and the blend. The name
of a file ends in the hash of its bytes, so a score that a disk has altered is never used.
"""

import hashlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from src.core.artifacts import atomic_path, file_sha256
from src.core.types import Floats

Hashes = npt.NDArray[np.uint64]

_KEY = np.dtype([("question", "<u8"), ("passage", "<u8")])
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

    Args:
        folder: where its files lie; made when something is saved.
        fresh: start with nothing, whatever lies there; what is saved then replaces it.
        read_only: change nothing in the folder, which another process may be writing to; what is saved is remembered
            by this object alone.
    """

    def __init__(self, folder: Path, fresh: bool = False, read_only: bool = False) -> None:
        self.folder = folder
        self.read_only = read_only
        # Its scores are all in memory: nobody else's files may be replaced by a merged one.
        self._files: list[Path] = []
        self._keys = np.zeros(0, dtype=_KEY)
        self._scores: Floats = np.zeros(0, dtype=np.float32)
        self._new: list[tuple[npt.NDArray[np.void], Floats]] = []
        files = sorted(folder.glob("*.parquet"))
        if fresh:
            for path in files:
                self._remove(path)
        else:
            self._load(files)

    def __len__(self) -> int:
        return len(self._keys) + sum(len(keys) for keys, _ in self._new)

    def _load(self, files: list[Path]) -> None:
        tables: list[pa.Table] = []
        for path in files:
            try:
                if file_sha256(path)[:_DIGITS] != path.stem.rpartition("-")[2]:
                    raise OSError("its bytes are not those that were written")
                tables.append(pq.read_table(path, columns=["question", "passage", "score"]))
                self._files.append(path)
            except FileNotFoundError:
                # Another process has merged it with others since the folder was listed.
                continue
            except (OSError, KeyError, pa.ArrowException) as error:
                # Scores can always be computed again, so a damaged file costs time and nothing else.
                log.warning("WARNING: %s cannot be read (%s); its pairs are scored again", path, str(error)[:120])
                self._remove(path)
        if not tables:
            return
        table = pa.concat_tables(tables)
        self._merge(
            _keys(*(table.column(name).to_numpy() for name in ("question", "passage"))),
            table.column("score").to_numpy(),
        )
        self._compact()

    def _remove(self, path: Path) -> None:
        if not self.read_only:
            path.unlink(missing_ok=True)

    def _compact(self) -> None:
        if len(self._files) > MERGE_AT_FILES and not self.read_only:
            replaced, self._files = self._files, []
            self._write(self._keys, self._scores)
            for path in replaced:
                self._remove(path)

    def _merge(self, keys: npt.NDArray[np.void], scores: Floats) -> None:
        keys, first = np.unique(np.concatenate([self._keys, keys]), return_index=True)
        self._keys, self._scores = keys, np.concatenate([self._scores, scores]).astype(np.float32)[first]

    def lookup(self, questions: Hashes, passages: Hashes) -> Floats:
        """Kept scores of P pairs, float32 [P]; NaN where there is none. Sees what was saved, not what was added."""
        wanted = _keys(questions, passages)
        found = np.full(len(wanted), np.nan, dtype=np.float32)
        if len(self._keys) and len(wanted):
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            known = self._keys[places] == wanted
            found[known] = self._scores[places[known]]
        return found

    def add(self, questions: Hashes, passages: Hashes, scores: Floats) -> None:
        """Remember scores; :meth:`save` writes them."""
        if len(scores):
            self._new.append((_keys(questions, passages), scores.astype(np.float32)))

    def save(self) -> None:
        """Write what was added since the last save, as one file, atomically; see ``read_only``."""
        if not self._new:
            return
        keys = np.concatenate([part for part, _ in self._new])
        scores = np.concatenate([part for _, part in self._new])
        self._new = []
        if not self.read_only:
            self._write(keys, scores)
        self._merge(keys, scores)
        self._compact()

    def _write(self, keys: npt.NDArray[np.void], scores: Floats) -> None:
        stems = [path.stem.partition("-")[0] for path in self.folder.glob("*.parquet")]
        number = max((int(stem) for stem in stems if stem.isdigit()), default=0) + 1
        table = pa.table({"question": keys["question"], "passage": keys["passage"], "score": scores})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        path = self.folder / f"{number:06d}-{hashlib.sha256(data).hexdigest()[:_DIGITS]}.parquet"
        with atomic_path(path, len(data)) as temporary:
            temporary.write_bytes(data)
        self._files.append(path)


def _keys(questions: Hashes, passages: Hashes) -> npt.NDArray[np.void]:
    keys = np.zeros(len(questions), dtype=_KEY)
    keys["question"], keys["passage"] = questions, passages
    return keys
