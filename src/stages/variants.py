"""Query variants: other wordings of the questions, read from a file and checked against the questions."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.core.artifacts import atomic_path, fingerprint_strings
from src.core.errors import UserError
from src.core.text import normalize, words
from src.core.types import Floats, Queries, Rows, Run

RerankerQuery = Literal["original", "max", "mean"]

ID_COLUMN, ORIGINAL_COLUMN = "q_id", "original_query"
MAKE_COMMAND = "python scripts/07_make_variants.py"
# A file that pandas or a spreadsheet has written again lacks it, and may hold a person's work.
_MARK = {b"made_by": b"07_make_variants.py"}
_VARIANT_COLUMN = re.compile(r"variant_(\d+)")
_NOT_A_TEXT = frozenset({"", "nan", "NaN", "None"})
# More differing questions than this share of the shared ones: the file was made for other questions.
_MOST_DIFFERING = 0.5


def _no_rows() -> Rows:
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class QueryVariants:
    """Other wordings of Q questions; empty where there are none.

    Attributes:
        texts: R texts, none empty, none that reads as its question or another variant of it does.
        owners: int32 [R], row of the question of each, ascending.
        names: R names, ``<question id>#<number from 1>``.
        left_out: what of the file is not used, name -> count: ``unknown`` (rows of questions that are not there),
            ``differing`` (rows whose question reads otherwise there), ``empty`` and ``repeated`` (cells).
        source: name of the file; empty where there is none.
        file_sha256: of its bytes.
    """

    texts: tuple[str, ...] = ()
    owners: Rows = field(default_factory=_no_rows)
    names: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    file_sha256: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def questions(self) -> int:
        """How many questions have a variant."""
        return len(np.unique(self.owners))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the variants that are used and of the questions that they belong to."""
        return fingerprint_strings(self.names, self.texts)

    def head(self, count: int) -> "QueryVariants":
        """Those of the first ``count`` questions."""
        used = int(np.searchsorted(self.owners, count))
        return replace(self, texts=self.texts[:used], owners=self.owners[:used], names=self.names[:used])

    def of(self, question: int) -> "QueryVariants":
        """Those of one question, which is then the only one."""
        return self.picked([question])

    def picked(self, questions: Sequence[int]) -> "QueryVariants":
        """Those of some questions, in ascending order, which are then the only ones."""
        kept = np.flatnonzero(np.isin(self.owners, questions))
        return replace(
            self,
            texts=tuple(self.texts[row] for row in kept),
            owners=np.searchsorted(questions, self.owners[kept]).astype(np.int32),
            names=tuple(self.names[row] for row in kept),
        )

    def asked(self, queries: Queries) -> Queries:
        """The Q questions, and after them the R variants as questions of their own."""
        if not len(self):
            return queries
        return Queries(queries.query_ids + self.names, queries.texts + self.texts)

    def record(self, weight: float, reranker: RerankerQuery) -> dict[str, Any] | None:
        """What the manifest of a run keeps; ``None`` where no file is used."""
        if not self.source:
            return None
        counts = {"questions": self.questions, "variants": len(self), **{f"left_out_{k}": v for k, v in self._counts()}}
        return {
            "file": self.source, "file_sha256": self.file_sha256, "fingerprint": self.fingerprint, "weight": weight,
            "reranker_query": reranker, "counts": counts,
        }  # fmt: skip

    def describe(self, questions: int) -> str:
        """Counts of what is used and of what is left out, for one line of the log."""
        dropped = ", ".join(f"{count:,} {_LEFT_OUT[name]}" for name, count in self._counts() if count)
        used = f"{len(self):,} variants of {self.questions:,} of {questions:,} questions"
        return f"{used}; left out: {dropped or 'none'}"

    def _counts(self) -> list[tuple[str, int]]:
        return [(name, self.left_out.get(name, 0)) for name in _LEFT_OUT]


_LEFT_OUT = {
    "unknown": "rows of questions that are not asked here",
    "differing": "rows whose question reads otherwise there",
    "empty": "empty cells",
    "repeated": "repeated variants",
}


