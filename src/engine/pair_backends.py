"""What a backend is: batches of joined pairs in, logits out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PairBatch:
    """Joined pairs of similar length, padded on the right.

    Attributes:
        rows: int64 [B], where their scores belong.
        ids: int64 [B, L] token ids.
        mask: int64 [B, L], 1 where there is a token.
        types: int64 [B, L] token types; ``None`` where the model takes none.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64] | None

    @property
    def inputs(self) -> dict[str, npt.NDArray[np.int64]]:
        """By the names that Hugging Face models give them."""
        types = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.ids, "attention_mask": self.mask, **types}

    def part(self, rows: slice) -> "PairBatch":
        """Some of its pairs, with no more padding than they need."""
        width = int(self.mask[rows].sum(axis=1).max())
        types = None if self.types is None else self.types[rows, :width]
        return PairBatch(self.rows[rows], self.ids[rows, :width], self.mask[rows, :width], types)


class PairBackend(Protocol):
    """Runs a sequence classifier with one output.

    Attributes:
        name: for the log.
        arithmetic: the type that matrices are multiplied in, such as ``float32``.
        most_tokens: tokens per batch beyond which the backend gets slower; ``None`` where it does not.
        tokens_per_pair: where a batch is bounded by tokens alone, how many each pair of the batch size stands for;
            ``None`` where pairs are bounded too.
    """

    name: str
    arithmetic: str
    most_tokens: int | None
    tokens_per_pair: int | None

    def load(self) -> None:
        """Load the weights; called once, before the first batch.

        Raises:
            BackendUnavailableError: where it cannot run this model.
            UserError: where the model's files cannot be loaded.
        """
        ...

    def run(self, batches: Iterable[PairBatch], scores: npt.NDArray[np.float32]) -> None:
        """Write the logit of each pair into ``scores`` at the batch's rows; batches are drawn as they are needed.

        Raises:
            DoesNotFitError: where memory does not hold a single pair; a larger batch is halved until it fits.
        """
        ...
