"""MaxSim on a card: where a card reads the pairs, late interaction on the host would take as long as they do."""

import logging

import numpy as np
import torch
from torch import Tensor

from src.core.memory import first_line, means_out_of_memory
from src.core.types import Floats, Rows, TokenVectors

LOWEST = -1.0  # a passage without tokens is as unlike any question as can be
_PART = 1 << 16  # rows of vectors that are brought at a time

log = logging.getLogger(__name__)


class CardMaxSim:
    """Scores of passages by :func:`~src.stages.late_interaction.maxsim`, made on a card.

    The vectors of all passages stay there where they take at most half of what is free; else those of a question's
    passages are brought for each question.

    Args:
        passages: unit vectors of the passages' tokens.
        device: torch device.
        free_bytes: of the card's memory; ``None`` asks the card.
    """

    def __init__(self, passages: TokenVectors, device: torch.device, free_bytes: int | None = None) -> None:
        self.passages = passages
        self.device = device
        free = _free_on(device) if free_bytes is None else free_bytes
        self.held = self._brought() if passages.values.nbytes <= free // 2 else None

    def _brought(self) -> Tensor | None:
        values = self.passages.values
        try:
            held = torch.empty(values.shape, dtype=torch.float16, device=self.device)
            for start in range(0, len(values), _PART):
                part = np.array(values[start : start + _PART])  # a copy: torch does not take what is mapped read-only
                held[start : start + len(part)].copy_(torch.from_numpy(part))
        except (MemoryError, RuntimeError) as error:
            if not means_out_of_memory(error):
                raise
            log.info("Token vectors do not stay on %s (%s).", self.device, first_line(error)[:100])
            return None
        return held

    def __call__(self, question: Floats, rows: Rows) -> Floats:
        """See :func:`~src.stages.late_interaction.maxsim`."""
        if not len(question) or not len(rows):
            return np.full(len(rows), LOWEST, dtype=np.float32)
        scores: Floats = self.scores(question, rows).cpu().numpy()
        return scores

    def scores(self, question: Floats, rows: Rows) -> Tensor:
        """The same on the card, of a question that has tokens."""
        starts, ends = self.passages.offsets[rows], self.passages.offsets[rows + 1]
        total = int((ends - starts).sum())
        spans = torch.from_numpy(np.stack([starts, ends - starts])).to(self.device)
        first, lengths = spans.unbind()
        owner = torch.repeat_interleave(lengths, output_size=total)
        if self.held is None:
            parts = [self.passages[row] for row in rows.tolist()]
            tokens = torch.from_numpy(np.concatenate(parts)).to(self.device)
        else:
            before = torch.cumsum(lengths, 0) - lengths
            inside = torch.arange(total, device=self.device) - before.index_select(0, owner)
            tokens = self.held.index_select(0, first.index_select(0, owner) + inside)
        near = tokens.float() @ torch.from_numpy(question).to(self.device).T
        best = torch.full((len(rows), near.shape[1]), LOWEST, device=self.device)
        best = best.scatter_reduce(0, owner.unsqueeze(1).expand_as(near), near, "amax", include_self=False)
        return best.mean(1)


def _free_on(device: torch.device) -> int:
    """Bytes of a card's memory that can be had, what torch keeps for later among them."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)
