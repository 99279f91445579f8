"""Several devices of one machine: each draws the next batch as soon as it is free."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from src.engine.batches import TokenBatch
from src.engine.lanes import serve_all
from src.engine.pair_backends import PairBackend


class SplitBackend:
    """Hands batches to backends, one thread each. Which one scores a pair makes no difference to the result.

    Args:
        backends: at least one, of the same model and arithmetic on different devices.
    """

    def __init__(self, backends: Sequence[PairBackend]) -> None:
        self.backends = tuple(backends)
        first = self.backends[0]
        self.name = f"{first.name} on {len(self.backends)} devices"
        self.arithmetic = first.arithmetic
        self.most_tokens = first.most_tokens
        self.tokens_per_pair = first.tokens_per_pair

    def load(self) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`."""
        for backend in self.backends:
            backend.load()

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`; the first error of a device stops all."""
        serve_all(batches, [partial(backend.run, scores=scores) for backend in self.backends])
