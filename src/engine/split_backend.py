"""Several devices of one machine: each draws the next batch as soon as it is free."""

import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from src.engine.pair_backends import PairBackend, PairBatch


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

    def run(self, batches: Iterable[PairBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`; the first error of a device stops all."""
        shared = _Shared(iter(batches))
        threads = [threading.Thread(target=shared.serve, args=(backend, scores)) for backend in self.backends[1:]]
        for thread in threads:
            thread.start()
        shared.serve(self.backends[0], scores)
        for thread in threads:
            thread.join()
        if shared.errors:
            raise shared.errors[0]


class _Shared:
    """One iterator that several threads draw from."""

    def __init__(self, batches: Iterator[PairBatch]) -> None:
        self.batches = batches
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []

    def draw(self) -> Iterator[PairBatch]:
        while True:
            with self.lock:
                batch = None if self.errors else next(self.batches, None)
            if batch is None:
                return
            yield batch

    def serve(self, backend: PairBackend, scores: npt.NDArray[np.float32]) -> None:
        try:
            backend.run(self.draw(), scores)
        except BaseException as error:
            # Raised again in the thread that asked; the other devices stop at their next batch.
            self.errors.append(error)
