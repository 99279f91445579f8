"""Arithmetic that a model needs, and the most that this machine was seen to do."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from src.engine.bert_forward import BertPairForward
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.packed_backend import PackedBackend

_SIZE_CPU, _SIZE_GPU = 2048, 8192


@dataclass(frozen=True)
class ModelShape:
    """Sizes of an encoder: its layers, the width of its hidden states and of its feed-forward."""

    layers: int
    hidden: int
    inner: int

    @classmethod
    def of(cls, directory: Path) -> "ModelShape | None":
        """Read from a model's configuration; ``None`` where that does not name all three."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        sizes = [config.get(name) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")]
        return cls(*sizes) if all(isinstance(size, int) for size in sizes) else None

    def flops(self, tokens: float, squares: float, texts: int | None = None) -> float:
        """Floating-point operations for texts without padding.

        Per layer and token 2 (4 H^2 + 2 H F) for the matrices, and 4 H n for the attention over n tokens. A last layer
        for first tokens alone has 4 H^2 per token for keys and values, 4 H^2 + 4 H F per text for the other matrices,
        and 4 H n per text for the attention.

        Args:
            tokens: of all texts.
            squares: sum over the texts of their tokens squared.
            texts: how many, where the last layer is computed for the first token of each alone (see
                :func:`last_layer_is_short`); ``None`` where it is computed for all tokens.
        """
        matrices = 2.0 * (4 * self.hidden**2 + 2 * self.hidden * self.inner)
        layer = matrices * tokens + 4.0 * self.hidden * squares
        if texts is None:
            return self.layers * layer
        projection = 2.0 * self.hidden**2
        first = 2 * projection + 4.0 * self.hidden * self.inner
        return (self.layers - 1) * layer + 2 * projection * tokens + first * texts + 4.0 * self.hidden * tokens


def last_layer_is_short(directory: Path, backend: str) -> bool:
    """Whether a backend computes a cross-encoder's last layer for the first token of each text alone.

    Args:
        directory: the model's.
        backend: as the loaded scorer's ``backend_name`` says.
    """
    if not backend.startswith((OpenVinoBackend.name, PackedBackend.name)):
        return False
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return BertPairForward.supports(AutoModelForSequenceClassification.from_config(config))


def measured_peak(device: str, arithmetic: str, threads: int, seconds: float = 1.0) -> float:
    """Operations per second of a large matrix product, the best of its repetitions.

    On a CPU the better of torch's and OpenVINO's: either may lack the kernels that suit a processor.

    Args:
        arithmetic: ``float32``, ``bfloat16`` or ``float16``.
        threads: cores to use, of a CPU.
        seconds: to measure, for each library.
    """
    if device.startswith("cpu"):
        return max(
            _best(*_torch_product(device, arithmetic), seconds), _best(*_openvino_product(arithmetic, threads), seconds)
        )
    return _best(*_torch_product(device, arithmetic), seconds)


def _best(work: Callable[[], None], operations: float, seconds: float) -> float:
    work()
    best, started = float("inf"), perf_counter()
    while perf_counter() - started < seconds:
        before = perf_counter()
        work()
        best = min(best, perf_counter() - before)
    return operations / best


def _torch_product(device: str, arithmetic: str) -> tuple[Callable[[], None], float]:
    size = _SIZE_CPU if device.startswith("cpu") else _SIZE_GPU
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, arithmetic)) for _ in range(2))

    def work() -> None:
        left @ right
        _wait_for(device)

    return work, 2.0 * size**3


def _wait_for(device: str) -> None:
    """Until the device has done what it was given: a GPU takes work faster than it does it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def _openvino_product(arithmetic: str, threads: int) -> tuple[Callable[[], None], float]:
    import openvino
    from openvino import opset13

    depth, size, generator = 4, _SIZE_CPU, np.random.default_rng(0)
    given = opset13.parameter([size, size], np.float32)
    product = given
    for _ in range(depth):
        weights = generator.standard_normal((size, size), dtype=np.float32) / np.float32(size**0.5)
        product = opset13.matmul(product, opset13.constant(weights), False, True)
    graph = openvino.Model([opset13.reduce_sum(product, opset13.constant([0, 1]))], [given])
    hint = {"bfloat16": "bf16", "float16": "f16"}.get(arithmetic, "f32")
    properties = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": str(threads), "INFERENCE_NUM_THREADS": str(threads)}
    requests = openvino.AsyncInferQueue(openvino.Core().compile_model(graph, "CPU", properties), threads)
    values = generator.standard_normal((size, size), dtype=np.float32)

    def work() -> None:
        for _ in range(threads):
            requests.start_async([values], share_inputs=True)
        requests.wait_all()

    return work, threads * depth * 2.0 * size**3
