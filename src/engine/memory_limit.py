"""Running out of memory is no failure: the batch is halved, and its size remembered."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from src.core.errors import UserError
from src.core.memory import first_line, means_out_of_memory
from src.engine.batches import TokenBatch

T = TypeVar("T")

log = logging.getLogger(__name__)


class DoesNotFitError(Exception):
    """Memory does not hold a single item.

    Attributes:
        row: where its result belongs.
        tokens: its length.
        device: whose memory it is.
    """

    def __init__(self, row: int, tokens: int, device: str) -> None:
        super().__init__(f"an item of {tokens} tokens does not fit into the memory of {device}")
        self.row = row
        self.tokens = tokens
        self.device = device


class PairTooLargeError(UserError):
    """Memory does not hold a single pair.

    Attributes:
        question, passage: its rows in the two tables.
        tokens: its length.
        device: whose memory it is.
    """

    def __init__(self, question: int, passage: int, tokens: int, device: str) -> None:
        super().__init__(f"question {question} and passage {passage}: a pair of {tokens} tokens does not fit {device}")
        self.question = question
        self.passage = passage
        self.tokens = tokens
        self.device = device


class MemoryLimit:
    """The largest batch that may run, in tokens with padding; lowered whenever memory does not hold one.

    Several threads may share one.

    Args:
        what: the model, for the log.
        device: whose memory it is, for the log.
    """

    def __init__(self, what: str, device: str) -> None:
        self.what = what
        self.device = device
        self.tokens: int | None = None
        self.lock = threading.Lock()

    def pieces(self, items: int, width: int) -> Iterator[slice]:
        """Cut a batch of ``items`` rows of ``width`` tokens into parts that keep to the limit, of one row at least."""
        size = items if self.tokens is None else max(1, min(items, self.tokens // max(1, width)))
        for start in range(0, items, size):
            yield slice(start, start + size)

    def results(self, batches: Iterable[TokenBatch], work: Callable[[TokenBatch], T]) -> Iterator[tuple[TokenBatch, T]]:
        """Every batch with what ``work`` makes of it; one that memory does not hold comes in smaller parts, in order.

        Raises:
            DoesNotFitError: where memory does not hold a single pair.
        """
        for batch in batches:
            waiting = [batch]
            while waiting:
                part = waiting.pop()
                pieces = list(self.pieces(*part.shape))
                if len(pieces) > 1:
                    waiting.extend(part.part(rows) for rows in reversed(pieces))
                    continue
                try:
                    result = work(part)
                except (MemoryError, RuntimeError) as error:
                    if not means_out_of_memory(error):
                        raise
                    reason = first_line(error)
                else:
                    yield part, result
                    continue
                # Only here is the error, and with it the tensors that its frames hold, gone.
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
                pairs, width = part.shape
                self.lower(int(part.rows[0]), pairs, width, reason)
                waiting.append(part)

    def lower(self, row: int, items: int, width: int, reason: str) -> None:
        """A batch did not fit: halve the limit, and say so.

        Args:
            row: of the first item, for the error.

        Raises:
            DoesNotFitError: where it was a single item.
        """
        if items == 1:
            raise DoesNotFitError(row, width, self.device)
        with self.lock:
            if self.tokens is not None and self.tokens < items * width:
                return  # another thread has lowered it since
            self.tokens = (items // 2) * width
        log.warning(
            "WARNING: %s ran out of memory on %s with %d x %d tokens (%s): %d at a time from now on.",
            self.what, self.device, items, width, reason[:100], items // 2,
        )  # fmt: skip
