"""Submit: the final run becomes the submission CSV, checked before it takes its name."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from src.core.artifacts import atomic_path
from src.core.errors import UserError
from src.core.types import PAD, Corpus, Queries, Run

HEADER = ("q_id", "web_list")
_INTEGER = re.compile(r"0|-?[1-9]\d*")


def format_id_list(doc_ids: Sequence[str]) -> str:
    """``[935, 687]``; ids that are not all whole numbers become JSON strings: ``["p1", "p2"]``."""
    if all(_INTEGER.fullmatch(doc_id) for doc_id in doc_ids):
        return f"[{', '.join(doc_ids)}]"
    return json.dumps(list(doc_ids), ensure_ascii=False)


def check_depth(corpus: Corpus, top_k: int) -> None:
    """Refuse, before any work, a list longer than the corpus.

    Raises:
        UserError: where the corpus has fewer than ``top_k`` documents.
    """
    if len(corpus) < top_k:
        raise UserError(
            f"TOP_K = {top_k}, but the corpus has only {len(corpus)} documents. Lower TOP_K (or --top-k) to "
            f"{len(corpus)} or less."
        )


def write_submission(path: Path, run: Run, queries: Queries, corpus: Corpus, top_k: int) -> None:
    """Write ``q_id,web_list``, one row per question in the order of the questions, exactly ``top_k`` ids each.

    The file is written under a temporary name, read back and compared, then renamed.

    Raises:
        UserError: where a question has fewer than ``top_k`` candidates, or the file read back differs.
    """
    if run.query_ids != queries.query_ids:
        raise ValueError("the run is of other questions")
    lists: list[list[str]] = []
    for query_id, rows in zip(run.query_ids, run.doc_rows[:, :top_k], strict=True):
        found = [corpus.doc_ids[row] for row in rows.tolist() if row != PAD]
        if len(found) < top_k:
            raise UserError(
                f"question {query_id!r}: stage one found {len(found)} documents, TOP_K = {top_k} are needed. "
                "Add an encoder to ENCODERS, or check how many documents have any text."
            )
        lists.append(found)
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows((q, format_id_list(ids)) for q, ids in zip(run.query_ids, lists, strict=True))
        _check(temporary, path, run.query_ids, lists, corpus)


def _check(written: Path, path: Path, query_ids: Sequence[str], lists: Sequence[Sequence[str]], corpus: Corpus) -> None:
    with written.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    if tuple(rows[0]) != HEADER or len(rows) != len(query_ids) + 1:
        raise UserError(f"{path}: read back {len(rows) - 1} rows, {len(query_ids)} expected. Nothing was replaced.")
    for number, (row, query_id, wanted) in enumerate(zip(rows[1:], query_ids, lists, strict=True), start=1):
        found = [str(item) for item in json.loads(row[1])]
        distinct = len(set(found)) == len(found) and all(item in corpus.row_of for item in found)
        if row[0] != query_id or found != list(wanted) or not distinct:
            raise UserError(
                f"{path}, row {number}: read back {row}, expected {query_id} {wanted}. Nothing was replaced."
            )
