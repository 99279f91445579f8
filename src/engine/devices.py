"""Where tensors run, in which precision that is fast, and why a model does not load."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from src.core.errors import UserError

Precision = Literal["auto", "exact", "fast"]
Engine = Literal["auto", "openvino", "torch"]


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
    """``auto`` becomes ``cuda``, ``mps`` or ``cpu``, the first that this machine has; anything else is returned."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
