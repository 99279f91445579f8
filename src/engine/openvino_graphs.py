"""Models converted for OpenVINO: made once, checked against torch, kept, and run on several cores at a time."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import torch
from torch import Tensor, nn

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    atomic_directory,
    describe_files,
    require_current,
    save_manifest,
)
from src.core.errors import StaleArtifactError, UserError

GRAPH_REVISION = 1  # of the graphs made here; a kept conversion of another revision is made anew
CACHE_TOKENS = 2048  # activations of a larger batch leave the cache of a core
TOLERANCE = 1e-4
_GRAPH = "model.xml"

Inputs = Mapping[str, npt.NDArray[np.int64]]

log = logging.getLogger(__name__)


class BackendUnavailableError(Exception):
    """A backend cannot run this model; the message says why."""


@dataclass(frozen=True)
class Traceable:
    """A model ready to be converted.

    Attributes:
        graph: takes the tensors of ``inputs`` by name, all int64 [B, L], and returns one tensor [B, ...].
        reference: what it must compute, in torch.
        inputs: names; among ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        vocabulary, pad: number of token ids, and the one that fills up short rows.
    """

    graph: nn.Module
    reference: Callable[[dict[str, Tensor]], Tensor]
    inputs: tuple[str, ...]
    vocabulary: int
    pad: int

    def probe(self, rows: int, width: int) -> dict[str, Tensor]:
        """A batch of made-up texts, the first as long as the batch is wide, the others shorter."""
        generator = torch.Generator().manual_seed(rows * 1000 + width)
        ids = torch.randint(5, self.vocabulary, (rows, width), generator=generator)
        lengths = torch.linspace(width, max(3, width // 2), rows).long()
        mask = torch.arange(width)[None] < lengths[:, None]
        values = {
            "input_ids": torch.where(mask, ids, self.pad),
            "attention_mask": mask.long(),
            "token_type_ids": (torch.arange(width)[None] >= width // 3).long() * mask,
        }
        return {name: values[name] for name in self.inputs}


def ensure_converted(name: str, fingerprint: str, folder: Path, prepare: Callable[[], Traceable]) -> Path:
    """The kept graph of a model; made once, and anew where the model, OpenVINO or the graphs made here changed.

    Args:
        name: of the model, for the log.
        fingerprint: of the model.
        folder: where the graph is kept.
        prepare: loads the model; not called where the kept graph will do.

    Raises:
        BackendUnavailableError: where OpenVINO cannot convert the model, or the graph computes something else.
        UserError: where the model's files cannot be loaded.
    """
    inputs = {"model": fingerprint}
    settings = {"openvino": openvino.__version__, "revision": GRAPH_REVISION}
    try:
        require_current(folder, "openvino", inputs, settings, fix="automatic")
        return folder / _GRAPH
    except StaleArtifactError:
        log.info("Converting %s for OpenVINO (once) ...", name)
    model = prepare()
    graph = _convert(model)
    _check(model, graph)
    with atomic_directory(folder) as temporary:
        openvino.save_model(graph, temporary / _GRAPH, compress_to_fp16=False)
        names = [path.name for path in temporary.iterdir()]
        manifest = Manifest("openvino", inputs, settings, describe_files(temporary, names), {})
        save_manifest(temporary / MANIFEST_NAME, manifest)
    return folder / _GRAPH


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _convert(model: Traceable) -> Any:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns of constants; the check below sees whether they matter.
            warnings.simplefilter("ignore")
            shapes = [(name, [-1, -1], openvino.Type.i64) for name in model.inputs]
            return openvino.convert_model(model.graph.eval(), example_input=model.probe(3, 24), input=shapes)
    except Exception as error:  # whatever an architecture makes its tracer raise, torch can still run it
        raise BackendUnavailableError(f"conversion failed: {_first_line(error)}") from error


def _check(model: Traceable, graph: Any) -> None:
    """Outputs for shapes that the conversion has not seen, against torch."""
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for rows, width in ((1, 9), (5, 40)):
        inputs = model.probe(rows, width)
        with torch.inference_mode():
            expected = model.reference(inputs).numpy()
        try:
            found = compiled({name: value.numpy() for name, value in inputs.items()})[0]
        except RuntimeError as error:
            raise BackendUnavailableError(f"the converted graph does not run: {_first_line(error)}") from error
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise BackendUnavailableError(f"its outputs differ from torch's by {difference:.2g}")


class GraphRunner:
    """Runs a kept graph, one batch per core at a time.

    Args:
        graph: from :func:`ensure_converted`.
        bfloat16: multiply in bfloat16, for CPUs that do so in hardware.
        threads: cores to use.
    """

    def __init__(self, graph: Path, bfloat16: bool, threads: int) -> None:
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            # One stream per core: no barrier between cores inside a matrix product.
            "NUM_STREAMS": str(threads),
            "INFERENCE_NUM_THREADS": str(threads),
        }
        compiled = openvino.Core().compile_model(graph, "CPU", properties)
        self.inputs = tuple(port.any_name for port in compiled.inputs)
        self.requests: Any = openvino.AsyncInferQueue(compiled, threads)

    def run(self, batches: Iterable[tuple[npt.NDArray[np.int64], Inputs]], outputs: npt.NDArray[np.float32]) -> None:
        """Write the output of each batch into ``outputs`` at its rows; batches are drawn as they are needed.

        Args:
            batches: rows int64 [B] and inputs int64 [B, L]; inputs that the graph takes and a batch lacks are zero.

        Raises:
            UserError: where OpenVINO fails, for want of memory mostly.
        """

        def store(request: Any, rows: npt.NDArray[np.int64]) -> None:
            outputs[rows] = request.get_output_tensor().data

        self.requests.set_callback(store)
        try:
            for rows, values in batches:
                zeros = np.zeros_like(values["input_ids"])
                self.requests.start_async({name: values.get(name, zeros) for name in self.inputs}, rows)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO failed on a batch: {_first_line(error)}. Halve the batch size in config/settings.py, "
                'or set CPU_ENGINE = "torch".'
            ) from error
        finally:
            self.requests.wait_all()
