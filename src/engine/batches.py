"""Texts or pairs that run together: sorted by exact length, bounded by number and by tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenBatch:
    """Texts or joined pairs of similar length, padded on the right.

    Attributes:
        rows: int64 [B], where their results belong.
        ids: int64 [B, L] token ids.
        mask: int64 [B, L], 1 where there is a token.
        types: int64 [B, L] token types; ``None`` where the model takes none.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64] | None = None

    @property
    def inputs(self) -> dict[str, npt.NDArray[np.int64]]:
        """By the names that Hugging Face models give them."""
        types = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.ids, "attention_mask": self.mask, **types}

    def part(self, rows: slice) -> "TokenBatch":
        """Some of its rows, with no more padding than they need."""
        width = int(self.mask[rows].sum(axis=1).max())
        types = None if self.types is None else self.types[rows, :width]
        return TokenBatch(self.rows[rows], self.ids[rows, :width], self.mask[rows, :width], types)


def token_budget_batches(
    lengths: npt.NDArray[np.int64], max_items: int, max_tokens: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Split items into batches of similar length, longest first, so that memory peaks at the start.

    Args:
        lengths: int64 [P], tokens per item.
        max_items: most items in a batch.
        max_tokens: most tokens in a batch with its padding (items x longest); a single longer item runs alone.

    Yields:
        int64 arrays of item numbers; each item comes exactly once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(max_items, max_tokens // longest))
        yield order[start : start + size]
        start += size
