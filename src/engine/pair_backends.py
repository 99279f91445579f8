"""What a backend is: batches of joined pairs in, logits out."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from src.engine.batches import TokenBatch


class PairBackend(Protocol):
    """Runs a sequence classifier with one output.

    Attributes:
        name: for the log.
        most_tokens: tokens per batch beyond which the backend gets slower; ``None`` where it does not.
        tokens_per_pair: where a batch is bounded by tokens alone, how many each pair of the batch size stands for;
            ``None`` where pairs are bounded too.
    """

    name: str
    most_tokens: int | None
    tokens_per_pair: int | None

    @property
    def arithmetic(self) -> str:
        """The type that matrices are multiplied in, such as ``float32``."""
        ...

    def load(self) -> None:
        """Load the weights; called once, before the first batch.

        Raises:
            BackendUnavailableError: where it cannot run this model.
            UserError: where the model's files cannot be loaded.
        """
        ...

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """Write the logit of each pair into ``scores`` at the batch's rows; batches are drawn as they are needed.

        Raises:
            DoesNotFitError: where memory does not hold a single pair; a larger batch is halved until it fits.
        """
        ...
