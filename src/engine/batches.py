"""Texts or pairs that run together: sorted by exact length, bounded by number and by tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from src.core.types import offsets_of


@dataclass(frozen=True)
class TokenBatch:
    """Texts or joined pairs of similar length, one after another; padded rows are made where they are asked for.

    Attributes:
        rows: int64 [B], where their results belong.
        tokens: int32 [T] token ids of all of them.
        offsets: int64 [B + 1]; text i has the tokens ``offsets[i]`` to ``offsets[i + 1]``.
        kinds: int32 [T] token types; ``None`` where the model takes none.
        pad: id that fills up short rows.
    """

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int32] | None = None
    pad: int = 0

    @classmethod
    def of_rows(cls, rows: npt.NDArray[np.int64], texts: Sequence[Sequence[int]], pad: int) -> "TokenBatch":
        """Texts as lists of token ids."""
        offsets = offsets_of([len(text) for text in texts])
        return cls(rows, np.fromiter(chain.from_iterable(texts), np.int32, int(offsets[-1])), offsets, None, pad)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, int64 [B]."""
        return np.diff(self.offsets)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width of the padded form, (B, L)."""
        return len(self.rows), int(self.lengths.max(initial=0))

    @cached_property
    def places(self) -> npt.NDArray[np.int32]:
        """Place of each token in its text, from 0, int32 [T]."""
        places: npt.NDArray[np.int32] = (
            np.arange(len(self.tokens)) - np.repeat(self.offsets[:-1], self.lengths)
        ).astype(np.int32)
        return places

    @cached_property
    def mask(self) -> npt.NDArray[np.int64]:
        """1 where the padded form has a token, int64 [B, L]."""
        return (np.arange(self.shape[1]) < self.lengths[:, None]).astype(np.int64)

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """Padded on the right, int64 [B, L]."""
        return self._padded(self.tokens, self.pad)

    @cached_property
    def types(self) -> npt.NDArray[np.int64] | None:
        """Token types, padded, int64 [B, L]; ``None`` where the model takes none."""
        return None if self.kinds is None else self._padded(self.kinds, 0)

    def _padded(self, values: npt.NDArray[np.int32], filler: int) -> npt.NDArray[np.int64]:
        padded = np.full(self.shape, filler, dtype=np.int64)
        padded[self.mask.astype(bool)] = values
        return padded

    @property
    def inputs(self) -> dict[str, npt.NDArray[np.int64]]:
        """Padded, by the names that Hugging Face models give them."""
        types = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.ids, "attention_mask": self.mask, **types}

    def part(self, rows: slice) -> "TokenBatch":
        """Some of its rows, next to each other."""
        first, last, _ = rows.indices(len(self.rows))
        inside = slice(int(self.offsets[first]), int(self.offsets[last]))
        kinds = None if self.kinds is None else self.kinds[inside]
        offsets = self.offsets[first : last + 1] - self.offsets[first]
        return TokenBatch(self.rows[rows], self.tokens[inside], offsets, kinds, self.pad)


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
