"""Preprocess: the users' CSV files become a corpus, chunks, questions and labels."""

import csv
import difflib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.core.errors import UserError
from src.core.text import count_by_language, normalize
from src.core.types import Chunks, Corpus, Qrels, Queries

# What Excel and LibreOffice take for a formula at the beginning of a cell (OWASP, "CSV Injection").
_FORMULA = re.compile(r"[=+@\t\r]|-(?!\d+$)")
_NOT_A_TEXT = frozenset({"", "nan", "NaN"})
_SEPARATORS = (re.compile(","), re.compile(";"))
# White space is common in ids: it separates them only where brackets say that this is a list.
_SEPARATORS_IN_BRACKETS = (*_SEPARATORS, re.compile(r"[\s,;]+"))

log = logging.getLogger(__name__)


def decode(path: Path) -> str:
    """Text of a file in UTF-8 (with or without BOM) or Windows-1251.

    Raises:
        UserError: where the file is missing or empty, or in another encoding.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Put it there, or give another path with the flag or setting for it.")
    data = path.read_bytes()
    if not data.strip():
        raise UserError(f"{path}: the file is empty (0 rows); a header line and at least one row are expected.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the file is UTF-16; UTF-8 or Windows-1251 is expected. Save it as UTF-8.")
    # UTF-16 without a BOM would decode as UTF-8, with a NUL beside every Latin letter.
    if data.count(0) > len(data) // 8:
        raise UserError(
            f"{path}: {data.count(0)} of its {len(data)} bytes are NUL: it is UTF-16, or no text at all; UTF-8 or "
            "Windows-1251 is expected. Save it as UTF-8."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as utf8_error:
        # A file that is UTF-8 but for one broken byte would decode as cp1251, all of it turned into gibberish.
        if _mostly_utf8(data):
            raise UserError(
                f"{path}: broken UTF-8 at byte {utf8_error.start} (0x{data[utf8_error.start]:02x}). Save it as UTF-8."
            ) from utf8_error
        try:
            text = data.decode("cp1251")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: neither UTF-8 (byte {utf8_error.start}) nor Windows-1251 (byte {error.start}). "
                "Save it as UTF-8."
            ) from error
        log.info("%s: not UTF-8 (byte %d), read as Windows-1251", path, utf8_error.start)
        return text


def _mostly_utf8(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    multibyte = sum(char > "\x7f" for char in text) - broken
    return multibyte > broken


def read_table(path: Path, columns: Mapping[str, str], optional: Sequence[str] = ()) -> dict[str, list[str]]:
    """Read named columns of a CSV file as strings, exactly as they stand (ids keep leading zeros).

    Args:
        path: the file; comma-separated, double quotes, UTF-8 or Windows-1251, any line ends.
        columns: name here -> name in the file.
        optional: names (in the file) of further columns to take where they are there.

    Returns:
        Name here (for optional ones the name in the file) -> one string per row.

    Raises:
        UserError: missing or empty file, missing column, a row that does not parse or that has another number of
            fields than the header, no rows.
    """
    text = decode(path)
    # Line ends inside quotes are the text's own; the parser must see one kind only.
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    _require_commas(path, text)
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False, skipinitialspace=True)
        # pandas renames a repeated column ("title.1"), so the header itself is looked at.
        header = Counter(name.strip() for name in next(csv.reader(io.StringIO(text)), []))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        if "Expected" in str(error):
            _check_fields(path, text)
        raise UserError(
            f"{path}: cannot be read as CSV: {str(error).strip()}. Check quotes and commas there."
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):
        _check_fields(path, text)
        raise UserError(f"{path}: rows have more fields than the header. Quote the fields that hold commas.")
    found = [str(name).strip() for name in frame.columns]
    frame.columns = pd.Index(found)
    for name in columns.values():
        if header[name] > 1:
            raise UserError(f"{path}: column {name!r} occurs {header[name]} times in the header. Rename the others.")
    for name in columns.values():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{path}: no column {name!r}; the file has {', '.join(map(repr, found))}.{hint} "
                "Rename the column, or set its name in config/settings.py."
            )
    if not len(frame):
        raise UserError(f"{path}: the file has a header but no rows; at least one row is expected.")
    # pandas fills up a short row in silence: a page of a file that was cut off would lose its text.
    _check_fields(path, text)
    table = {here: frame[name].tolist() for here, name in columns.items()}
    table.update({name: frame[name].tolist() for name in optional if name in found})
    return table


def _require_commas(path: Path, text: str) -> None:
    """Refuse a file whose columns are separated by something else, as spreadsheets of some languages write it."""
    header = next((line.strip() for line in _lines(text) if line.strip()), "")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if separator in header and "," not in header:
            raise UserError(
                f"{path}: the columns of the header {header[:80]!r} are separated by {name}, commas are needed. "
                "Save it as comma-separated CSV."
            )


def _check_fields(path: Path, text: str) -> None:
    """Refuse a row that has fewer or more fields than the header; empty lines are none."""
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = csv.reader(_lines(text), skipinitialspace=True)
        width, number, line = 0, 0, 1
        for row in rows:
            fields = len(row)
            if fields > 1 or (row and row[0].strip()):
                width = width or fields
                if fields != width:
                    raise UserError(
                        f"{path}, row {number} (line {line}): {fields} field(s), the header has {width}. A row that is "
                        "too short was cut off, or lacks a comma for an empty field; in one that is too long, quote "
                        "the fields that hold commas."
                    )
                number += 1
            line = rows.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, one at a time: a file object over the text would be a second copy of it."""
    start = 0
    while end := text.find("\n", start) + 1:
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _check_ids(path: Path, ids: Sequence[str], column: str) -> None:
    first: dict[str, int] = {}
    for row, value in enumerate(ids, start=1):
        if not value:
            raise UserError(f"{path}, row {row}: empty id in column {column!r}. Give every row an id.")
        if _FORMULA.match(value):
            raise UserError(
                f"{path}, row {row}: a spreadsheet would run the id {value[:80]!r} in column {column!r} as a formula. "
                "Give it another beginning than = + - @; negative whole numbers are fine."
            )
        if value in first:
            raise UserError(
                f"{path}, row {row}: id {value!r} in column {column!r} stands already in row {first[value]}. "
                "Ids must be distinct: remove or rename one of the two rows."
            )
        first[value] = row


