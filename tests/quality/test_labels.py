import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.types import PAD, Corpus, Qrels, Queries, Run
from src.quality.labels import (
    LabelStore,
    Page,
    choose_questions,
    disagreement,
    main_run,
    make_task,
    pooled,
    progress_line,
)
from src.stages.preprocess import read_qrels

CORPUS = Corpus(tuple("abcdefgh"), tuple("ABCDEFGH"), ("x",) * 8)
QUERIES = Queries(("q0", "q1", "q2", "q3"), ("one", "two", "three", "four"))
COLUMNS = {"query_id": "q_id", "doc_id": "web_id"}


def make_run(name: str, rows: list[list[int]]) -> Run:
    values = np.array(rows, np.int32)
    scores = np.where(values == PAD, np.float32(0), np.arange(values.shape[1], 0, -1, dtype=np.float32))
    return Run(name, QUERIES.query_ids[: len(rows)], values, scores.astype(np.float32), CORPUS.fingerprint)


OFF = make_run("rerank-off", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, PAD, PAD, PAD, PAD], [PAD] * 6])
ON = make_run("rerank-on", [[5, 0, 1, 2, 3, 4], [4, 3, 2, 1, 0, 7], [2, PAD, PAD, PAD, PAD, PAD], [PAD] * 6])
THIRD = make_run("bm25", [[0, 1, 2, 3, 4, 7], [0, 1, 2, 3, 4, 5], [0, 1, PAD, PAD, PAD, PAD], [7] + [PAD] * 5])


def test_pool_by_hand() -> None:
    assert pooled([OFF, ON], 0, 2) == (0, 1, 5)
    assert pooled([OFF, ON], 2, 10) == (0, 1, 2)
    assert pooled([OFF, ON], 3, 10) == ()


def test_disagreement_by_hand() -> None:
    # q0: 4 of 5 in common; q1: the same five; q2: none of 2 and 1; q3: both empty.
    assert disagreement([OFF, ON]).tolist() == pytest.approx([0.2, 0.0, 1.0, 0.0])
    # Three pairs: OFF-ON, OFF-THIRD, ON-THIRD.
    expected = [1 - (0.8 + 1.0 + 0.8) / 3, 0.0, 1 - (0 + 1 + 0) / 3, 1 - (1 + 0 + 0) / 3]
    assert disagreement([OFF, ON, THIRD]).tolist() == pytest.approx(expected)
    assert disagreement([OFF]).tolist() == [0, 0, 0, 0]


def test_the_most_disputed_questions_come_first() -> None:
    scores = np.array([0.2, 0.0, 1.0, 0.0])
    assert choose_questions(QUERIES.query_ids, (), 10, scores) == (2, 0, 1, 3)
    assert choose_questions(QUERIES.query_ids, {"q2", "q1"}, 1, scores) == (0,)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(), st.sets(st.integers(0, 29)))
def test_a_random_sample_goes_on_where_it_stopped(size: int, count: int, seed: int, done: set[int]) -> None:
    ids = [f"q{i}" for i in range(size)]
    everything = choose_questions(ids, (), size or 1, None, seed)
    assert sorted(everything) == list(range(size))
    answered = {f"q{i}" for i in done}
    expected = [place for place in everything if place not in done][:count]
    assert list(choose_questions(ids, answered, count, None, seed)) == expected


def test_pages_are_shuffled_by_the_question_and_carry_no_rank() -> None:
    task = make_task([OFF, ON, THIRD], CORPUS, QUERIES, 0, 10)
    assert task == make_task([THIRD, ON, OFF], CORPUS, QUERIES, 0, 10)
    assert (task.query_id, task.question) == ("q0", "one")
    assert {page.doc_id for page in task.pages} == set("abcdefh")
    assert all(page == Page(page.doc_id, page.doc_id.upper(), "x") for page in task.pages)
    same_pool = make_run("r", [[0, 1, 2, 3, 4, 5, 6, 7]] * 4)
    orders = {tuple(p.doc_id for p in make_task([same_pool], CORPUS, QUERIES, i, 8).pages) for i in range(4)}
    assert len(orders) == 4


