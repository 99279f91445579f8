"""Where tensors run, in which precision that is fast, and why a model does not load."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from src.core.errors import UserError
from src.engine.driver import nvidia_driver, why_no_gpu

Precision = Literal["auto", "exact", "fast", "int8"]
Engine = Literal["auto", "openvino", "torch"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CpuEngine:
    """How a CPU runs models.

    Attributes:
        engine: ``auto`` takes OpenVINO, and torch where that cannot run the model.
        kept: folder of converted models.
        threads: cores to use.
    """

    engine: Engine
    kept: Path
    threads: int


def pick_device(wanted: str) -> str:
    """``auto`` becomes ``cuda``, ``mps`` or ``cpu``, the first that this machine has; anything else is returned.

    Where ``auto`` becomes ``cpu`` although there is a card, the log says why, once.

    Raises:
        UserError: where this machine has not the device that is named.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        if cards:
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        _tell_why_no_gpu()
        return "cpu"
    kind, _, number = wanted.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"DEVICE = {wanted!r}: torch sees no such device here. Set DEVICE = 'auto'.")
    if kind == "cuda" and not cards:
        driver = nvidia_driver()
        reason = "torch sees no GPU, and there is no NVIDIA driver." if driver is None else why_no_gpu(driver)
        raise UserError(f"DEVICE = {wanted!r}: {reason} Or set DEVICE = 'auto'.")
    if kind == "cuda" and int(number or 0) >= cards:
        raise UserError(
            f"DEVICE = {wanted!r}: torch sees {cards} GPU(s), cuda:0 to cuda:{cards - 1}. Name one of them, or set "
            "DEVICE = 'auto'."
        )
    return wanted


@cache
def _tell_why_no_gpu() -> None:
    driver = nvidia_driver()
    if driver is not None:
        log.warning("WARNING: %s The CPU does the work, many times slower.", why_no_gpu(driver))
    elif torch.version.cuda:
        log.info("torch is built for CUDA %s, but there is no NVIDIA driver here: the CPU is used.", torch.version.cuda)


def every_device(device: str) -> list[str]:
    """``cuda`` becomes all cards of the machine; anything else is itself."""
    if device != "cuda" or torch.cuda.device_count() < 2:
        return [device]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def half_precision(device: str) -> torch.dtype | None:
    """The 16-bit type that a device multiplies in hardware; ``None`` where it has none.

    float16 on CUDA (its mantissa is longer, and a cross-encoder's values stay far inside its range), bfloat16 on a
    CPU with AVX512-BF16.
    """
    if device.startswith("cuda"):
        return torch.float16
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def settled_precision(precision: Precision, device: str) -> Precision:
    """``auto`` becomes ``fast`` on a GPU, where float32 takes several times as long, and ``exact`` elsewhere."""
    if precision != "auto":
        return precision
    return "fast" if device.startswith("cuda") else "exact"


@contextmanager
def explain_loading(setting: str, directory: Path) -> Iterator[None]:
    """Turn whatever a library says of broken model files into one line that names the setting and the directory.

    Raises:
        UserError: where the block raises anything but an interrupt or a lack of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{setting}: the model in {directory} cannot be loaded: {reason}. "
            "Copy its files anew, or name another model."
        ) from error
