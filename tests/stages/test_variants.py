from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.types import Queries, Run
from src.stages.fuse import Method, fuse_wordings
from src.stages.variants import (
    QueryVariants,
    check_variants,
    merge_wordings,
    questions_to_read,
    read_parquet,
    variant_columns,
    write_variants,
)

QUERIES = Queries(("007", "8", "q3"), ("Какая ставка по вкладу?", "ипотека", "карта"))
FILE = Path("query_variants.parquet")


def table(rows: list[list[object]]) -> dict[str, list[object]]:
    names = ["q_id", "original_query", *(f"variant_{n}" for n in range(1, len(rows[0]) - 1))]
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def test_what_is_used_and_what_is_left_out() -> None:
    found = check_variants(
        table(
            [
                ["q3", "карта", "карта", "банковская карта", None],
                ["007", "какая СТАВКА по вкладу", "процент  по вкладу", "процент по вкладу", float("nan")],
                ["99", "вклад", "депозит", "", ""],
                ["8", "ипотечный кредит", "квартира в кредит", "", ""],
                ["q3", "карта", "пластик", "nan", ""],
            ]
        ),
        QUERIES,
        FILE,
    )
    assert found.texts == ("процент по вкладу", "банковская карта", "пластик")
    assert found.owners.tolist() == [0, 2, 2]
    assert found.names == ("007#1", "q3#1", "q3#2")
    assert found.left_out == {"unknown": 1, "differing": 1, "empty": 4, "repeated": 2}
    assert found.describe(3) == (
        "3 variants of 2 of 3 questions; left out: 1 rows of questions that are not asked here, 1 rows whose question "
        "reads otherwise there, 4 empty cells, 2 repeated variants"
    )
    record = found.record(0.7, "original")
    assert record is not None
    assert record["counts"] == {
        "questions": 2, "variants": 3, "left_out_unknown": 1, "left_out_differing": 1, "left_out_empty": 4,
        "left_out_repeated": 2,
    }  # fmt: skip
    assert (record["file"], record["weight"]) == ("query_variants.parquet", 0.7)
    assert found.head(1).names == ("007#1",)
    assert found.head(2).names == ("007#1",)
    assert found.head(1).fingerprint != found.fingerprint
    asked = found.asked(QUERIES)
    assert asked.query_ids == ("007", "8", "q3", "007#1", "q3#1", "q3#2")
    assert asked.texts[3:] == found.texts


def test_variants_that_read_as_the_question_or_another_are_repeated() -> None:
    queries = Queries(("1", "2"), ("Как оформить карту?", "???"))
    rows: list[list[object]] = [
        ["1", "как оформить карту", "как оформить карту", "Как оформить карту", "КАК ОФОРМИТЬ КАРТУ!"],
        ["1", "Как оформить карту?", "Расчётный счёт", "расчетный счет.", "расчётный  счёт"],
        ["2", "???", "!!!", "???", "!!!"],
    ]
    found = check_variants(table(rows), queries, FILE)
    assert (found.names, found.texts) == (("1#1", "2#1"), ("Расчётный счёт", "!!!"))
    assert found.left_out["repeated"] == 7


