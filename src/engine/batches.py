"""Which pairs run together: sorted by exact length, bounded by pairs and by tokens."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


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