def variant_columns(names: Sequence[str]) -> list[str]:
    """The columns ``variant_1``, ``variant_2``, ... of a file, by number."""
    numbers = {name: int(match[1]) for name in names if (match := _VARIANT_COLUMN.fullmatch(name))}
    return sorted(numbers, key=numbers.__getitem__)


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """Columns of a parquet file, as Python values.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}). Copy it again, or make it anew: "
            f"{MAKE_COMMAND} --overwrite"
        ) from error
    return columns


def write_variants(path: Path, queries: Queries, variants: Sequence[Sequence[str]]) -> None:
    """Write ``q_id, original_query, variant_1 .. variant_N`` as parquet, all or nothing; missing ones are null.

    The file bears a mark by which :func:`is_own_file` knows it.

    Args:
        variants: of each question, in its order.
    """
    width = max([1, *(len(row) for row in variants)])
    columns: dict[str, list[str | None]] = {ID_COLUMN: list(queries.query_ids), ORIGINAL_COLUMN: list(queries.texts)}
    columns |= {f"variant_{n + 1}": [row[n] if n < len(row) else None for row in variants] for n in range(width)}
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()}, metadata=_MARK)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def is_own_file(path: Path) -> bool:
    """Whether :func:`write_variants` wrote a file; false where it cannot be read as parquet."""
    try:
        found = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return found.items() >= _MARK.items()


@dataclass(frozen=True)
class VariantRows:
    """Rows of a file of variants.

    Attributes:
        queries: R questions.
        variants: of each.
        differing: rows of the earlier file that are not among them.
    """

    queries: Queries
    variants: Sequence[Sequence[str]]
    differing: int


def with_earlier_rows(
    made: Queries, variants: Sequence[Sequence[str]], earlier: Mapping[str, Sequence[Any]], every_query: Queries
) -> VariantRows:
    """Questions made now, and after them the rows of an earlier file that are of other questions.

    A row whose question reads otherwise now is not kept: with more of them the search would refuse the file.

    Args:
        made, variants: questions made now, and the variants of each.
        earlier: columns of a file of :func:`write_variants`.
        every_query: all questions, before any limit.
    """
    columns = variant_columns(list(earlier))
    asked, done = dict(zip(every_query.query_ids, every_query.texts, strict=True)), frozenset(made.query_ids)
    ids, texts, found, differing = list(made.query_ids), list(made.texts), list(variants), 0
    for row, (query_id, text) in enumerate(zip(earlier[ID_COLUMN], earlier[ORIGINAL_COLUMN], strict=True)):
        if query_id in done:
            continue
        if not _reads_the_same(text, asked.get(query_id, text)):
            differing += 1
            continue
        ids.append(query_id)
        texts.append(text)
        found.append([cell for name in columns if (cell := earlier[name][row]) is not None])
    return VariantRows(Queries(tuple(ids), tuple(texts)), found, differing)


def check_variants(table: Mapping[str, Sequence[Any]], queries: Queries, path: Path) -> QueryVariants:
    """Match a variants table with the questions.

    A row whose ``original_query`` is another text than the question (case, punctuation and ``ё`` aside) is left out:
    its variants were made for that other text. A variant is repeated where it reads, in the same way, as the question
    or as one before it. Ids of an integer column are matched by number where no question has them as they are, since a
    program that read ``007`` as 7 has lost the zeros.

    Args:
        table: columns of the file: ``q_id``, ``original_query``, ``variant_1`` and further ones. Other columns are not
            looked at; a question may have several rows.
        queries: all questions, before any limit.
        path: the file, for messages.

    Raises:
        UserError: a missing column, no row of any of these questions, or more than half of the shared questions
            reading otherwise; the message names both values.
    """
    columns = variant_columns(list(table))
    for name, there in ((ID_COLUMN, ID_COLUMN in table), (ORIGINAL_COLUMN, ORIGINAL_COLUMN in table)):
        if not there:
            raise UserError(f"{path}: no column {name!r}; the file has {', '.join(map(repr, table))}. Rename it.")
    if not columns:
        raise UserError(f"{path}: no column 'variant_1'; the file has {', '.join(map(repr, table))}. Rename it.")
    row_of = _rows_by_id(queries)
    left_out = dict.fromkeys(_LEFT_OUT, 0)
    found: dict[int, list[str]] = {}
    readings: dict[int, set[str | tuple[str, ...]]] = {}
    same, differing, example = set[int](), set[int](), ""
    for number, cell in enumerate(table[ID_COLUMN]):
        row = row_of.get(_id(cell))
        if row is None and isinstance(cell, (int, float)):
            row = row_of.get(("number", _id(cell)))
        if row is None:
            left_out["unknown"] += 1
            continue
        original = _text(table[ORIGINAL_COLUMN][number])
        if not _reads_the_same(original, queries.texts[row]):
            left_out["differing"] += 1
            differing.add(row)
            asked = f"question {queries.query_ids[row]!r} is {queries.texts[row]!r} here"
            example = example or f"{asked}, but {original!r} there"
            continue
        same.add(row)
        kept, read = found.setdefault(row, []), readings.setdefault(row, {_reading(queries.texts[row])})
        for name in columns:
            text = _text(table[name][number])
            if not text:
                left_out["empty"] += 1
            elif _reading(text) in read:
                left_out["repeated"] += 1
            else:
                kept.append(text)
                read.add(_reading(text))
    _require_same_questions(path, queries, table[ID_COLUMN], same, differing, example)
    owners = [row for row in sorted(found) for _ in found[row]]
    names = [f"{queries.query_ids[row]}#{n}" for row in sorted(found) for n in range(1, len(found[row]) + 1)]
    texts = [text for row in sorted(found) for text in found[row]]
    return QueryVariants(tuple(texts), np.array(owners, dtype=np.int32), tuple(names), left_out, path.name)


def _require_same_questions(
    path: Path, queries: Queries, ids: Sequence[Any], same: set[int], differing: set[int], example: str
) -> None:
    fix = f"Name the file of these questions in QUERY_VARIANTS, set it to None, or make one: {MAKE_COMMAND}"
    shared = len(same | differing)
    if not shared:
        there = repr(_id(ids[0])) if len(ids) else "none (0 rows)"
        raise UserError(
            f"{path}: belongs to other questions: not one of its ids is asked here (first id there: {there}, here: "
            f"{queries.query_ids[0]!r}). {fix}"
        )
    if len(differing - same) > _MOST_DIFFERING * shared:
        raise UserError(
            f"{path}: belongs to other questions: {len(differing - same)} of {shared} shared ids have another "
            f"original_query ({example}). {fix}"
        )


def _rows_by_id(queries: Queries) -> dict[str | tuple[str, str], int]:
    rows: dict[str | tuple[str, str], int] = {}
    for row, query_id in enumerate(queries.query_ids):
        if query_id.isdecimal():
            rows.setdefault(("number", str(int(query_id))), row)
    rows.update({query_id: row for row, query_id in enumerate(queries.query_ids)})
    return rows


def _id(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    text = normalize(str(cell))
    return "" if text in _NOT_A_TEXT else text


def _reading(text: str) -> str | tuple[str, ...]:
    """What texts share that read the same: their words, or the text where it has none."""
    return tuple(words(text)) or text


def _reads_the_same(there: str, here: str) -> bool:
    return there == here or _reading(there) == _reading(here)


def questions_to_read(
    queries: Queries, candidates: Run, variants: QueryVariants, choice: RerankerQuery
) -> tuple[Queries, Run, Rows]:
    """What the cross-encoder reads: the questions, and unless ``choice`` is ``original`` their variants too.

    Returns:
        N questions, the candidates of each [N, K], and int32 [N], the row of the question that each stands for.
    """
    own = np.arange(len(queries), dtype=np.int32)
    if choice == "original" or not len(variants):
        return queries, candidates, own
    owners = np.concatenate([own, variants.owners])
    asked = variants.asked(queries)
    run = Run(
        candidates.name, asked.query_ids, candidates.doc_rows[owners], candidates.scores[owners],
        candidates.corpus_fingerprint,
    )  # fmt: skip
    return asked, run, owners


def merge_wordings(scores: Floats, owners: Rows, choice: RerankerQuery) -> Floats:
    """Scores of all wordings, float32 [N, K], become one row per question, float32 [Q, K]: maximum or plain mean.

    Args:
        owners: int32 [N], row of the question of each; the first Q are the questions themselves.
    """
    count = int(owners.max()) + 1 if len(owners) else 0
    if len(owners) == count:
        return scores
    if choice == "max":
        best: Floats = scores[:count].copy()
        np.maximum.at(best, owners[count:], scores[count:])
        return best
    total = np.zeros((count, scores.shape[1]), dtype=np.float64)
    np.add.at(total, owners, scores)
    mean: Floats = (total / np.bincount(owners)[:, None]).astype(np.float32)
    return mean
