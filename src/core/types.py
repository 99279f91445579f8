"""What flows between the stages: frozen, checked when made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from src.core.artifacts import fingerprint_strings
from src.core.errors import UserError
from src.core.spool import Spool, blocks

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]
Progress = Callable[[int], None]

PAD = -1


def _require_distinct(ids: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen:
            raise UserError(f"{what} {value!r} occurs more than once; ids must be distinct.")
        seen.add(value)


@dataclass(frozen=True)
class Corpus:
    """The documents, sorted by id.

    Rows are in string order of the ids, whatever the order of the input file: a tie between two rows is broken by
    their row numbers, so no result depends on the order of the input.

    Attributes:
        doc_ids: N distinct ids, sorted as strings.
        titles: N titles, ``""`` where there is none.
        texts: N texts, ``""`` where there is none.
    """

    doc_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.doc_ids) == len(self.titles) == len(self.texts):
            raise ValueError("doc_ids, titles and texts differ in length")
        _require_distinct(self.doc_ids, "document id")
        if list(self.doc_ids) != sorted(self.doc_ids):
            raise ValueError("doc_ids are not sorted")

    def __len__(self) -> int:
        return len(self.doc_ids)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of ids, titles and texts."""
        return fingerprint_strings(self.doc_ids, self.titles, self.texts)

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Row of each id."""
        return {doc_id: row for row, doc_id in enumerate(self.doc_ids)}


@dataclass(frozen=True)
class Chunks:
    """Passages of the documents: spans of their texts.

    Attributes:
        doc_rows: int32 [C], row of the document of each chunk, ascending.
        starts, ends: int32 [C], span of the chunk in ``Corpus.texts[doc_row]``, in characters.
    """

    doc_rows: Rows
    starts: Rows
    ends: Rows

    def __post_init__(self) -> None:
        if not len(self.doc_rows) == len(self.starts) == len(self.ends):
            raise ValueError("doc_rows, starts and ends differ in length")
        if len(self.doc_rows) and (np.diff(self.doc_rows) < 0).any():
            raise ValueError("doc_rows are not ascending")

    def __len__(self) -> int:
        return len(self.doc_rows)

    def text(self, corpus: Corpus, chunk: int) -> str:
        """Text of one chunk, without the title."""
        return corpus.texts[int(self.doc_rows[chunk])][int(self.starts[chunk]) : int(self.ends[chunk])]

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the spans (not of the texts: pair it with that of the corpus)."""
        return fingerprint_strings(*(map(str, column.tolist()) for column in (self.doc_rows, self.starts, self.ends)))


def passage_text(title: str, text: str) -> str:
    """A passage as every model reads it: the title on a line of its own, then the text."""
    return f"{title}\n{text}" if title and text else title or text


