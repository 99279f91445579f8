import numpy as np
import pytest
from scipy.stats import binomtest

from src.core import spool
from src.core.types import PAD, Corpus, Qrels, Queries, Run
from src.insight.run_facts import furthest, measure, moved, worst

CORPUS = Corpus(tuple("abcdefghij"), ("",) * 10, tuple("abcdefghij"))
QUERIES = Queries(
    ("q1", "q2", "q3", "q4"),
    (
        "снять наличные",
        "how to open a deposit account online",
        "как закрыть credit card early без штрафа online",
        "вклад",
    ),
)
LABELS = Qrels({"q1": frozenset("g"), "q2": frozenset("aj"), "q3": frozenset("j")})


def run(name: str, *lists: str, query_ids: tuple[str, ...] = QUERIES.query_ids) -> Run:
    depth = max(len(found) for found in lists)
    rows = np.full((len(lists), depth), PAD, dtype=np.int32)
    scores = np.zeros((len(lists), depth), dtype=np.float32)
    for i, found in enumerate(lists):
        rows[i, : len(found)] = [CORPUS.row_of[doc_id] for doc_id in found]
        scores[i, : len(found)] = np.arange(len(found), 0, -1)
    return Run(name, query_ids, rows, scores, CORPUS.fingerprint)


DENSE = run("dense", "abcdefgh", "abcdefgh", "abcdefghij", "abcdefgh")
BEFORE = run("fused", "abcdefgh", "abcdefgh", "abcdefgh", "abcdefgh")
AFTER = run("rerank-on", "gabcdefh", "bcdefagh", "abcdefgh", "badcefgh")


def test_ranks_and_gain_by_hand() -> None:
    found = measure((DENSE,), BEFORE, BEFORE, AFTER, CORPUS, QUERIES, LABELS)
    assert found is not None
    assert found.rows.tolist() == [0, 1, 2]
    assert found.before.tolist() == [7, 1, 0]
    assert found.after.tolist() == [1, 6, 0]
    assert found.hit.mean == pytest.approx(1 / 3)
    assert found.change.mean == 0
    assert found.p == 1.0
    assert found.ceiling == pytest.approx(2 / 3)
    # q3: its page is at 10 in the index, and 8 are candidates.
    assert found.lost == ("found", "reranker", "stage one")
    assert worst(found, 5) == [1, 2]
    assert furthest(found, 5) == [0, 1]


def test_groups() -> None:
    found = measure((DENSE,), BEFORE, BEFORE, AFTER, CORPUS, QUERIES, LABELS)
    assert found is not None
    named = [(g.name, g.questions, g.before.mean, g.after.mean) for g in (*found.lengths, *found.languages)]
    assert named == [
        ("1 to 3", 1, 0.0, 1.0),
        ("7 to 10", 2, 0.5, 0.0),
        ("Russian", 1, 0.0, 1.0),
        ("English", 1, 1.0, 0.0),
        ("both", 1, 0.0, 0.0),
    ]
    interval = binomtest(0, 2).proportion_ci(method="wilson")
    assert (found.lengths[1].after.low, found.lengths[1].after.high) == (interval.low, interval.high)


def test_a_run_of_the_labelled_questions_alone() -> None:
    held_out = run("held-out", "gabcdefh", "bcdefagh", "abcdefgh", query_ids=("q1", "q2", "q3"))
    whole = measure((DENSE,), BEFORE, BEFORE, AFTER, CORPUS, QUERIES, LABELS)
    part = measure((DENSE,), BEFORE, BEFORE, held_out, CORPUS, QUERIES, LABELS)
    assert whole is not None
    assert part is not None
    assert part.after.tolist() == whole.after.tolist()
    assert part.lost == whole.lost


def test_no_labelled_question() -> None:
    assert measure((DENSE,), BEFORE, BEFORE, AFTER, CORPUS, QUERIES, Qrels({"other": frozenset("a")})) is None


def test_moves_need_no_labels() -> None:
    found = moved(BEFORE, AFTER)
    assert found.first_changed == 0.75
    # q1 has g, which stood at 7; q2 has f, which stood at 6; 2 of 20 places are new.
    assert found.new.tolist() == [1, 1, 0, 0]
    assert found.kept == pytest.approx(0.9)
    assert found.origins == {"1": 3, "2 to 3": 8, "4 to 5": 7, "6 to 10": 2}
    assert found.gap.tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("block", [1, 3])
def test_moves_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = moved(BEFORE, AFTER)
    monkeypatch.setattr(spool, "BLOCK", block)
    found = moved(BEFORE, AFTER)
    assert (found.first_changed, found.kept, found.origins) == (
        whole.first_changed, pytest.approx(whole.kept), whole.origins
    )  # fmt: skip
    assert found.new.tolist() == whole.new.tolist()
    assert found.gap.tolist() == whole.gap.tolist()


def test_lists_of_one_page_have_no_gap() -> None:
    one = run("fused", "a", "b", "c", "d")
    assert np.isinf(moved(one, one).gap).all()
    assert moved(one, one).kept == 1.0
