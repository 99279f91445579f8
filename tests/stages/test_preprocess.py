from pathlib import Path

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.types import Corpus, Queries
from src.stages.chunk import Chunking, chunk_corpus
from src.stages.preprocess import (
    labelled_ids,
    parse_id_list,
    read_corpus,
    read_qrels,
    read_queries,
    summarize,
)
from tests.conftest import bert_tokenizer, write_csv

CORPUS = {"id": "web_id", "title": "title", "text": "text"}
QUESTIONS = {"id": "q_id", "query": "query"}
LABELS = {"query_id": "q_id", "doc_id": "web_id"}
HEADER = "web_id,url,kind,title,text"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1251"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    rows = ['2,u,k,"Вклад, «Плюс»","Строка ""один""' + newline + 'строка два"', "10,u,k,,Текст", "007,u,k,nan,NaN"]
    path = write_csv(tmp_path / "c.csv", HEADER, rows, encoding, newline)
    corpus = read_corpus(path, CORPUS)
    assert corpus.doc_ids == ("007", "10", "2")
    assert corpus.titles == ("", "", "Вклад, «Плюс»")
    assert corpus.texts == ("", "Текст", 'Строка "один"\nстрока два')


def test_windows_1251_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = write_csv(tmp_path / "c.csv", HEADER, ["1,u,k,Вклад,Текст"], "cp1251", "\n")
    read_corpus(path, CORPUS)
    # The header is 26 bytes with its line end, and "1,u,k," are six more.
    assert f"{path}: not UTF-8 (byte {len(HEADER) + 1 + 6}), read as Windows-1251" in caplog.messages


def test_empty_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('\nweb_id, title, text\n\n1, "a, b","x\n\ny"\n  \n2,,\n\n', encoding="utf-8")
    corpus = read_corpus(path, CORPUS)
    assert (corpus.doc_ids, corpus.titles, corpus.texts) == (("1", "2"), ("a, b", ""), ("x\n\ny", ""))


def test_words_like_none_are_kept(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "c.csv", HEADER, ["1,u,k,None,NA", "2,u,k,null,нет"])
    assert read_corpus(path, CORPUS).titles == ("None", "null")


CASES = {
    "empty file": (b"", "the file is empty"),
    "header only": (b"web_id,title,text\n", "has a header but no rows"),
    "missing column": (
        b"web_id,titel,text\n1,a,b\n",
        "no column 'title'; the file has 'web_id', 'titel', 'text'. Did you mean 'titel'?",
    ),
    "duplicate column": (b"web_id,title,title,text\n1,a,b,c\n", "column 'title' occurs 2 times"),
    "duplicate id": (
        b"web_id,title,text\n1,a,b\n2,a,b\n1,c,d\n",
        "row 3: id '1' in column 'web_id' stands already in row 1",
    ),
    "empty id": (b"web_id,title,text\n1,a,b\n ,a,b\n", "row 2: empty id in column 'web_id'"),
    "all empty": (b"web_id,title,text\n1,,\n2,,nan\n", "all 2 rows are empty"),
    "utf-16": ("web_id,title,text\n1,a,b\n".encode("utf-16"), "UTF-16"),
    "broken utf-8": (
        "web_id,title,text\n1,привет,мир\n".encode() + b"2,\xff\xfe,x\n",
        "broken UTF-8 at byte 42 (0xff)",
    ),
    "too many fields": (b"web_id,title,text\n1,a,b,c,d\n", "row 1 (line 2): 5 field(s), the header has 3"),
    "too many fields later": (
        b'web_id,title,text\n1,a,"b\nb"\n\n2,a,b,c\n',
        "row 2 (line 5): 4 field(s), the header has 3",
    ),
    "a file that was cut off": (b"web_id,title,text\n1,a,b\n2,a", "row 2 (line 3): 2 field(s), the header has 3"),
    "a cut between quoted lines": (
        'web_id,title,text\r\n1,"Вклад, «Плюс»","b\r\n\r\n""b"", c"\r\n\r\n2,"a"\r\n3,a,b\r\n'.encode("cp1251"),
        "row 2 (line 6): 2 field(s), the header has 3",
    ),
    "an id alone": (b"web_id,title,text\n7\n", "row 1 (line 2): 1 field(s), the header has 3"),
    "a short row beside a very long text": (
        b'web_id,title,text\n1,a,"' + b"x, " * 100_000 + b'"\n2,a\n',
        "row 2 (line 3): 2 field(s), the header has 3",
    ),
    "open quote": (b'web_id,title,text\n1,"a,b\n2,c,d\n', "cannot be read as CSV"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_corpus_files(tmp_path: Path, name: str) -> None:
    data, complaint = CASES[name]
    path = tmp_path / "c.csv"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_corpus(path, CORPUS)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_corpus(tmp_path / "nothing.csv", CORPUS)


def test_questions_keep_their_order(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "q.csv", "q_id,query", ["9,как  дела?", "1,ААА", "5,как  дела?"])
    assert read_queries(path, QUESTIONS) == Queries(("9", "1", "5"), ("как дела?", "ААА", "как дела?"))


def test_empty_question(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "q.csv", "q_id,query", ["1,a", "2,  "])
    with pytest.raises(UserError, match="row 2: question '2' is empty in column 'query'"):
        read_queries(path, QUESTIONS)


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ("935", ["935"]),
        ("[935, 687]", ["935", "687"]),
        ('["p1", "p2"]', ["p1", "p2"]),
        ("['a b']", ["a b"]),
        ("[]", []),
        (" ", []),
    ],
)
def test_parse_id_list(cell: str, ids: list[str]) -> None:
    assert parse_id_list(cell) == ids


