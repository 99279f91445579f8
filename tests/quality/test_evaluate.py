import math

import numpy as np
import pytest

from src.core.types import Corpus, Qrels, Run
from src.insight.report import hit_lines
from src.quality.evaluate import Evaluation, evaluate

CORPUS = Corpus(tuple("abcdefgh"), ("",) * 8, ("x",) * 8)


def make_run(rows: list[list[int]]) -> Run:
    values = np.array(rows, np.int32)
    # Every score is equal: only the order of the rows may count.
    return Run(
        "r", tuple(f"q{i}" for i in range(len(rows))), values, np.zeros(values.shape, np.float32), CORPUS.fingerprint
    )


def test_metrics_by_hand() -> None:
    run = make_run([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 7]])
    qrels = Qrels({"q0": frozenset("b"), "q1": frozenset("gh"), "q2": frozenset("b"), "elsewhere": frozenset("a")})
    found = evaluate(run, CORPUS, qrels)
    assert found is not None
    # q0: b at rank 2; q1: g at rank 6, h nowhere; q2: b at rank 2.
    assert found.questions == 3
    assert found.metrics["Hit@1"] == 0.0
    assert found.metrics["Hit@5"] == pytest.approx(2 / 3)
    assert found.metrics["Hit@10"] == 1.0
    assert found.metrics["MRR@10"] == pytest.approx((1 / 2 + 1 / 6 + 1 / 2) / 3)
    assert found.metrics["Recall@100"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    ideal = 1 / math.log2(2) + 1 / math.log2(3)
    ndcg = (1 / math.log2(3) + (1 / math.log2(7)) / ideal + 1 / math.log2(3)) / 3
    assert found.metrics["nDCG@10"] == pytest.approx(ndcg)


def test_a_question_without_any_candidate_counts_as_zero() -> None:
    run = make_run([[0, 1], [-1, -1]])
    found = evaluate(run, CORPUS, Qrels({"q0": frozenset("a"), "q1": frozenset("b")}))
    assert found is not None
    assert found.metrics["Hit@5"] == 0.5


def test_no_labelled_question_is_no_figure() -> None:
    assert evaluate(make_run([[0]]), CORPUS, Qrels({"other": frozenset("a")})) is None


def evaluation(hit5: float, depth: int = 100) -> Evaluation:
    names = ("Hit@1", "Hit@5", "Hit@10", "MRR@10", "nDCG@10", "Recall@20", "Recall@50", "Recall@100")
    return Evaluation({**dict.fromkeys(names, 0.9), "Hit@5": hit5}, 120, depth)


def test_hit_line_with_reranking() -> None:
    lines = list(hit_lines(evaluation(0.31), evaluation(0.3456), True, ["a stands in for b"], ""))
    assert lines[0] == (
        "Hit@5: 0.3456 (before reranking 0.3100, +3.56 points; Recall@100 0.9000; 120 labelled questions)"
    )
    assert lines[-1] == "  WARNING: a stands in for b"


def test_hit_line_without_reranking() -> None:
    lines = list(hit_lines(evaluation(0.31, 50), evaluation(0.31, 50), False, [], ""))
    assert lines[0] == "Hit@5: 0.3100 (reranking off; Recall@100 0.9000 (of 50 candidates); 120 labelled questions)"


def test_hit_line_without_labels() -> None:
    lines = list(hit_lines(None, None, True, [], "data/raw/qrels.csv"))
    assert lines == ["Hit@5: not measured (no labels at data/raw/qrels.csv)"]
