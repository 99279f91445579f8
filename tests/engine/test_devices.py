import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.core.errors import UserError
from src.engine import devices, driver
from src.engine.devices import pick_device
from src.insight.doctor import machine_findings

HEADER = "| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: %s     |"
ROW = "NVIDIA A100-SXM4-80GB, 550.54.14, 80000 MiB"

Cards = Callable[..., None]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cards:
    """A machine with that many cards for torch, a build of torch, and an nvidia-smi that speaks of a CUDA version."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(driver, "_MODULE", tmp_path / "no driver")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices._tell_why_no_gpu.cache_clear()

    def make(count: int, built: str | None = "13.0", cuda: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
        monkeypatch.setattr(torch.version, "cuda", built)
        if cuda is not None:
            program = tmp_path / "bin" / "nvidia-smi"
            program.parent.mkdir()
            program.write_text(f'#!/bin/sh\n[ "$#" = 0 ] && echo "{HEADER % cuda}" || echo "{ROW}"\n')
            program.chmod(0o755)

    return make


def test_auto_takes_the_card(cards: Cards, caplog: pytest.LogCaptureFixture) -> None:
    cards(2, cuda="13.0")
    assert pick_device("auto") == "cuda"
    assert not caplog.records


@pytest.mark.parametrize(
    ("built", "cuda", "parts"),
    [
        ("13.0", "12.4", [ROW, "CUDA 12.4", "is built for CUDA 13.0 and needs a driver for CUDA 13.", "newer driver",
                          "https://download.pytorch.org/whl/"]),
        (None, "12.4", [ROW, "is a build without CUDA", "https://download.pytorch.org/whl/"]),
        ("12.6", "13.0", ["which fits the driver, but sees no device", "--gpus all"]),
    ],
)  # fmt: skip
def test_a_card_that_torch_cannot_use_is_one_warning(
    cards: Cards, caplog: pytest.LogCaptureFixture, built: str | None, cuda: str, parts: list[str]
) -> None:
    cards(0, built, cuda)
    assert [pick_device("auto"), pick_device("auto")] == ["cpu", "cpu"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "\n" not in record.message
    assert [part for part in parts if part not in record.message] == []
    (found,) = [finding for finding in machine_findings("auto") if finding.what == "GPU driver"]
    assert found.level == "note"
    assert found.detail in record.message
    assert "requirements-gpu" not in found.detail


def test_a_hidden_card(cards: Cards, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    cards(0, "13.0", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pick_device("auto") == "cpu"
    assert "CUDA_VISIBLE_DEVICES = '' hides it" in caplog.records[0].message


def test_a_driver_without_nvidia_smi(
    cards: Cards, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards(0)
    (tmp_path / "version").write_text("NVRM version")
    monkeypatch.setattr(driver, "_MODULE", tmp_path / "version")
    assert pick_device("auto") == "cpu"
    assert "an NVIDIA driver, but no nvidia-smi" in caplog.records[0].message


def test_a_machine_without_a_card_is_no_warning(cards: Cards, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cards(0)
    assert pick_device("auto") == "cpu"
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "torch is built for CUDA 13.0, but there is no NVIDIA driver here: the CPU is used.")
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_a_named_device_is_kept(cards: Cards, device: str) -> None:
    cards(2)
    assert pick_device(device) == device


@pytest.mark.parametrize(
    ("count", "device", "complaint"),
    [
        (2, "cuda:7", r"DEVICE = 'cuda:7': torch sees 2 GPU\(s\), cuda:0 to cuda:1\. Name one of them"),
        (0, "cuda", r"DEVICE = 'cuda': torch sees no GPU, and there is no NVIDIA driver\. Or set DEVICE = 'auto'"),
        (0, "cuda:7", r"DEVICE = 'cuda:7': torch sees no GPU"),
        (0, "mps", r"DEVICE = 'mps': torch sees no such device here"),
    ],
)
def test_a_device_that_is_not_there_names_the_setting(cards: Cards, count: int, device: str, complaint: str) -> None:
    cards(count)
    with pytest.raises(UserError, match=complaint):
        pick_device(device)
    found = list(machine_findings(device))[-1]
    assert (found.level, found.what) == ("FAIL", "device")
    assert f"DEVICE = '{device}'" in found.detail


def test_a_named_card_behind_an_old_driver(cards: Cards) -> None:
    cards(0, "13.0", "12.4")
    with pytest.raises(UserError, match=r"DEVICE = 'cuda': GPU \(NVIDIA A100.*needs a driver for CUDA 13\."):
        pick_device("cuda")