def test_main_run() -> None:
    assert main_run([THIRD, OFF, ON]) is ON
    assert main_run([THIRD, OFF]) is OFF
    assert main_run([THIRD]) is THIRD


def test_progress_by_hand() -> None:
    assert progress_line(ON, CORPUS, {}, {"q3"}) == (
        "Labelled: 0 questions, 0 relevant pages; none of these: 1 (not measured). "
        "Hit@5 of rerank-on: nothing to measure yet."
    )
    # ON finds a in its first five for q0 and q1: equal values give no interval.
    both = {"q0": frozenset("a"), "q1": frozenset("ab")}
    assert progress_line(ON, CORPUS, both, ()).endswith(
        "Labelled: 2 questions, 3 relevant pages; none of these: 0 (not measured). Hit@5 of rerank-on: 1.00, "
        "no 95 % interval yet: it needs both hits and misses."
    )
    # q1 has h at rank 6: a miss. Two values 1 and 0: a resample's mean is 0 or 1 a quarter of the time each.
    line = progress_line(ON, CORPUS, {"q0": frozenset("a"), "q1": frozenset("h"), "other": frozenset("a")}, {"other"})
    assert line == (
        "Labelled: 2 questions, 2 relevant pages; none of these: 0 (not measured). Hit@5 of rerank-on: 0.50, "
        "95 % interval [0.00, 1.00], 100 points wide."
    )


def open_store(folder: Path) -> LabelStore:
    return LabelStore.open(folder / "qrels.csv", folder / "labels-none.csv", COLUMNS, QUERIES, CORPUS)


def text(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def test_every_answer_is_on_disk_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "raw")
    assert store.answered == set()
    store.save("q1", {"b", "a"})
    assert text(store.path) == "q_id,web_id\nq1,a\nq1,b\n"
    assert not store.none_path.exists()
    store.save("q0", ())
    assert text(store.none_path) == "q_id\nq0\n"
    store.save("q1", {"c"})
    assert text(store.path) == "q_id,web_id\nq1,c\n"
    assert store.relevant == {"q1": frozenset("c")}
    assert open_store(tmp_path / "raw").answered == {"q0", "q1"}
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["labels-none.csv", "qrels.csv"]


def test_a_new_file_begins_with_the_labels_that_are_kept_elsewhere(tmp_path: Path) -> None:
    earlier = Qrels({"q3": frozenset("ba")})
    paths = tmp_path / "qrels.csv", tmp_path / "labels-none.csv"
    store = LabelStore.open(*paths, COLUMNS, QUERIES, CORPUS, earlier)
    assert store.answered == {"q3"}
    assert not store.path.exists()
    store.save("q1", {"c"})
    assert text(store.path) == "q_id,web_id\nq3,a\nq3,b\nq1,c\n"
    again = LabelStore.open(*paths, COLUMNS, QUERIES, CORPUS, Qrels({"q0": frozenset("h")}))
    assert again.answered == {"q1", "q3"}  # a file that is there stands for itself