IDS = frozenset(("935", "687", "-5", "p1", "моя страница", "a, b", "a;b", "[c]", "(d)", "(e, f)", "it's"))


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ("935, 687", ["935", "687"]),
        ("935,687,", ["935", "687"]),
        ("[935 687]", ["935", "687"]),
        ("[935, 687]", ["935", "687"]),
        ("(935, 687)", ["935", "687"]),
        ("(935,)", ["935"]),
        ("935;687", ["935", "687"]),
        ("[935; -5]", ["935", "-5"]),
        ("['p1' '935'\n '687']", ["p1", "935", "687"]),
        # Ids that hold such characters.
        (" моя страница ", ["моя страница"]),
        ("[моя страница, 935]", ["моя страница", "935"]),
        ("a, b", ["a, b"]),
        ("a;b", ["a;b"]),
        ("a;b, 935", ["a;b", "935"]),
        ("[c]", ["[c]"]),
        ("(d)", ["(d)"]),
        ("(e, f)", ["(e, f)"]),
        ('["a, b", "(e, f)", "it\'s"]', ["a, b", "(e, f)", "it's"]),
        # What is unknown is left for the error: the part, where the rest is a list, else the cell.
        ("935, 688", ["935", "688"]),
        ("[935 688]", ["935", "688"]),
        ("x, y", ["x, y"]),
        ("935 687", ["935 687"]),
        ("[x, y]", ["x", "y"]),
        ("()", []),
        ("[]", []),
        (" ", []),
        ("[" * 10_000 + "]" * 10_000, ["[" * 9_999 + "]" * 9_999]),
    ],
)
def test_ids_of_a_label(cell: str, ids: list[str]) -> None:
    assert labelled_ids(cell, IDS) == ids


def test_labels_by_row_and_by_list(tmp_path: Path) -> None:
    corpus, queries = Corpus(("1", "2", "3"), ("",) * 3, ("x",) * 3), Queries(("a", "b", "c"), ("?",) * 3)
    path = write_csv(tmp_path / "l.csv", "q_id,web_id", ["a,1", "a,2", 'b,"[3, 1]"', 'c,"2, 3"', "c,(1)"])
    qrels = read_qrels(path, LABELS, queries, corpus)
    assert qrels.relevant == {"a": {"1", "2"}, "b": {"1", "3"}, "c": {"1", "2", "3"}}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("zz,1", "row 1: label for question 'zz', which the 1 questions do not hold"),
        ("a,99", "row 1: label names document '99', which the corpus of 1 documents does not hold"),
        ("a,[]", "row 1: question 'a' has no document id"),
        ('a,"1, 99"', "row 1: label names document '99'"),
        ("a,1 99", "row 1: label names document '1 99'"),
    ],
)
def test_labels_for_unknown_ids(tmp_path: Path, row: str, complaint: str) -> None:
    path = write_csv(tmp_path / "l.csv", "q_id,web_id", [row])
    with pytest.raises(UserError, match=complaint):
        read_qrels(path, LABELS, Queries(("a",), ("?",)), Corpus(("1",), ("",), ("x",)))


def test_summary_counts() -> None:
    corpus = Corpus(("1", "2", "3", "4"), ("a", "a", "", "b"), ("текст", "текст", "", "text"))
    queries = Queries(("1", "2", "3"), ("Да?", "да?", "card"))
    summary = summarize(corpus, chunk_corpus(corpus, Chunking("tokens", 16), bert_tokenizer()), queries, None)
    assert (summary.documents, summary.empty_documents, summary.duplicate_documents) == (4, 1, 1)
    assert (summary.chunks, summary.questions, summary.duplicate_questions) == (3, 3, 1)
    assert summary.question_languages == {"ru": 2, "en": 1}
    assert dict(summary.rows())["  labelled"] == "no labels"
    assert np.array_equal([summary.labelled_questions], [None])