@dataclass(frozen=True)
class Queries:
    """The questions, in the order of the input.

    Attributes:
        query_ids: Q distinct ids.
        texts: Q texts, none empty.
    """

    query_ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.query_ids) != len(self.texts):
            raise ValueError("query_ids and texts differ in length")
        _require_distinct(self.query_ids, "question id")

    def __len__(self) -> int:
        return len(self.query_ids)

    def head(self, limit: int | None) -> "Queries":
        """The first ``limit`` questions; all of them where it is ``None``."""
        return self if limit is None else self.part(slice(limit))

    def part(self, rows: slice) -> "Queries":
        """Those of some rows."""
        return Queries(self.query_ids[rows], self.texts[rows])

    def picked(self, rows: Sequence[int]) -> "Queries":
        """Those of some rows, in the given order."""
        return Queries(tuple(self.query_ids[row] for row in rows), tuple(self.texts[row] for row in rows))

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of ids and texts."""
        return fingerprint_strings(self.query_ids, self.texts)


def offsets_of(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Where N texts of these lengths begin when they lie one after another, and the end of the last: int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@dataclass(frozen=True)
class TokenVectors:
    """Vectors of the tokens of N texts, one text after another.

    Attributes:
        values: float16 [T, D], rows of unit length; may be mapped from disk.
        offsets: int64 [N + 1]; text i has the rows ``offsets[i]`` to ``offsets[i + 1]`` of ``values``.
    """

    values: npt.NDArray[np.float16]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, rows: slice) -> "TokenVectors":
        """Those of neighbouring texts, without a copy."""
        return TokenVectors(self.values, self.offsets[rows.start : rows.stop + 1])

    def __getitem__(self, row: int) -> npt.NDArray[np.float16]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True)
class Qrels:
    """Relevance labels: question id -> ids of its relevant documents (at least one)."""

    relevant: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        for query_id, docs in self.relevant.items():
            if not docs:
                raise ValueError(f"question {query_id!r} has an empty set of labels")

    def __len__(self) -> int:
        return len(self.relevant)


@dataclass(frozen=True)
class Run:
    """A ranked list per question: what every stage hands to the next.

    Attributes:
        name: what made it, such as ``fused`` or ``reranked``.
        query_ids: Q question ids.
        doc_rows: int32 [Q, K], rows of ``Corpus.doc_ids``; -1 pads a short list on the right.
        scores: float32 [Q, K], descending in each row; 0 where ``doc_rows`` is -1. Equal scores stand in ascending
            order of row, which is the order of the ids.
        corpus_fingerprint: of the corpus that the rows index.
    """

    name: str
    query_ids: tuple[str, ...]
    doc_rows: Rows
    scores: Floats
    corpus_fingerprint: str

    def __post_init__(self) -> None:
        shape = (len(self.query_ids), self.doc_rows.shape[1] if self.doc_rows.ndim == 2 else -1)
        if self.doc_rows.shape != shape or self.scores.shape != shape:
            raise ValueError(f"run {self.name}: {len(shape)}-d shapes {self.doc_rows.shape}, {self.scores.shape}")
        if self.doc_rows.dtype != np.int32 or self.scores.dtype != np.float32:
            raise ValueError(f"run {self.name}: dtypes {self.doc_rows.dtype}, {self.scores.dtype}")
        for part in blocks(shape[0]):
            self._check_rows(self.doc_rows[part], self.scores[part])

    def _check_rows(self, doc_rows: Rows, scores: Floats) -> None:
        if not np.isfinite(scores).all():
            raise ValueError(f"run {self.name}: a score is not finite")
        left, right = doc_rows[:, :-1], doc_rows[:, 1:]
        filled = right != PAD
        if (filled & (left == PAD)).any():
            raise ValueError(f"run {self.name}: a gap inside a ranked list")
        drop = scores[:, :-1] - scores[:, 1:]
        if (filled & ((drop < 0) | ((drop == 0) & (left > right)))).any():
            raise ValueError(f"run {self.name}: a list is not in order of (-score, id)")
        ordered = np.sort(doc_rows, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD)).any():
            raise ValueError(f"run {self.name}: a document stands twice in a list")

    @classmethod
    def in_blocks(
        cls,
        name: str,
        query_ids: tuple[str, ...],
        depth: int,
        corpus_fingerprint: str,
        spool: Spool,
        made: Callable[[slice], "Run"],
    ) -> "Run":
        """A run whose lists are made block by block and lie in a spool.

        Args:
            depth: longest list.
            made: rows of the questions -> the run of these alone, with lists of ``depth``.
        """
        doc_rows = spool.array((len(query_ids), depth), np.int32)
        scores = spool.array((len(query_ids), depth), np.float32)
        for rows in blocks(len(query_ids)):
            found = made(rows)
            doc_rows[rows], scores[rows] = found.doc_rows, found.scores
        return cls(name, query_ids, doc_rows, scores, corpus_fingerprint)

    @property
    def depth(self) -> int:
        """K, the longest possible list."""
        return int(self.doc_rows.shape[1])

    def cut(self, depth: int) -> "Run":
        """The same run with lists of at most ``depth`` documents."""
        if depth >= self.depth:
            return self
        return Run(
            self.name,
            self.query_ids,
            np.ascontiguousarray(self.doc_rows[:, :depth]),
            np.ascontiguousarray(self.scores[:, :depth]),
            self.corpus_fingerprint,
        )

    def part(self, rows: slice) -> "Run":
        """The lists of neighbouring rows, without a copy."""
        return Run(self.name, self.query_ids[rows], self.doc_rows[rows], self.scores[rows], self.corpus_fingerprint)

    def picked(self, rows: Sequence[int]) -> "Run":
        """A copy of the lists of some rows, in the given order."""
        ids, at = tuple(self.query_ids[row] for row in rows), list(rows)
        return Run(self.name, ids, self.doc_rows[at], self.scores[at], self.corpus_fingerprint)


def ranked(candidates: Rows, scores: Floats, depth: int) -> tuple[Rows, Floats]:
    """The ``depth`` best of one list, in order of (-score, row).

    Args:
        candidates: int32 [n], distinct rows.
        scores: float32 [n].

    Returns:
        int32 [depth] padded with -1, float32 [depth] padded with 0.
    """
    if len(candidates) > depth:
        kth = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        keep = scores >= kth
        candidates, scores = candidates[keep], scores[keep]
    order = np.lexsort((candidates, -scores))[:depth]
    rows = np.full(depth, PAD, dtype=np.int32)
    values = np.zeros(depth, dtype=np.float32)
    rows[: len(order)] = candidates[order]
    values[: len(order)] = scores[order]
    return rows, values


class DenseIndex(Protocol):
    """Vectors that can be searched."""

    def search(self, vectors: Floats, depth: int) -> tuple[Rows, Floats]:
        """Unit vectors float32 [Q, D] -> (int32 [Q, depth] units padded with -1, float32 [Q, depth] cosines)."""
        ...


class LexicalIndex(Protocol):
    """Term lists that can be searched."""

    def search(self, queries: Sequence[Sequence[str]], depth: int) -> tuple[Rows, Floats]:
        """Q term lists -> (int32 [Q, depth] units padded with -1, float32 [Q, depth]); only scores above zero."""
        ...