def test_an_answer_can_change_its_kind(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save("q1", {"b"})
    store.save("q1", ())
    # A header alone would be refused by the other scripts.
    assert not store.path.exists()
    assert text(store.none_path) == "q_id\nq1\n"
    store.save("q1", {"a"})
    assert text(store.path) == "q_id,web_id\nq1,a\n"
    assert not store.none_path.exists()
    assert (store.relevant, store.none) == ({"q1": frozenset("a")}, set())


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ("q_id,web_id\nq0,a\n", "q1,b\n"),
        ("q_id,web_id\nq0,a", "\nq1,b\n"),
        ("q_id,web_id\r\nq0,a\r\n", "q1,b\r\n"),
        ('\ufeffnote, web_id ,q_id\n"by hand, twice",a,q0\n,"[b, ""c""]",q0\n', ",b,q1\n"),
    ],
)
def test_rows_written_by_hand_stay(tmp_path: Path, before: str, added: str) -> None:
    path = tmp_path / "qrels.csv"
    path.write_bytes(before.encode())
    store = open_store(tmp_path)
    assert store.answered == {"q0"}
    store.save("q1", {"b"})
    assert text(path) == before + added
    assert read_qrels(path, COLUMNS, QUERIES, CORPUS).relevant["q1"] == {"b"}
    store.save("q1", ())
    assert text(path) == before
    with pytest.raises(ValueError, match="answered before this session"):
        store.save("q0", {"a"})


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "qrels.csv"
    path.write_bytes("q_id,web_id,кто\nq0,a,Анна\n".encode("cp1251"))
    open_store(tmp_path).save("q1", {"b"})
    assert text(path) == "q_id,web_id,кто\nq0,a,Анна\nq1,b,\n"


def test_a_change_by_another_program_is_not_overwritten(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save("q1", {"b"})
    changed = text(store.path) + "q3,h\n"
    store.path.write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"qrels\.csv: changed by another program .*start again"):
        store.save("q2", {"c"})
    assert text(store.path) == changed
    assert store.answered == {"q1"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(UserError, match=r"qrels\.csv: cannot be written \(.+\)\. Free space or mend"):
        open_store(tmp_path / "raw").save("q1", {"b"})


def test_a_side_file_of_other_questions(tmp_path: Path) -> None:
    (tmp_path / "labels-none.csv").write_text("q_id\nq1\nq9\n")
    with pytest.raises(UserError, match=r"labels-none\.csv, row 2: question 'q9' is not among the 4 questions"):
        open_store(tmp_path)


def test_an_id_that_reads_as_a_list(tmp_path: Path) -> None:
    corpus = Corpus(("[a,b]", "[a]"), ("", ""), ("x", "y"))
    store = LabelStore.open(tmp_path / "l.csv", tmp_path / "n.csv", COLUMNS, QUERIES, corpus)
    store.save("q0", {"[a]"})
    assert read_qrels(store.path, COLUMNS, QUERIES, corpus).relevant == {"q0": {"[a]"}}
    with pytest.raises(UserError, match=r"document id '\[a,b\]' reads as a list"):
        store.save("q1", {"[a,b]"})


ids = st.text(st.sampled_from("aя1 ,\"'[;-"), min_size=1, max_size=5).map(str.strip).filter(bool)


@settings(deadline=None)  # it writes files
@given(st.lists(ids, min_size=1, unique=True), st.lists(ids, min_size=1, unique=True), st.data())
def test_what_is_saved_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, query_ids: list[str], doc_ids: list[str], data: st.DataObject
) -> None:
    corpus = Corpus(tuple(sorted(doc_ids)), ("",) * len(doc_ids), ("x",) * len(doc_ids))
    queries = Queries(tuple(query_ids), ("?",) * len(query_ids))
    folder = tmp_path_factory.mktemp("store")
    answers: dict[str, frozenset[str]] = {}
    for _ in range(2):  # a second session goes on where the first one stopped
        store = LabelStore.open(folder / "l.csv", folder / "n.csv", COLUMNS, queries, corpus)
        assert store.answered == set(answers)
        free = [query_id for query_id in query_ids if query_id not in answers]
        for query_id in data.draw(st.lists(st.sampled_from(free), max_size=4)) if free else ():
            answers[query_id] = data.draw(st.frozensets(st.sampled_from(doc_ids), max_size=3))
            store.save(query_id, answers[query_id])
    again = LabelStore.open(folder / "l.csv", folder / "n.csv", COLUMNS, queries, corpus)
    assert again.relevant == {query_id: docs for query_id, docs in answers.items() if docs}
    assert again.none == {query_id for query_id, docs in answers.items() if not docs}
    if again.relevant:
        with again.path.open(encoding="utf-8", newline="") as handle:
            assert len(list(csv.reader(handle))) == 1 + sum(map(len, again.relevant.values()))
