"""Where time and memory went: one line per stage."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

_MIB = 1024 * 1024


@dataclass
class Stage:
    """One stage of a run.

    Attributes:
        name: such as ``rerank``.
        seconds: wall time.
        items: what it worked on, for the throughput; 0 where that makes no sense.
        unit: what the items are.
        peak_mib: highest resident memory of the process while it ran.
        gpu_peak_mib: highest memory allocated on the fullest GPU while it ran; 0 without a GPU.
        tokens, flops: that a model has read, and the floating-point operations that takes without padding; 0 where
            nobody counted.
        arithmetic: the type that it multiplied in.
    """

    name: str
    seconds: float = 0.0
    items: int = 0
    unit: str = ""
    peak_mib: float = 0.0
    gpu_peak_mib: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    arithmetic: str = ""

    @property
    def items_per_second(self) -> float | None:
        """Throughput; ``None`` where there are no items, or no time has passed."""
        return self.items / self.seconds if self.items and self.seconds > 0 else None


class _PeakMemory:
    """Samples the resident memory of this process from a thread."""

    def __init__(self, interval: float = 0.05) -> None:
        self._process = psutil.Process()
        self._interval = interval
        self._stop = threading.Event()
        self.peak: int = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._process.memory_info().rss)
        return self.peak


@dataclass
class Profiler:
    """Collects stages; repeated names add up."""

    stages: list[Stage] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str, items: int = 0, unit: str = "") -> Iterator[Stage]:
        """Time a block; the yielded stage may be given ``items`` once they are known."""
        record = Stage(name, items=items, unit=unit)
        memory = _PeakMemory()
        gpu = _reset_gpu_peak()
        begin = time.perf_counter()
        try:
            yield record
        finally:
            record.seconds = time.perf_counter() - begin
            record.peak_mib = memory.stop() / _MIB
            record.gpu_peak_mib = _gpu_peak() / _MIB if gpu else 0.0
            self._add(record)

    def _add(self, record: Stage) -> None:
        for known in self.stages:
            if known.name == record.name:
                known.seconds += record.seconds
                known.items += record.items
                known.tokens += record.tokens
                known.flops += record.flops
                known.peak_mib = max(known.peak_mib, record.peak_mib)
                known.gpu_peak_mib = max(known.gpu_peak_mib, record.gpu_peak_mib)
                return
        self.stages.append(record)

    @property
    def total_seconds(self) -> float:
        """Wall time since the profiler was made."""
        return time.perf_counter() - self.started

    def table(self) -> list[str]:
        """Lines of a table: stage, wall time, share, throughput, peak memory."""
        total = max(self.total_seconds, 1e-9)
        lines = [f"{'stage':<14} {'seconds':>9} {'share':>7} {'throughput':>20} {'peak MiB':>9} {'GPU MiB':>8}"]
        for s in self.stages:
            rate = "-" if s.items_per_second is None else f"{s.items_per_second:,.1f} {s.unit}/s"
            lines.append(
                f"{s.name:<14} {s.seconds:>9.2f} {s.seconds / total:>6.1%} {rate:>20} {s.peak_mib:>9,.0f} "
                f"{s.gpu_peak_mib:>8,.0f}"
            )
        named = sum(s.seconds for s in self.stages)
        lines.append(f"{'other':<14} {total - named:>9.2f} {(total - named) / total:>6.1%}")
        lines.append(f"{'total':<14} {total:>9.2f}")
        return lines

    def peak_lines(self, peak: Callable[[str], float]) -> list[str]:
        """A line for every stage whose operations were counted: its share of what the machine can do.

        Args:
            peak: operations per second in a type such as ``float32``.
        """
        lines = []
        for s in self.stages:
            if s.flops and s.seconds > 0:
                most, reached = peak(s.arithmetic), s.flops / s.seconds
                lines.append(
                    f"{s.name}: {s.tokens / s.seconds:,.0f} tokens/s, {reached / 1e9:,.0f} GFLOPS, "
                    f"{reached / most:.0%} of this machine's measured {most / 1e9:,.0f} in {s.arithmetic}"
                )
        return lines

    def record(self) -> dict[str, Any]:
        """The table as plain data; ``share`` is of the whole run, from 0 to 1."""
        total = max(self.total_seconds, 1e-9)
        stages = [
            {**asdict(stage), "share": stage.seconds / total, "items_per_second": stage.items_per_second}
            for stage in self.stages
        ]
        return {"total_seconds": total, "stages": stages}


def _reset_gpu_peak() -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    torch.cuda.init()  # type: ignore[no-untyped-call]  # a card that is named by its number does not do it
    for number in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(number)
    return True


def _gpu_peak() -> int:
    import torch

    return max(int(torch.cuda.max_memory_allocated(number)) for number in range(torch.cuda.device_count()))
