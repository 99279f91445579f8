"""How often unfinished work is saved."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_SHARE = 20


class Pace:
    """Saving is due so often that it takes no more than a twentieth of the time.

    Args:
        least_seconds: between two saves.
    """

    def __init__(self, least_seconds: float) -> None:
        self.least_seconds = least_seconds
        self._cost = 0.0
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved > max(self.least_seconds, _SHARE * self._cost)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Wrap a save."""
        start = time.monotonic()
        yield
        self._saved = time.monotonic()
        self._cost = self._saved - start
