"""The CSV readers on anything: a checked result or one clear line, never another error."""

import csv
import tempfile
from pathlib import Path

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.text import normalize
from src.core.types import Corpus, Queries
from src.stages.preprocess import read_corpus, read_qrels, read_queries
from src.stages.submit import read_submission

PIECES = st.text(alphabet=st.sampled_from(list("a7,\n\r\t;\"'\\ =-[]жё\x00\u2028\ufeff😀ب")), max_size=60)
CORPUS = Corpus(("7", "a", "ж"), ("", "", ""), ("x", "y", "z"))
QUERIES = Queries(("7", "a"), ("x", "y"))


def contents(header: str) -> st.SearchStrategy[bytes]:
    rows = st.one_of(PIECES.map(str.encode), st.binary(max_size=60))
    return st.one_of(rows.map(lambda data: f"{header}\n".encode() + data), rows)


def read(data: bytes, reader: object) -> object:
    """What a reader makes of a file of these bytes; ``None`` where it refuses them, in one line."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        Path(file.name).write_bytes(data)
        try:
            return reader(Path(file.name))  # type: ignore[operator]
        except UserError as error:
            said = str(error)
    assert "\n" not in said
    return None


@settings(max_examples=150, deadline=None)
@given(contents("web_id,title,text"))
def test_any_corpus(data: bytes) -> None:
    found = read(data, lambda path: read_corpus(path, {"id": "web_id", "title": "title", "text": "text"}))
    if found is not None:
        assert isinstance(found, Corpus)
        assert all(type(value) is str for value in (*found.doc_ids, *found.titles, *found.texts))
        assert all(value and value == value.strip() and value[0] not in "=+@" for value in found.doc_ids)
        assert "\x00" not in "".join((*found.doc_ids, *found.titles, *found.texts))


@settings(max_examples=150, deadline=None)
@given(contents("q_id,query"))
def test_any_questions(data: bytes) -> None:
    found = read(data, lambda path: read_queries(path, {"id": "q_id", "query": "query"}))
    assert found is None or all(found.texts)  # type: ignore[attr-defined]


@settings(max_examples=150, deadline=None)
@given(contents("q_id,web_id"))
def test_any_labels(data: bytes) -> None:
    names = {"query_id": "q_id", "doc_id": "web_id"}
    found = read(data, lambda path: read_qrels(path, names, QUERIES, CORPUS))
    if found is not None:
        assert set(found.relevant) <= {"7", "a"}  # type: ignore[attr-defined]
        assert all(docs <= {"7", "a", "ж"} for docs in found.relevant.values())  # type: ignore[attr-defined]


@settings(max_examples=150, deadline=None)
@given(contents("q_id,web_list"))
def test_any_submission(data: bytes) -> None:
    found = read(data, lambda path: read_submission(path, "theirs", QUERIES, CORPUS))
    assert found is None or found.query_ids == ("7", "a")  # type: ignore[attr-defined]


CELLS = st.text(max_size=20).filter(lambda text: max(text, default=" ") < "\ud800" or min(text) > "\udfff")


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[0-9a-zа-я][0-9a-zа-я ]{0,5}[0-9a-z]", fullmatch=True), st.tuples(CELLS, CELLS), min_size=1
    )
)
def test_random_frames_come_back(rows: dict[str, tuple[str, str]]) -> None:
    frame = pd.DataFrame([(key, *cells) for key, cells in rows.items()], columns=["web_id", "title", "text"])
    data = frame.to_csv(index=False, quoting=csv.QUOTE_ALL).encode("utf-8", "surrogatepass")
    found = read(data, lambda path: read_corpus(path, {"id": "web_id", "title": "title", "text": "text"}))
    cleaned = {key: tuple(clean(cell) for cell in cells) for key, cells in rows.items()}
    if not any(title or text for title, text in cleaned.values()):
        assert found is None
        return
    assert isinstance(found, Corpus)
    assert dict(zip(found.doc_ids, zip(found.titles, found.texts, strict=True), strict=True)) == cleaned


def clean(cell: str) -> str:
    text = normalize(cell)
    return "" if text in ("nan", "NaN") else text
