"""Progress bars: live on a terminal, a line now and then in a file or pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from src.core.types import Progress

PIPE_INTERVAL_SECONDS = 15.0


class _Lines:
    """Gives tqdm a file in which every refresh is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.finished = False

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        # tqdm draws a full bar once more when it is closed.
        if text and not self.finished:
            self.stream.write(text + "\n")
            self.finished = ": 100%|" in text

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def progress_bar(description: str, total: int, stream: TextIO | None = None) -> Iterator[Progress]:
    """A bar ``description: 100%|...| total/total [...]``; yields a function that takes the number of further items.

    Args:
        stream: where to draw; standard output by default.
    """
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        with tqdm(total=total, desc=description, file=stream, dynamic_ncols=True, leave=True) as bar:
            yield lambda count: _advance(bar, count)
        return
    with tqdm(
        total=total,
        desc=description,
        file=_Lines(stream),
        ncols=100,
        mininterval=PIPE_INTERVAL_SECONDS,
        maxinterval=PIPE_INTERVAL_SECONDS,
        miniters=1,
        delay=1e-9,
    ) as bar:
        yield lambda count: _advance(bar, count)


def _advance(bar: "tqdm[None]", count: int) -> None:
    bar.update(count)
