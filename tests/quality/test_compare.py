import numpy as np
import pytest

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Queries, Run
from src.insight.comparison import markdown
from src.quality.compare import Loss, compare, first_relevant_ranks

CORPUS = Corpus(tuple("abcdefgh"), ("",) * 8, ("x",) * 8)
QUERIES = Queries(("q0", "q1", "q2", "q3"), ("one", "two", "three", "four"))
QRELS = Qrels({"q0": frozenset("b"), "q1": frozenset("gh"), "q2": frozenset("c")})


def make_run(name: str, rows: list[list[int]], fingerprint: str = CORPUS.fingerprint) -> Run:
    values = np.array(rows, np.int32)
    scores = np.tile(-np.arange(values.shape[1], dtype=np.float32), (len(rows), 1))
    return Run(name, QUERIES.query_ids[: len(rows)], values, scores, fingerprint)


BEFORE = make_run("off", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6], [2, 0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]])
AFTER = make_run("on", [[1, 0, 2, 3, 4, 5], [6, 0, 1, 2, 3, 4], [0, 4, 3, 5, 1, 2], [0, 1, 2, 3, 4, 5]])
# The same with every document of the corpus: lists that nothing is cut off from.
WHOLE = [[*rows, *(row for row in range(8) if row not in rows)] for rows in BEFORE.doc_rows.tolist()]


def test_ranks_by_hand() -> None:
    assert first_relevant_ranks(BEFORE, CORPUS, QRELS).tolist() == [2, 6, 1]
    assert first_relevant_ranks(AFTER.cut(5), CORPUS, QRELS).tolist() == [1, 1, 0]


def test_comparison_by_hand() -> None:
    found = compare([BEFORE, AFTER], CORPUS, QUERIES, QRELS)
    assert (found.labelled, found.unlabelled) == (3, 1)
    off, on = found.runs
    assert off.metrics["Hit@1"].mean == pytest.approx(1 / 3)
    assert on.metrics["Hit@1"].mean == pytest.approx(2 / 3)
    # Hits at 5: off q0 and q2, on q0 and q1; each has a right page for all three among its six.
    assert (off.gap, on.gap) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    (pair,) = found.pairs
    by_metric = {difference.metric: difference for difference in pair.differences}
    hit = by_metric["Hit@1"]
    assert (hit.test, hit.wins, hit.losses, hit.ties) == ("McNemar", 2, 1, 0)
    assert hit.change.mean == pytest.approx(1 / 3)
    assert hit.p == pytest.approx(1.0)  # 2 won, 1 lost: 2 * (C(3,0) + C(3,1)) / 8 = 1
    assert by_metric["Recall@5"].test == "randomisation"
    # q0 1 -> 1, q1 0 -> 1 of 2, q2 1 -> 0
    assert by_metric["Recall@5"].change.mean == pytest.approx((1 / 2 - 1) / 3)
    assert all(difference.p_adjusted >= difference.p for difference in pair.differences)


def test_metrics_that_look_beyond_the_shallowest_list_are_left_out() -> None:
    # Cut to five, a run would lose Hit@10 and the like by its cut alone.
    found = compare([BEFORE, AFTER.cut(5)], CORPUS, QUERIES, QRELS)
    assert found.left_out == ("Hit@10", "MRR@10", "nDCG@10", "Recall@20", "Recall@50", "Recall@100")
    assert [list(run.metrics) for run in found.runs] == [["Hit@1", "Hit@5", "Recall@5"]] * 2
    (pair,) = found.pairs
    assert [difference.metric for difference in pair.differences] == ["Hit@1", "Hit@5", "Recall@5"]
    assert pair.labels_needed is not None
    text = markdown(found, CORPUS, [])
    assert (
        "Left out, because on lists no more than 5 documents per question: Hit@10, MRR@10, nDCG@10, Recall@20, "
        "Recall@50, Recall@100.\n"
    ) in text
    (short,) = compare([BEFORE, AFTER.cut(3)], CORPUS, QUERIES, QRELS).pairs
    assert ([difference.metric for difference in short.differences], short.labels_needed) == (["Hit@1"], None)


def test_lists_of_the_whole_corpus_are_deep_enough_for_every_metric() -> None:
    found = compare([make_run("off", WHOLE), make_run("on", WHOLE)], CORPUS, QUERIES, QRELS)
    assert found.left_out == ()
    assert found.runs[0].metrics["Recall@100"].mean == 1.0
    assert "Left out" not in markdown(found, CORPUS, [])


def test_the_worst_loss_in_full() -> None:
    (pair,) = compare([BEFORE, AFTER], CORPUS, QUERIES, QRELS).pairs
    assert pair.worst_losses == (Loss("q2", "three", ("c",), 1, 6, ("a", "e", "d", "f", "b")),)
    (back,) = compare([AFTER, BEFORE], CORPUS, QUERIES, QRELS).pairs
    assert [(loss.query_id, loss.rank_before, loss.rank_after) for loss in back.worst_losses] == [
        ("q1", 1, 6),
        ("q0", 1, 2),
    ]


def test_below_the_end_of_a_shorter_list_nothing_is_lost() -> None:
    # q1 has its right page sixth in BEFORE; a list of five says nothing of a sixth place.
    five = make_run("five", [rows[:5] for rows in BEFORE.doc_rows.tolist()])
    (pair,) = compare([BEFORE, five], CORPUS, QUERIES, QRELS).pairs
    assert pair.worst_losses == ()
    text = markdown(compare([BEFORE, five], CORPUS, QUERIES, QRELS), CORPUS, [])
    assert "| right page among K, missed by Hit@5 | 0.3333 | - |" in text


def test_many_runs_stand_below_each_other() -> None:
    names = [f"run {i}" for i in range(6)]
    text = markdown(
        compare([make_run(name, BEFORE.doc_rows.tolist()) for name in names], CORPUS, QUERIES, QRELS), CORPUS, []
    )
    table = [line for line in text.splitlines() if line.startswith("| ")][:7]
    assert table[0].startswith("| metric | Hit@1 | Hit@5 |")
    assert [line.split(" | ")[0] for line in table[1:]] == [f"| {name}" for name in names]


def test_equal_runs_show_nothing() -> None:
    same = Run("again", BEFORE.query_ids, BEFORE.doc_rows, BEFORE.scores, CORPUS.fingerprint)
    (pair,) = compare([BEFORE, same], CORPUS, QUERIES, QRELS).pairs
    assert all((d.p, d.wins, d.losses) == (1.0, 0, 0) for d in pair.differences)
    assert pair.worst_losses == ()
    assert pair.labels_needed is None


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([BEFORE], "1 run given, at least 2"),
        ([BEFORE, BEFORE], "two runs have the name 'off'"),
        (
            [BEFORE, make_run("x", AFTER.doc_rows.tolist(), "other")],
            f"the corpus other, this one is {CORPUS.fingerprint}",
        ),
        ([BEFORE, make_run("x", AFTER.doc_rows.tolist()[:2])], "answers 2 questions that are not the 4 asked"),
    ],
)
def test_what_cannot_be_compared(runs: list[Run], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        compare(runs, CORPUS, QUERIES, QRELS)


def test_no_labelled_question() -> None:
    with pytest.raises(UserError, match="none of the questions has a label"):
        compare([BEFORE, AFTER], CORPUS, QUERIES, Qrels({"elsewhere": frozenset("a")}))
