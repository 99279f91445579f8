"""Where a right page was lost on its way through the stages."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from src.core.types import Run

Lost = Literal[
    "found", "reranker", "late interaction", "too low", "fusion", "stage one", "empty page", "not in the corpus"
]
# The nearer to the first pages, the earlier: of several right pages, the first one speaks for the question.
ORDER: tuple[Lost, ...] = (
    "found", "reranker", "late interaction", "too low", "fusion", "stage one", "empty page", "not in the corpus",
)  # fmt: skip
MEANING: dict[Lost, str] = {
    "found": "found",
    "reranker": "dropped by the reranker",
    "late interaction": "dropped by late interaction",
    "too low": "among the candidates, but no stage lifted it",
    "fusion": "pushed out by the fusion",
    "stage one": "not in the top K of any index",
    "empty page": "the page has neither title nor text, so nothing was indexed",
    "not in the corpus": "not in the corpus",
}


def where_lost(
    indices: Sequence[int | None], fused: int | None, candidate: int | None, final: int | None, depth: int, top: int
) -> Lost:
    """The stage that lost a page, by its ranks (from 1; ``None`` where it is not in the list).

    Args:
        indices: in each single index.
        fused: after the fusion, before late interaction.
        candidate: in stage one's final order, which the reranker begins with.
        final: in the end; equal to ``candidate`` where reranking is off.
        depth: K, the number of candidates.
        top: pages that are handed in.
    """
    if final is not None and final <= top:
        return "found"
    if candidate is None:
        return "fusion" if any(rank is not None and rank <= depth for rank in indices) else "stage one"
    if candidate <= top:
        return "reranker"
    return "late interaction" if fused is not None and fused <= top else "too low"


def rank_in(run: Run, question: int, row: int) -> int | None:
    """Rank (from 1) of a document in the list of a question; ``None`` where it is not in it."""
    places = np.flatnonzero(run.doc_rows[question] == row)
    return int(places[0]) + 1 if len(places) else None
