import itertools
import threading
from collections.abc import Iterator

import pytest

from src.engine.lanes import serve_all
from src.engine.openvino_graphs import lanes_of


def test_every_item_goes_to_one_worker() -> None:
    taken: list[list[int]] = [[], [], []]
    meeting = threading.Barrier(3)

    def worker(number: int, drawn: Iterator[int]) -> None:
        for place, item in enumerate(drawn):
            if place == 0:
                meeting.wait(10)  # all three are at work before the second item of any
            taken[number].append(item)

    serve_all(range(100), [lambda drawn, number=number: worker(number, drawn) for number in range(3)])  # type: ignore[misc]
    assert sorted(item for items in taken for item in items) == list(range(100))
    assert all(taken)


def test_the_first_error_stops_all() -> None:
    def breaks(drawn: Iterator[int]) -> None:
        next(drawn)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        serve_all(itertools.count(), [list, breaks])  # the other would go on for ever


def test_an_error_of_the_items_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        serve_all(items(), [list, list])


@pytest.mark.parametrize(
    ("threads", "model_bytes", "lanes"),
    [
        (2, 470_000_000, 1),
        (8, 470_000_000, 1),
        (16, 470_000_000, 2),
        (64, 470_000_000, 4),  # 2 GB of copies
        (64, 2_300_000_000, 1),
        (64, 40_000, 8),
    ],
)
def test_lanes(threads: int, model_bytes: int, lanes: int) -> None:
    assert lanes_of(threads, model_bytes) == lanes