def read_corpus(path: Path, columns: Mapping[str, str]) -> Corpus:
    """Read and clean the documents.

    Args:
        columns: ``id``, ``title`` and ``text`` -> column names of the file.

    Returns:
        The corpus, sorted by id. Missing titles and texts are ``""``.

    Raises:
        UserError: see :func:`read_table`; also empty or repeated ids, ids that a spreadsheet would run as a formula,
            and a corpus without any text.
    """
    table = read_table(path, columns)
    ids = [value.strip() for value in table["id"]]
    _check_ids(path, ids, columns["id"])
    titles, texts = ([_clean(value) for value in table[name]] for name in ("title", "text"))
    if not any(titles) and not any(texts):
        raise UserError(
            f"{path}: all {len(ids)} rows are empty in columns {columns['title']!r} and {columns['text']!r}. "
            "Check the column names in config/settings.py (CORPUS_COLUMNS)."
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return Corpus(tuple(ids[i] for i in order), tuple(titles[i] for i in order), tuple(texts[i] for i in order))


def _clean(value: str) -> str:
    text = normalize(value)
    return "" if text in _NOT_A_TEXT else text


def read_queries(path: Path, columns: Mapping[str, str]) -> Queries:
    """Read and clean the questions; their order is kept.

    Args:
        columns: ``id`` and ``query`` -> column names of the file.

    Raises:
        UserError: see :func:`read_table`; also empty or repeated ids, ids that a spreadsheet would run as a formula,
            and an empty question.
    """
    table = read_table(path, columns)
    ids = [value.strip() for value in table["id"]]
    _check_ids(path, ids, columns["id"])
    texts = [_clean(value) for value in table["query"]]
    for row, (query_id, text) in enumerate(zip(ids, texts, strict=True), start=1):
        if not text:
            raise UserError(
                f"{path}, row {row}: question {query_id!r} is empty in column {columns['query']!r}. "
                "Fill it in or remove the row: an empty question cannot be answered."
            )
    return Queries(tuple(ids), tuple(texts))


def parse_id_list(cell: str) -> list[str]:
    """Ids of one cell: ``935``, ``[935, 687]`` or ``["p1", "p2"]``."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell] if cell else []
    return _parts(cell[1:-1].split(","))


def _parts(parts: Sequence[str]) -> list[str]:
    bare = (part.strip().strip("'\"").strip() for part in parts)
    return [part for part in bare if part]


def labelled_ids(cell: str, known: Container[str]) -> list[str]:
    """Ids of one cell of the labels: one, or a list such as ``[935, 687]``, ``[935 687]``, ``(935, 687)``, ``935;687``.

    Ids may hold brackets and separators themselves. So a cell that is an id is no list, and of the ways to read a list
    the one that finds the largest share of known ids counts; what is unknown in it is left for the error.

    Args:
        known: ids of the documents.
    """
    cell = cell.strip()
    if cell in known:
        return [cell]
    readings = (reading for reading in _readings(cell) if reading)
    return max(readings, key=lambda ids: sum(doc_id in known for doc_id in ids) / len(ids), default=[])


def _readings(cell: str) -> Iterator[list[str]]:
    """Ways to read a cell, the likeliest first."""
    if cell[:1] + cell[-1:] in {"[]", "()"}:
        yield _json_strings(cell)
        yield from (_parts(separator.split(cell[1:-1])) for separator in _SEPARATORS_IN_BRACKETS)
    elif cell:
        yield [cell]
        yield from (_parts(separator.split(cell)) for separator in _SEPARATORS)


def _json_strings(cell: str) -> list[str]:
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else []


def read_qrels(path: Path, columns: Mapping[str, str], queries: Queries, corpus: Corpus) -> Qrels:
    """Read the labels: one row per relevant pair, or a list of documents in one cell.

    Args:
        columns: ``query_id`` and ``doc_id`` -> column names of the file.
        queries: all questions that labels may speak of.
        corpus: all documents that labels may speak of.

    Raises:
        UserError: see :func:`read_table`; also a label for a question or document that does not exist.
    """
    table = read_table(path, columns)
    known_queries = set(queries.query_ids)
    relevant: dict[str, set[str]] = {}
    for row, (query_id, cell) in enumerate(zip(table["query_id"], table["doc_id"], strict=True), start=1):
        query_id = query_id.strip()
        if query_id not in known_queries:
            raise UserError(
                f"{path}, row {row}: label for question {query_id!r}, which the {len(queries)} questions do not hold. "
                "Give the labels that belong to these questions (--labels)."
            )
        doc_ids = labelled_ids(cell, corpus.row_of)
        if not doc_ids:
            raise UserError(
                f"{path}, row {row}: question {query_id!r} has no document id. Fill it in or remove the row."
            )
        for doc_id in doc_ids:
            if doc_id not in corpus.row_of:
                raise UserError(
                    f"{path}, row {row}: label names document {doc_id!r}, which the corpus of {len(corpus)} documents "
                    "does not hold. Give the labels that belong to this corpus (--labels)."
                )
        relevant.setdefault(query_id, set()).update(doc_ids)
    return Qrels({query_id: frozenset(docs) for query_id, docs in relevant.items()})


@dataclass(frozen=True)
class Summary:
    """Counts for the table that preprocessing prints."""

    documents: int
    empty_documents: int
    duplicate_documents: int
    chunks: int
    questions: int
    duplicate_questions: int
    labelled_questions: int | None
    document_languages: Mapping[str, int]
    question_languages: Mapping[str, int]

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and value of each line of the table."""
        yield "documents", f"{self.documents:,}"
        yield "  empty (no title, no text)", f"{self.empty_documents:,}"
        yield "  exact duplicates", f"{self.duplicate_documents:,}"
        yield "  languages", _languages(self.document_languages)
        yield "chunks", f"{self.chunks:,}"
        yield "questions", f"{self.questions:,}"
        yield "  duplicates (case folded)", f"{self.duplicate_questions:,}"
        yield "  languages", _languages(self.question_languages)
        yield "  labelled", "no labels" if self.labelled_questions is None else f"{self.labelled_questions:,}"


def _languages(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def summarize(corpus: Corpus, chunks: Chunks, queries: Queries, qrels: Qrels | None) -> Summary:
    """Count what preprocessing found."""
    pages = Counter(zip(corpus.titles, corpus.texts, strict=True))
    empty = pages.pop(("", ""), 0)
    questions = Counter(text.casefold() for text in queries.texts)
    return Summary(
        documents=len(corpus),
        empty_documents=empty,
        duplicate_documents=sum(pages.values()) - len(pages),
        chunks=len(chunks),
        questions=len(queries),
        duplicate_questions=len(queries) - len(questions),
        labelled_questions=None if qrels is None else len(qrels),
        document_languages=count_by_language(f"{t}\n{x}" for t, x in zip(corpus.titles, corpus.texts, strict=True)),
        question_languages=count_by_language(queries.texts),
    )
