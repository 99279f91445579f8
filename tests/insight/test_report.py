from src.insight.report import hit_lines
from src.quality.evaluate import Evaluation
from src.quality.fit import BlendFit
from src.quality.statistics import Interval

NAMES = ("Hit@1", "Hit@5", "Hit@10", "MRR@10", "nDCG@10", "Recall@20", "Recall@50", "Recall@100")


def evaluation(hit: float, depth: int = 100) -> Evaluation:
    return Evaluation(dict.fromkeys(NAMES, 0.5) | {"Hit@5": hit, "Recall@100": 0.9}, 6977, depth)


def test_before_and_after() -> None:
    lines = list(hit_lines(evaluation(0.3), evaluation(0.3456), True, ["'a' stands in for 'b'"], ""))
    assert lines[0] == (
        "Hit@5: 0.3456 (before reranking 0.3000, +4.56 points; Recall@100 0.9000; 6,977 labelled questions)"
    )
    assert lines[-1] == "  WARNING: 'a' stands in for 'b'"


def test_reranking_off() -> None:
    lines = list(hit_lines(evaluation(0.3), evaluation(0.3), False, [], ""))
    assert lines[0] == "Hit@5: 0.3000 (reranking off; Recall@100 0.9000; 6,977 labelled questions)"


def test_fewer_candidates_than_a_hundred_are_told() -> None:
    lines = list(hit_lines(evaluation(0.3, depth=20), evaluation(0.3, depth=20), False, [], ""))
    assert "Recall@100 0.9000 (of 20 candidates)" in lines[0]


def test_nothing_is_made_up_without_labels() -> None:
    assert list(hit_lines(None, None, True, [], "data/raw/qrels.csv")) == [
        "Hit@5: not measured (no labels at data/raw/qrels.csv)"
    ]


def test_a_fitted_blend_says_what_is_in_force() -> None:
    folds = (0.5, 0.5, 0.45, 0.5, 0.5)
    used = BlendFit(0.5, 0.35, folds, 0.3, 0.36, Interval(0.06, 0.02, 0.1))
    assert list(hit_lines(evaluation(0.25), evaluation(0.36), True, [], "", used))[-1] == (
        "  Blend weight fitted: 0.5 (without each fold: 0.5, 0.5, 0.45, 0.5, 0.5). Hit@5 on questions that did not "
        "choose their weight, over the configured 0.35: 0.3000 -> 0.3600, +6.00 points, 95 % interval [+2.00, +10.00]: "
        "shown. Each labelled question is answered with the weight fitted without it, also in the submission"
    )
    left = BlendFit(0.5, 0.35, folds, 0.3, 0.31, Interval(0.01, -0.01, 0.03))
    assert list(hit_lines(evaluation(0.25), evaluation(0.3), True, [], "", left))[-1].endswith(
        "not shown: the interval includes 0. The configured weight stays in force"
    )
