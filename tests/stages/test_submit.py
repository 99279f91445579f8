from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.types import Corpus, Queries, Run
from src.stages.preprocess import parse_id_list
from src.stages.submit import check_candidates, check_depth, format_id_list, write_submission

CORPUS = Corpus(("1885", "1893", "687", "935", "963"), ("",) * 5, ("x",) * 5)
QUERIES = Queries(("7", "3"), ("?", "!"))


def make_run(rows: list[list[int]]) -> Run:
    values = np.array(rows, np.int32)
    scores = np.where(values >= 0, -np.arange(values.shape[1], dtype=np.float32), np.float32(0)).astype(np.float32)
    scores = scores - scores.min() * (values >= 0)
    return Run("final", QUERIES.query_ids, values, scores.astype(np.float32), CORPUS.fingerprint)


def test_format_and_order(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_submission(path, make_run([[3, 2, 4, 1, 0], [0, 1, 2, 3, 4]]), QUERIES, CORPUS, 5)
    assert path.read_text() == ('q_id,web_list\n7,"[935, 687, 963, 1893, 1885]"\n3,"[1885, 1893, 687, 935, 963]"\n')


def test_too_few_candidates_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(UserError, match="question '3': stage one found 2 documents, TOP_K = 3 are needed"):
        write_submission(path, make_run([[0, 1, 2], [0, 1, -1]]), QUERIES, CORPUS, 3)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_corpus_smaller_than_top_k() -> None:
    check_depth(CORPUS, 5)
    with pytest.raises(
        UserError, match=r"TOP_K = 6, but the corpus has only 5 documents. Lower TOP_K \(or --top-k\) to 5"
    ):
        check_depth(CORPUS, 6)


def test_documents_without_title_and_text_cannot_be_found() -> None:
    corpus = Corpus(("1", "2", "3", "4"), ("", "a", "", ""), ("x", "", "", ""))
    check_depth(corpus, 2)
    with pytest.raises(UserError, match=r"only 2 of the 4 documents of the corpus have a title or text. Lower .* to 2"):
        check_depth(corpus, 3)


def test_lists_are_counted_before_anything_is_made_of_them() -> None:
    run = make_run([[0, 1, 2], [0, 1, -1]])
    check_candidates(run, 2)
    said = (
        r"question '3': stage one found 2 documents, TOP_K = 3 are needed \(1 of 2 questions have too few\)\. "
        r"Look further, or lower TOP_K \(or --top-k\) to 2 or less\.$"
    )
    with pytest.raises(UserError, match=said):
        check_candidates(run, 3, "Look further")
    # No list is so short that nothing would do.
    with pytest.raises(UserError, match=r"question '7': stage one found 0 .*\(2 of 2 .*\)\. Look further\.$"):
        check_candidates(make_run([[-1], [-1]]), 1, "Look further")


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["935", "687"], "[935, 687]"),
        (["0", "-5"], "[0, -5]"),
        (["007", "1"], '["007", "1"]'),
        (["p1", "я"], '["p1", "я"]'),
        (["1.0"], '["1.0"]'),
    ],
)
def test_format_id_list(ids: list[str], text: str) -> None:
    assert format_id_list(ids) == text


@given(st.lists(st.text(alphabet="0123456789abя-_. ", min_size=1).map(str.strip).filter(bool), min_size=1))
def test_label_files_can_hold_what_submissions_hold(ids: list[str]) -> None:
    assert parse_id_list(format_id_list(ids)) == ids
