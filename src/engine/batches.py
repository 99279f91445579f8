"""Texts or pairs that run together: sorted by exact length, bounded by number and by tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt

from src.core.types import offsets_of


class Tokens(Protocol):
    """Tokens of B texts or joined pairs; text i has those from ``offsets[i]`` to ``offsets[i + 1]``."""

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64 [B + 1]."""
        ...

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """int32 [T]."""
        ...

    @property
    def types(self) -> npt.NDArray[np.int32] | None:
        """Token types, int32 [T]; ``None`` where the model takes none."""
        ...

    def part(self, rows: slice) -> "Tokens":
        """Some of the texts, next to each other."""
        ...


@dataclass(frozen=True)
class PlainTokens:
    """Tokens that are there; see :class:`Tokens`."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    types: npt.NDArray[np.int32] | None = None

    def part(self, rows: slice) -> "PlainTokens":
        """See :class:`Tokens`."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        inside = slice(int(offsets[0]), int(offsets[-1]))
        return PlainTokens(self.ids[inside], offsets - offsets[0], None if self.types is None else self.types[inside])


@dataclass(frozen=True)
class TokenBatch:
    """Texts or joined pairs of similar length; their ids, and padded rows, are made where they are asked for.

    Attributes:
        rows: int64 [B], where their results belong.
        source: what their tokens are, or how to join them.
        pad: id that fills up short rows.
    """

    rows: npt.NDArray[np.int64]
    source: Tokens
    pad: int = 0

    @classmethod
    def of_rows(cls, rows: npt.NDArray[np.int64], texts: Sequence[Sequence[int]], pad: int) -> "TokenBatch":
        """Texts as lists of token ids."""
        offsets = offsets_of([len(text) for text in texts])
        ids = np.fromiter(chain.from_iterable(texts), np.int32, int(offsets[-1]))
        return cls(rows, PlainTokens(ids, offsets), pad)

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Token ids of all of them, int32 [T]."""
        return self.source.ids

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64 [B + 1]; text i has the tokens ``offsets[i]`` to ``offsets[i + 1]``."""
        return self.source.offsets

    @property
    def kinds(self) -> npt.NDArray[np.int32] | None:
        """Token types, int32 [T]; ``None`` where the model takes none."""
        return self.source.types

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
            np.arange(int(self.offsets[-1])) - np.repeat(self.offsets[:-1], self.lengths)
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
        return TokenBatch(self.rows[first:last], self.source.part(slice(first, last)), self.pad)


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
