"""Indices: FAISS over unit vectors, BM25 over stemmed terms; built, saved and loaded."""

import json
import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch  # noqa: F401  (before faiss: importing faiss first is a known segfault)

import bm25s  # isort: skip
import faiss  # isort: skip
from rank_bm25 import BM25Okapi  # isort: skip

from src.core.memory import first_line
from src.core.types import PAD, Floats, Rows, ranked

# A faiss index on a GPU returns no more neighbours than this.
MOST_FROM_A_GPU = 2048
_GPU_SCRATCH_BYTES = 256 << 20

Bm25Backend = Literal["bm25s", "rank_bm25"]

log = logging.getLogger(__name__)


class FaissIndex:
    """Exact inner-product search over unit vectors (``IndexFlatIP``).

    Args:
        index: of faiss, on the CPU.
        on_gpu: a copy of it on a GPU, which is searched as long as it can answer.
    """

    def __init__(self, index: Any, on_gpu: Any = None) -> None:
        self.index = index
        self.on_gpu = on_gpu

    @classmethod
    def build(cls, vectors: Floats) -> "FaissIndex":
        """Index float32 [N, D] unit vectors.

        Raises:
            ValueError: where a vector is not of unit length (to 1e-3).
        """
        norms = np.linalg.norm(vectors, axis=1)
        if len(vectors) and not np.allclose(norms, 1.0, atol=1e-3):
            raise ValueError(f"vectors are not of unit length: norms {norms.min():.4f} to {norms.max():.4f}")
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index)

    @classmethod
    def load(cls, path: Path, device: str) -> "FaissIndex":
        """Read an index.

        Args:
            device: a copy goes onto this card (``cuda``: the first), where this faiss has GPU support and the card has
                room; a warning says where it has none.

        Raises:
            RuntimeError: where the file cannot be read.
        """
        index = faiss.read_index(str(path))
        return cls(index, _copy_on(index, device))

    def save(self, path: Path) -> None:
        """Write the index file."""
        faiss.write_index(self.index, str(path))

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, vectors: Floats, depth: int) -> tuple[Rows, Floats]:
        """Nearest units; see :class:`src.core.types.DenseIndex`."""
        k = min(depth, len(self))
        rows = np.full((len(vectors), depth), PAD, dtype=np.int32)
        scores = np.zeros((len(vectors), depth), dtype=np.float32)
        if k and len(vectors):
            found, near = self._search_units(vectors, k)
            rows[:, :k], scores[:, :k] = near, found
        return rows, scores

    def _search_units(self, vectors: Floats, k: int) -> tuple[Floats, Rows]:
        scores, units = self._nearest(np.ascontiguousarray(vectors, dtype=np.float32), k)
        units = units.astype(np.int32)
        order = np.lexsort((units, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(units, order, axis=1)

    def _nearest(self, vectors: Floats, k: int) -> Any:
        if self.on_gpu is not None and k <= MOST_FROM_A_GPU:
            try:
                return self.on_gpu.search(vectors, k)
            except RuntimeError as error:
                _warn_of_gpu(error)
                self.on_gpu = None
        return self.index.search(vectors, k)


def _copy_on(index: Any, device: str) -> Any:
    """A copy of an index on a card; ``None`` where there cannot be one."""
    kind, _, name = device.partition(":")
    if kind != "cuda" or not hasattr(faiss, "StandardGpuResources"):
        return None
    number, seen = int(name or 0), faiss.get_num_gpus()
    try:
        if number >= seen:  # some builds of faiss abort the process there
            raise RuntimeError(f"it sees {seen} of them, not {device}")
        return faiss.index_cpu_to_gpu(_gpu_memory(number), number, index)
    except RuntimeError as error:
        _warn_of_gpu(error)
        return None


@cache
def _gpu_memory(number: int) -> Any:  # noqa: ARG001  (the cache goes by it)
    """Scratch memory of a card, one for all indices: each of its own would hold back up to 1.5 GB."""
    memory = faiss.StandardGpuResources()
    memory.setTempMemory(_GPU_SCRATCH_BYTES)
    return memory


def _warn_of_gpu(error: RuntimeError) -> None:
    log.warning("WARNING: faiss cannot search on the GPU (%s): the CPU index is used.", first_line(error)[:200])


class _LuceneOkapi(BM25Okapi):  # type: ignore[misc]
    """rank_bm25's Okapi with Lucene's idf, log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative."""

    def _calc_idf(self, nd: dict[str, int]) -> None:
        for word, count in nd.items():
            self.idf[word] = math.log(1 + (self.corpus_size - count + 0.5) / (count + 0.5))


class Bm25Index:
    """BM25 as Lucene computes it (Kamphuis et al. 2020, "Which BM25 Do You Mean?"), by one of two libraries.

    Both backends give the same scores (a test holds them together): ``bm25s`` keeps the scores of every term and unit
    ready and is fast; ``rank_bm25`` computes them anew per query.
    """

    def __init__(self, backend: Bm25Backend, size: int, model: Any) -> None:
        self.backend = backend
        self.size = size
        self.model = model

    @classmethod
    def build(cls, term_lists: Sequence[Sequence[str]], k1: float, b: float, backend: Bm25Backend) -> "Bm25Index":
        """Index N term lists (some may be empty, not all)."""
        if backend == "rank_bm25":
            return cls(backend, len(term_lists), _LuceneOkapi([list(t) for t in term_lists], k1=k1, b=b))
        model = bm25s.BM25(method="lucene", k1=k1, b=b, dtype="float32")
        model.index([list(t) for t in term_lists], show_progress=False)
        return cls(backend, len(term_lists), model)

    def save(self, folder: Path, term_lists: Sequence[Sequence[str]]) -> None:
        """Write the index as data only: npy and JSON for bm25s, the term lists as parquet for rank_bm25."""
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"backend": self.backend, "units": self.size}
        if self.backend == "bm25s":
            self.model.save(str(folder), show_progress=False)
        else:
            meta.update(k1=self.model.k1, b=self.model.b)
            pq.write_table(pa.table({"terms": [list(t) for t in term_lists]}), folder / "terms.parquet")
        (folder / "bm25.json").write_text(json.dumps(meta), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Bm25Index":
        """Read what :meth:`save` wrote; nothing in it is executed."""
        meta = json.loads((folder / "bm25.json").read_text(encoding="utf-8"))
        if meta["backend"] == "rank_bm25":
            lists = pq.read_table(folder / "terms.parquet").column("terms").to_pylist()
            return cls.build(lists, meta["k1"], meta["b"], "rank_bm25")
        return cls("bm25s", meta["units"], bm25s.BM25.load(str(folder), load_corpus=False, allow_pickle=False))

    def scores(self, terms: Sequence[str]) -> Floats:
        """Scores of all units for one term list: float32 [N]."""
        if self.backend == "rank_bm25":
            with np.errstate(invalid="ignore"):  # an empty unit with b = 1 divides zero by zero
                values = self.model.get_scores(list(terms)) / (self.model.k1 + 1)
            return np.nan_to_num(np.asarray(values, dtype=np.float32))
        known = [term for term in terms if term in self.model.vocab_dict]
        if not known:
            return np.zeros(self.size, dtype=np.float32)
        return np.asarray(self.model.get_scores(known), dtype=np.float32)

    def search(self, queries: Sequence[Sequence[str]], depth: int) -> tuple[Rows, Floats]:
        """Best units; see :class:`src.core.types.LexicalIndex`."""
        rows = np.full((len(queries), depth), PAD, dtype=np.int32)
        scores = np.zeros((len(queries), depth), dtype=np.float32)
        for i, terms in enumerate(queries):
            values = self.scores(terms)
            matching = np.flatnonzero(values > 0).astype(np.int32)
            rows[i], scores[i] = ranked(matching, values[matching], depth)
        return rows, scores
