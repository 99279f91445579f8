"""Late interaction: every token of a question finds its nearest token of a passage (MaxSim; Khattab & Zaharia 2020).

The vectors are those of the bi-encoder's own last layer: nothing is trained for it, and a passage costs one forward
pass, not one per pair.
"""

from collections.abc import Callable

import numpy as np
import torch

from src.core.types import PAD, Floats, Progress, Rows, TokenVectors
from src.engine.card_maxsim import LOWEST, CardMaxSim

MaxSim = Callable[[Floats, Rows], Floats]


def maxsim_over(passages: TokenVectors, device: str) -> MaxSim:
    """What takes a question's vectors and rows of passages to :func:`maxsim`; on a card it is made there."""
    if device.startswith("cuda"):
        return CardMaxSim(passages, torch.device(device))
    return lambda question, rows: maxsim(question, passages, rows)


def maxsim(question: Floats, passages: TokenVectors, rows: Rows) -> Floats:
    """Mean over the question's tokens of the largest cosine to a token of the passage.

    Args:
        question: float32 [q, D], unit vectors.
        passages: unit vectors of the passages' tokens.
        rows: int32 [P], rows of ``passages``.

    Returns:
        float32 [P] in [-1, 1]; -1 where question or passage has no token.
    """
    scores = np.full(len(rows), LOWEST, dtype=np.float32)
    parts = [passages[row] for row in rows.tolist()]
    filled = np.array([len(part) > 0 for part in parts], dtype=bool)
    if not len(question) or not filled.any():
        return scores
    starts = np.cumsum([0] + [len(part) for part in parts if len(part)])[:-1]
    # Torch widens 16 bits nine times as fast as numpy does, and that was most of the work.
    tokens = torch.from_numpy(np.concatenate([part for part in parts if len(part)])).float().numpy()
    nearest = np.maximum.reduceat(tokens @ question.T, starts, axis=0)
    scores[filled] = nearest.mean(axis=1)
    return scores


def late_scores(questions: TokenVectors, score: MaxSim, rows: Rows, progress: Progress | None = None) -> Floats:
    """Score candidates by their best passage.

    Args:
        questions: Q questions.
        score: of :func:`maxsim_over`.
        rows: int32 [Q, K, m], rows of the passages; -1 where there is none.
        progress: called with the number of further questions done.

    Returns:
        float32 [Q, K]; -1 where a candidate has no passage.
    """
    scores = np.full(rows.shape[:2], LOWEST, dtype=np.float32)
    for i in range(len(rows)):
        present = rows[i] != PAD
        unique, inverse = np.unique(rows[i][present], return_inverse=True)
        values = np.full(rows[i].shape, LOWEST, dtype=np.float32)
        values[present] = score(questions[i].astype(np.float32), unique)[inverse]
        scores[i] = values.max(axis=1)
        if progress is not None:
            progress(1)
    return scores


def late_scores_in_blocks(
    questions: TokenVectors,
    rows: Rows,
    encode: Callable[[Rows], TokenVectors],
    most_passages: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Floats:
    """The same where the vectors of all passages are not at hand: those of candidates are made block by block.

    Args:
        encode: int32 [n] rows of passages -> their token vectors, in that order.
        most_passages: passages whose vectors may be in memory at a time; one question may need more.
        device: torch device that compares.
        progress: called with the number of further questions done.
    """
    scores = np.zeros(rows.shape[:2], dtype=np.float32)
    start = 0
    while start < len(rows):
        needed: set[int] = set()
        stop = start
        while stop < len(rows):
            more = set(rows[stop][rows[stop] != PAD].tolist())
            if stop > start and len(needed | more) > most_passages:
                break
            needed |= more
            stop += 1
        chosen = np.array(sorted(needed), dtype=np.int32)
        local = np.where(rows[start:stop] == PAD, PAD, np.searchsorted(chosen, rows[start:stop])).astype(np.int32)
        part = TokenVectors(questions.values, questions.offsets[start : stop + 1])
        scores[start:stop] = late_scores(part, maxsim_over(encode(chosen), device), local, progress)
        start = stop
    return scores
