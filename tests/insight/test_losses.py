import pytest

from src.insight.losses import MEANING, ORDER, where_lost


@pytest.mark.parametrize(
    ("indices", "fused", "candidate", "final", "lost"),
    [
        ([None, 3], 7, 6, 5, "found"),
        ([1, 1], 2, 2, 6, "reranker"),
        ([1, 1], 4, 8, 9, "late interaction"),
        ([1, 1], 8, 5, 6, "reranker"),
        ([40, 50], 30, 20, 10, "too low"),
        ([100, None], None, None, None, "fusion"),
        ([101, None], None, None, None, "stage one"),
        ([None, None], None, None, None, "stage one"),
    ],
)
def test_by_hand(
    indices: list[int | None], fused: int | None, candidate: int | None, final: int | None, lost: str
) -> None:
    assert where_lost(indices, fused, candidate, final, depth=100, top=5) == lost


def test_every_end_has_words() -> None:
    assert set(ORDER) == set(MEANING)
    assert ORDER[0] == "found"
