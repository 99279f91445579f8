"""Several workers that draw from one iterator: the cards of a machine, or the cores of a CPU."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def serve_all(items: Iterable[T], workers: Sequence[Callable[[Iterator[T]], None]]) -> None:
    """Hand items to workers, each in a thread of its own, the first in that of the caller; which one gets an item is
    left to chance.

    Args:
        items: drawn one at a time, by one thread at a time, as they are needed.
        workers: at least one; each takes what it draws until there is no more.

    Raises:
        BaseException: the first error of a worker; the others stop at their next item.
    """
    shared = _Shared(iter(items))
    threads = [threading.Thread(target=shared.serve, args=(worker,)) for worker in workers[1:]]
    for thread in threads:
        thread.start()
    shared.serve(workers[0])
    for thread in threads:
        thread.join()
    if shared.errors:
        raise shared.errors[0]


class _Shared(Generic[T]):
    def __init__(self, items: Iterator[T]) -> None:
        self.items = items
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []

    def draw(self) -> Iterator[T]:
        while True:
            with self.lock:
                if self.errors:
                    return
                try:
                    item = next(self.items)
                except StopIteration:
                    return
            yield item

    def serve(self, worker: Callable[[Iterator[T]], None]) -> None:
        try:
            worker(self.draw())
        except BaseException as error:
            self.errors.append(error)
