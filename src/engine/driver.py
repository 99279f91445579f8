"""What is known of the NVIDIA driver, and why torch cannot use the card that it drives."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

TIMEOUT_SECONDS = 5
# Every container of the host sees it, with nvidia-smi or without.
_MODULE = Path("/proc/driver/nvidia/version")
_BUILDS = "https://download.pytorch.org/whl/"


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine.

    Attributes:
        text: what nvidia-smi says: card, driver, free memory; or why it says nothing.
        cuda: the latest CUDA that the driver runs, such as ``12.4``; ``None`` where that is not known.
    """

    text: str
    cuda: str | None = None


def nvidia_driver() -> Driver | None:
    """The driver by nvidia-smi and by the kernel; ``None`` where there is no trace of one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Driver("an NVIDIA driver, but no nvidia-smi") if _MODULE.exists() else None
    try:
        asked, page = (
            subprocess.run([program, *how], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
            for how in (["--query-gpu=name,driver_version,memory.free", "--format=csv,noheader"], [])
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(f"nvidia-smi does not answer ({error})")
    lines = (asked.stdout or asked.stderr).strip().splitlines()
    found = re.search(r"CUDA[^:|\n]*Version: *([0-9.]+)", page.stdout)
    cuda = None if found is None else found[1]
    return Driver((lines[0] if lines else "nvidia-smi says nothing") + (f", CUDA {cuda}" if cuda else ""), cuda)


def why_no_gpu(driver: Driver) -> str:
    """Why torch, which sees no card, cannot use the one of ``driver``, and the way out; one line."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    built = torch.version.cuda
    if hidden is not None and hidden.strip() in {"", "-1"}:
        reason = f"CUDA_VISIBLE_DEVICES = {hidden!r} hides it"
    elif built is None:
        reason = (
            f"torch {torch.__version__} is a build without CUDA. Install the one for the driver's CUDA from {_BUILDS}"
        )
    elif driver.cuda is None or int(driver.cuda.split(".")[0]) < int(built.split(".")[0]):
        reason = (
            f"torch {torch.__version__} is built for CUDA {built} and needs a driver for CUDA {built.split('.')[0]}. "
            f"Install a newer driver, or the torch build for the driver's CUDA from {_BUILDS}"
        )
    else:
        reason = (
            f"torch {torch.__version__} is built for CUDA {built}, which fits the driver, but sees no device. In a "
            "container, start it with the GPU (--gpus all); else see what nvidia-smi says"
        )
    return f"GPU ({driver.text}) that torch cannot use: {reason}."
