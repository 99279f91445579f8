"""What a machine has, what a run needs, and how long it may take: findings, one line each."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch

import faiss  # isort: skip

from src.core.errors import UserError
from src.engine.devices import pick_device
from src.engine.driver import nvidia_driver, why_no_gpu

Level = Literal["ok", "note", "FAIL"]

_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        level: ``ok``; ``note``: worth knowing, the run works; ``FAIL``: the run would end with an error.
        what: what was looked at.
        detail: what was found, and the fix where one is needed.
    """

    level: Level
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what:<22} {self.detail}"


def machine_findings(wanted: str) -> Iterator[Finding]:
    """Python, torch, CUDA, driver and faiss build.

    Args:
        wanted: device of the settings.
    """
    yield Finding("ok", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    seen = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU that torch can use"
    yield Finding("ok", "torch", f"{torch.__version__}, {cuda}; {seen}; {torch.get_num_threads()} CPU threads")
    driver = nvidia_driver()
    if driver is not None:
        usable = torch.cuda.is_available()
        yield Finding("ok" if usable else "note", "GPU driver", driver.text if usable else why_no_gpu(driver))
    gpu_build = hasattr(faiss, "StandardGpuResources")
    yield Finding("ok", "faiss", f"{faiss.__version__}, {'GPU' if gpu_build else 'CPU'} build")
    try:
        yield Finding("ok", "device", pick_device(wanted))
    except UserError as error:
        yield Finding("FAIL", "device", str(error))


def space_findings(folder: Path, disk_bytes: int, memory_bytes: int) -> Iterator[Finding]:
    """Free disk and memory against what the run needs.

    Args:
        folder: the data folder; the nearest parent that exists is asked.
    """
    place = folder
    while not place.exists():
        place = place.parent
    for what, need, free in (
        ("disk", disk_bytes, shutil.disk_usage(place).free),
        ("memory", memory_bytes, psutil.virtual_memory().available),
    ):
        enough = free >= need
        fix = "" if enough else ". Free some, or lower LATE_INTERACTION_GB and the search depths"
        line = f"about {need / _GIB:.1f} GiB needed, {free / _GIB:.1f} GiB free{fix}"
        yield Finding("ok" if enough else "FAIL", what, line)


@dataclass(frozen=True)
class Speed:
    """A measured rate.

    Attributes:
        units_per_second: such as tokens.
        seconds: how long was measured.
    """

    units_per_second: float
    seconds: float


def measure(
    work: Callable[[npt.NDArray[np.int64]], None], sizes: Sequence[int], batch: int, seconds: float, seed: int = 0
) -> Speed:
    """How many units (tokens) a second ``work`` gets through.

    Args:
        work: does the items of the given numbers.
        sizes: units of each item.
        batch: items per call; the first call only warms up.
        seconds: how long to measure; at least one call is timed.
    """
    order = np.random.default_rng(seed).permutation(len(sizes))
    calls = [order[start : start + batch] for start in range(0, len(order), batch)]
    work(calls[0])
    begin, done, place = time.perf_counter(), 0, 0
    while True:
        rows = calls[place % len(calls)]
        work(rows)
        done += int(sum(sizes[row] for row in rows.tolist()))
        place += 1
        taken = time.perf_counter() - begin
        if taken >= seconds:
            return Speed(done / taken, taken)


def duration(seconds: float) -> str:
    """``45 s``, ``6 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder, 0 where it is not there."""
    return sum((Path(root) / name).stat().st_size for root, _, names in os.walk(folder) for name in names)
