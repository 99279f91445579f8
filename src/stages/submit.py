"""Submit: the final run becomes the submission CSV, checked before it takes its name."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

import numpy as np

from src.core.artifacts import atomic_path
from src.core.errors import UserError
from src.core.spool import blocks
from src.core.types import PAD, Corpus, Queries, Run

HEADER = ("q_id", "web_list")
_INTEGER = re.compile(r"0|-?[1-9]\d*")


def format_id_list(doc_ids: Sequence[str]) -> str:
    """``[935, 687]``; ids that are not all whole numbers become JSON strings: ``["p1", "p2"]``."""
    if all(_INTEGER.fullmatch(doc_id) for doc_id in doc_ids):
        return f"[{', '.join(doc_ids)}]"
    return json.dumps(list(doc_ids), ensure_ascii=False)


def check_depth(corpus: Corpus, top_k: int) -> None:
    """Refuse, before any work, a list longer than what can be found: documents with a title or text.

    Raises:
        UserError: where the corpus has fewer than ``top_k`` of them.
    """
    filled = sum(bool(title or text) for title, text in zip(corpus.titles, corpus.texts, strict=True))
    if filled < top_k:
        found = f"the corpus has only {filled} documents"
        if filled < len(corpus):
            found = f"only {filled} of the {len(corpus)} documents of the corpus have a title or text"
        raise UserError(f"TOP_K = {top_k}, but {found}. Lower TOP_K (or --top-k) to {filled} or less.")


def check_candidates(
    run: Run, top_k: int, more: str = "Let stage one find more (ENCODERS, SEARCH_DEPTH_CHUNKS)"
) -> None:
    """Refuse, before any pair is scored, lists that are too short for a submission.

    Args:
        more: what makes stage one find more, for the message.

    Raises:
        UserError: where a question has fewer than ``top_k`` candidates.
    """
    counts = np.zeros(len(run.query_ids), dtype=np.int64)
    for part in blocks(len(counts)):
        counts[part] = (run.doc_rows[part] != PAD).sum(axis=1)
    short = np.flatnonzero(counts < top_k)
    if len(short):
        first, fewest = short[0], counts.min()
        lower = f", or lower TOP_K (or --top-k) to {fewest} or less" if fewest else ""
        raise UserError(
            f"question {run.query_ids[first]!r}: stage one found {counts[first]} documents, TOP_K = {top_k} are needed "
            f"({len(short):,} of {len(counts):,} questions have too few). {more}{lower}."
        )


def write_submission(path: Path, run: Run, queries: Queries, corpus: Corpus, top_k: int) -> None:
    """Write ``q_id,web_list``, one row per question in the order of the questions, exactly ``top_k`` ids each.

    The file is written under a temporary name, read back and compared, then renamed.

    Raises:
        UserError: where a question has fewer than ``top_k`` candidates, or the file read back differs.
    """
    if run.query_ids != queries.query_ids:
        raise ValueError("the run is of other questions")
    check_candidates(run, top_k)
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows((query_id, format_id_list(ids)) for query_id, ids in _lists(run, corpus, top_k))
        _check(temporary, path, run, corpus, top_k)


def _lists(run: Run, corpus: Corpus, top_k: int) -> Iterator[tuple[str, list[str]]]:
    """Each question's id and its first ``top_k`` documents."""
    for part in blocks(len(run.query_ids)):
        for query_id, rows in zip(run.query_ids[part], run.doc_rows[part, :top_k].tolist(), strict=True):
            yield query_id, [corpus.doc_ids[row] for row in rows]


def read_submission(path: Path, name: str, queries: Queries, corpus: Corpus) -> Run:
    """Read a submission, this machine's or another's, as a run; a question that it lacks has an empty list.

    Args:
        name: of the run.

    Raises:
        UserError: where the file cannot be read, or names a question or document that is not there.
    """
    row_of_query = {query_id: row for row, query_id in enumerate(queries.query_ids)}
    lists: dict[int, list[int]] = {}
    with path.open(encoding="utf-8-sig", newline="") as handle:
        for number, query_id, found in _rows(path, handle):
            unknown = [doc_id for doc_id in found if doc_id not in corpus.row_of]
            if query_id not in row_of_query or unknown:
                what = f"document {unknown[0]!r}" if unknown else f"question {query_id!r}"
                raise UserError(
                    f"{path}, row {number}: names {what}, which this corpus {corpus.fingerprint} and these "
                    f"{len(queries)} questions {queries.fingerprint} do not hold. Only runs over the same data can be "
                    "compared."
                )
            if len(set(found)) != len(found):
                raise UserError(f"{path}, row {number}: a document stands twice in the list of {query_id!r}.")
            if row_of_query[query_id] in lists:
                raise UserError(f"{path}, row {number}: question {query_id!r} stands there twice. Remove one row.")
            lists[row_of_query[query_id]] = [corpus.row_of[doc_id] for doc_id in found]
    depth = max((len(found) for found in lists.values()), default=1) or 1
    rows = np.full((len(queries), depth), PAD, dtype=np.int32)
    scores = np.zeros((len(queries), depth), dtype=np.float32)
    for i, docs in lists.items():
        rows[i, : len(docs)] = docs
        scores[i, : len(docs)] = -np.arange(len(docs), dtype=np.float32)
    return Run(name, queries.query_ids, rows, scores, corpus.fingerprint)


def _rows(path: Path, handle: TextIO) -> Iterator[tuple[int, str, list[str]]]:
    """Number, question id and document ids of each row of a submission."""
    number = 0
    try:
        table = csv.reader(handle)
        header = next(table, [])
        if tuple(header) != HEADER:
            raise UserError(f"{path}: header {','.join(header)[:80]!r}, expected {','.join(HEADER)!r}.")
        for number, row in enumerate(table, start=1):
            query_id, cell = row
            found = json.loads(cell)
            if not isinstance(found, list) or not all(type(item) in (str, int) for item in found):
                raise ValueError("not a list of ids")
            yield number, query_id, [str(item) for item in found]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(
            f'{path}, row {number}: not an id and a list of ids, such as q1,"[935, 687]" ({str(error)[:80]}).'
        ) from error


def _check(written: Path, path: Path, run: Run, corpus: Corpus, top_k: int) -> None:
    number = 0
    with written.open(encoding="utf-8", newline="") as handle:
        table = csv.reader(handle)
        header = tuple(next(table, []))
        for number, (row, (query_id, wanted)) in enumerate(
            zip_longest(table, _lists(run, corpus, top_k), fillvalue=("", ())), start=1
        ):
            found = [str(item) for item in json.loads(row[1])] if len(row) == 2 and row[1] else []
            distinct = len(set(found)) == len(found) and all(item in corpus.row_of for item in found)
            if [*row[:1]] != [query_id] or found != list(wanted) or not distinct:
                raise UserError(
                    f"{path}, row {number}: read back {row}, expected {query_id} {wanted}. Nothing was replaced."
                )
    if header != HEADER or number != len(run.query_ids):
        raise UserError(f"{path}: read back {number} rows, {len(run.query_ids)} expected. Nothing was replaced.")