@pytest.mark.parametrize("ids", [[7, 8], [7.0, 8.0], ["007", "8"]])
def test_ids_of_number_columns_are_those_of_the_questions(ids: list[object], tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    columns = {"q_id": ids, "original_query": list(QUERIES.texts[:2]), "variant_1": ["а", "б"]}
    pq.write_table(pa.table(columns), path)
    assert check_variants(read_parquet(path), QUERIES, path).names == ("007#1", "8#1")


def test_a_text_column_keeps_its_zeros() -> None:
    rows = [["7", QUERIES.texts[0], "а"], ["8", "ипотека", "б"]]
    assert check_variants(table(rows), QUERIES, FILE).names == ("8#1",)


def test_columns_by_number() -> None:
    assert variant_columns(["variant_10", "q_id", "variant_2", "variant_x", "variant_1"]) == [
        "variant_1",
        "variant_2",
        "variant_10",
    ]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            [["a", "карта", "x"]],
            r"not one of its ids is asked here \(first id there: 'a', here: '007'\).*QUERY_VARIANTS",
        ),
        (
            [["007", "Сколько стоит?", "x"], ["8", "Где?", "y"], ["q3", "карта", "z"]],
            r"2 of 3 shared ids have another original_query \(question '007' is 'Какая ставка по вкладу\?' here, but "
            r"'Сколько стоит\?' there\)",
        ),
    ],
)
def test_a_file_of_other_questions(rows: list[list[object]], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_variants(table(rows), QUERIES, FILE)


@pytest.mark.parametrize("missing", ["q_id", "original_query", "variant_1"])
def test_missing_columns(missing: str) -> None:
    columns = table([["8", "ипотека", "б"]])
    del columns[missing]
    with pytest.raises(UserError, match=f"query_variants.parquet: no column '{missing}'; the file has '"):
        check_variants(columns, QUERIES, FILE)


def test_what_is_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    path.write_text("q_id,original_query\n")
    with pytest.raises(UserError, match=r"v\.parquet: cannot be read as parquet"):
        read_parquet(path)


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "v.parquet"
    write_variants(path, QUERIES, [["ставка", "процент"], [], ["пластик"]])
    assert pq.read_table(path).column_names == ["q_id", "original_query", "variant_1", "variant_2"]
    found = check_variants(read_parquet(path), QUERIES, path)
    assert (found.names, found.texts) == (("007#1", "007#2", "q3#1"), ("ставка", "процент", "пластик"))
    write_variants(path, QUERIES, [[], [], []])
    empty = check_variants(read_parquet(path), QUERIES, path)
    assert len(empty) == 0
    assert empty.asked(QUERIES) is QUERIES
    assert empty.describe(3) == "0 variants of 0 of 3 questions; left out: 3 empty cells"


def run(rows: list[list[int]], scores: list[list[float]]) -> Run:
    ids = tuple(f"q{i}" for i in range(len(rows)))
    return Run("r", ids, np.array(rows, dtype=np.int32), np.array(scores, dtype=np.float32), "c")


def owners(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


def test_convex_wordings_by_hand() -> None:
    found = run([[4, 5, -1], [0, 1, 2], [1, 3, 0]], [[3, 1, 0], [0.9, 0.6, 0.3], [0.8, 0.7, 0.5]])
    dense = fuse_wordings(found, 2, owners(1), 0.5, "convex", 60, absent_is_zero=False)
    # Weights 2/3 and 1/3; absent documents count as the lowest: 2 in the variant's list .5, 3 in the question's .3.
    # 0: .6 + .5/3 = .76667; 1: .4 + .8/3 = .66667; 2: .2 + .5/3 = .36667; 3: .2 + .7/3 = .43333
    assert dense.doc_rows.tolist() == [[4, 5, -1], [0, 1, 3]]
    assert dense.scores[1].tolist() == pytest.approx([0.76667, 0.66667, 0.43333], abs=1e-4)
    assert dense.scores[0].tolist() == [3, 1, 0]
    lexical = fuse_wordings(found, 2, owners(1), 0.5, "convex", 60, absent_is_zero=True)
    # 2: .2; 3: .7/3 = .23333
    assert lexical.doc_rows.tolist()[1] == [0, 1, 3]
    assert lexical.scores[1].tolist() == pytest.approx([0.76667, 0.66667, 0.23333], abs=1e-4)


def test_rrf_wordings_by_hand() -> None:
    found = run([[0, 1], [1, 2], [2, -1]], [[9, 8], [5, 4], [3, 0]])
    fused = fuse_wordings(found, 1, owners(0, 0), 0.7, "rrf", 60, absent_is_zero=False)
    # 0: 1/61 = .016393; 1: 1/62 + .7/61 = .027605; 2: .7/62 + .7/61 = .022766
    assert fused.doc_rows.tolist() == [[1, 2]]
    assert fused.scores[0].tolist() == pytest.approx([0.027605, 0.022766], abs=1e-6)
    assert fused.query_ids == ("q0",)


def test_a_question_that_finds_nothing_is_answered_by_its_variant() -> None:
    found = run([[-1, -1], [3, 1]], [[0, 0], [7, 2]])
    fused = fuse_wordings(found, 1, owners(0), 0.7, "convex", 60, absent_is_zero=True)
    assert fused.doc_rows.tolist() == [[3, 1]]


def test_no_variants_at_all_is_the_same_run() -> None:
    found = run([[0, 1]], [[9, 8]])
    assert fuse_wordings(found, 1, owners(), 0.7, "convex", 60, absent_is_zero=False) is found


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), min_size=1, max_size=4),
    st.sampled_from(["rrf", "convex"]),
    st.booleans(),
    st.integers(1, 3),
)
def test_a_variant_that_finds_the_same_changes_no_rank(
    lists: list[list[int]], method: Method, absent_is_zero: bool, copies: int
) -> None:
    rows = [row + [-1] * (6 - len(row)) for row in lists]
    scores = [[float(6 - n) if n < len(row) else 0.0 for n in range(6)] for row in lists]
    whose = np.repeat(np.arange(len(lists)), copies).astype(np.int32)
    every = run(rows + [rows[i] for i in whose], scores + [scores[i] for i in whose])
    fused = fuse_wordings(every, len(lists), whose, 0.7, method, 60, absent_is_zero)
    assert fused.doc_rows.tolist() == rows


def test_the_reranker_reads_the_question_unless_asked_otherwise() -> None:
    queries = Queries(("a", "b"), ("раз", "два"))
    candidates = run([[4, 5], [6, 7]], [[2, 1], [2, 1]])
    variants = QueryVariants(("three", "four"), owners(1, 1), ("b#1", "b#2"), {}, "f")
    asked, read, whose = questions_to_read(queries, candidates, variants, "original")
    assert asked is queries
    assert read is candidates
    scores = np.array([[1, 2], [3, 9]], dtype=np.float32)
    assert merge_wordings(scores, whose, "original") is scores
    asked, read, whose = questions_to_read(queries, candidates, variants, "max")
    assert asked.texts == ("раз", "два", "three", "four")
    assert read.doc_rows.tolist() == [[4, 5], [6, 7], [6, 7], [6, 7]]
    scores = np.array([[1, 2], [3, 9], [6, 0], [0, 3]], dtype=np.float32)
    assert merge_wordings(scores, whose, "max").tolist() == [[1, 2], [6, 9]]
    assert merge_wordings(scores, whose, "mean").tolist() == [[1, 2], [3, 4]]


def test_variants_of_one_question() -> None:
    variants = QueryVariants(
        ("а", "б", "в"), np.array([0, 2, 2], dtype=np.int32), ("q0#1", "q2#1", "q2#2"), source="file"
    )  # fmt: skip
    assert variants.of(1).texts == ()
    last = variants.of(2)
    assert (last.texts, last.owners.tolist(), last.names) == (("б", "в"), [0, 0], ("q2#1", "q2#2"))
