"""Several devices of one machine: each draws the next batch as soon as it is free."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from src.core.memory import first_line, means_out_of_memory
from src.engine.batches import TokenBatch
from src.engine.lanes import serve_all
from src.engine.openvino_graphs import BackendUnavailableError
from src.engine.pair_backends import PairBackend

_WIDEST = 4  # times the batch of one device

log = logging.getLogger(__name__)


class SplitBackend:
    """Hands batches to backends, one thread each. Which one scores a pair makes no difference to the result.

    Args:
        backends: at least one, of the same model and arithmetic on different devices.
    """

    def __init__(self, backends: Sequence[PairBackend]) -> None:
        self.backends = tuple(backends)
        first = self.backends[0]
        self.name = f"{first.name} on {len(self.backends)} devices"
        self.most_tokens = first.most_tokens
        # One thread of Python at a time feeds the devices: more of them get larger batches, so that none has to wait.
        wider = min(len(self.backends), _WIDEST)
        self.tokens_per_pair = None if first.tokens_per_pair is None else wider * first.tokens_per_pair

    @property
    def arithmetic(self) -> str:
        """That of the devices; where one had to leave float16, its scores are not kept as those of float16."""
        return max((backend.arithmetic for backend in self.backends), key=lambda name: name == "bfloat16")

    def load(self) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`; a device that cannot run the model is left out.

        Raises:
            BackendUnavailableError: where none can run it.
            MemoryError: where none has room for it.
        """
        ready: list[PairBackend] = []
        reasons: list[str] = []
        full = 0
        for backend in self.backends:
            try:
                backend.load()
            except BackendUnavailableError as error:
                reasons.append(str(error))
            except (MemoryError, RuntimeError) as error:
                if not means_out_of_memory(error):
                    raise
                reasons.append(first_line(error))
                full += 1
            else:
                ready.append(backend)
        if not ready:
            raise MemoryError(reasons[-1]) if full == len(reasons) else BackendUnavailableError("; ".join(reasons))
        for reason in reasons:
            log.warning("WARNING: one of %d devices is left out: %s", len(self.backends), reason)
        self.backends = tuple(ready)
        self.name = f"{ready[0].name} on {len(ready)} device{'' if len(ready) == 1 else 's'}"

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`; the first error of a device stops all."""
        serve_all(batches, [partial(backend.run, scores=scores) for backend in self.backends])
