"""How many threads a process takes: never more than its affinity or its container allows."""

import io
import os
from pathlib import Path

from _cli import set_up_threads, usable_cores

import faiss
import pytest
import torch
from joblib.externals.loky.backend import context

V2 = "/sys/fs/cgroup/cpu.max"
QUOTA, PERIOD = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, allowed: int, files: dict[str, str]) -> None:
    """A machine with ``cores`` cores, of which the affinity allows some, and with these control group files."""
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    exists = Path.exists
    monkeypatch.setattr(
        os.path, "exists", lambda path: path in files if str(path).startswith("/sys/fs") else exists(Path(path))
    )
    monkeypatch.setattr(context, "open", lambda path: io.StringIO(files[path]), raising=False)


@pytest.mark.parametrize(
    ("allowed", "files", "expected"),
    [
        (64, {}, 64),
        (6, {}, 6),
        (64, {V2: "max 100000\n"}, 64),
        (64, {V2: "400000 100000\n"}, 4),
        (64, {V2: "150000 100000\n"}, 2),
        (64, {V2: "20000 100000\n"}, 1),
        (2, {V2: "400000 100000\n"}, 2),
        (64, {QUOTA: "300000\n", PERIOD: "100000\n"}, 3),
        (64, {QUOTA: "-1\n", PERIOD: "100000\n"}, 64),
    ],
)
def test_cores_by_hand(monkeypatch: pytest.MonkeyPatch, allowed: int, files: dict[str, str], expected: int) -> None:
    machine(monkeypatch, 64, allowed, files)
    assert usable_cores() == expected


@pytest.mark.parametrize(("setting", "expected"), [(0, 3), (5, 5)])
def test_a_setting_goes_before_what_is_found(monkeypatch: pytest.MonkeyPatch, setting: int, expected: int) -> None:
    taken: list[int] = []
    machine(monkeypatch, 64, 64, {V2: "300000 100000\n"})
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(faiss, "omp_set_num_threads", taken.append)
    set_up_threads(setting)
    assert taken == [expected, expected]
