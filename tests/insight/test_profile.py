import time

import pytest
import torch

from src.insight.profile import Profiler, Stage


def test_stages_of_one_name_add_up() -> None:
    profiler = Profiler()
    for count in (3, 4):
        with profiler.stage("load", count, "files"):
            time.sleep(0.01)
    (stage,) = profiler.stages
    assert (stage.items, stage.unit) == (7, "files")
    assert stage.seconds >= 0.02
    assert stage.peak_mib > 10


def test_items_may_be_told_inside_and_failures_are_kept() -> None:
    profiler = Profiler()
    try:
        with profiler.stage("tokenise") as stage:
            stage.items = 5
            raise RuntimeError
    except RuntimeError:
        pass
    assert profiler.stages[0].items == 5


def test_table_by_hand() -> None:
    profiler = Profiler(started=time.perf_counter() - 10.0)
    profiler.stages.append(Stage("rerank", seconds=5.0, items=1000, unit="pairs", peak_mib=1234.4))
    head, rerank, other, total = (line.split() for line in profiler.table())
    assert head[:2] == ["stage", "seconds"]
    assert rerank == ["rerank", "5.00", "50.0%", "200.0", "pairs/s", "1,234", "0"]
    assert (other[0], other[2]) == ("other", "50.0%")
    assert total == ["total", "10.00"]


def test_record_has_what_the_table_has() -> None:
    profiler = Profiler(started=time.perf_counter() - 10.0)
    profiler.stages.append(Stage("rerank", seconds=5.0, items=1000, unit="pairs", tokens=7))
    profiler.stages.append(Stage("load", seconds=2.5))
    found = profiler.record()
    rerank, load = found["stages"]
    assert found["total_seconds"] == pytest.approx(10.0, abs=0.5)
    assert (rerank["share"], load["share"]) == pytest.approx((0.5, 0.25), abs=0.03)
    assert (rerank["items_per_second"], load["items_per_second"]) == (200.0, None)
    assert (rerank["name"], rerank["unit"], rerank["tokens"]) == ("rerank", "pairs", 7)


def test_memory_peak_is_seen_although_it_is_freed() -> None:
    profiler = Profiler()
    with profiler.stage("big"):
        block = bytearray(200 * 1024 * 1024)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.2)
        del block
    with profiler.stage("small"):
        pass
    assert profiler.stages[0].peak_mib >= profiler.stages[1].peak_mib + 100


def test_gpu_memory_is_that_of_the_fullest_card(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {0: 0, 1: 300 << 20, 2: 200 << 20}
    done: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", done.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    profiler = Profiler()
    with profiler.stage("rerank"):
        pass
    assert done == ["init", 0, 1, 2]
    assert profiler.stages[0].gpu_peak_mib == 300.0
