"""Models converted for OpenVINO: made once, checked against torch, kept, and run on several cores at a time."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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
from src.core.artifacts import fingerprint as fingerprint_of
from src.core.errors import StaleArtifactError, UserError
from src.core.memory import first_line, means_out_of_memory
from src.engine.memory_limit import MemoryLimit

GRAPH_REVISION = 1  # of the graphs made here; a kept conversion of another revision is made anew
CACHE_TOKENS = 2048  # activations of a larger batch leave the cache of a core
TOLERANCE = 1e-4
_GRAPH = "model.xml"

Inputs = Mapping[str, npt.NDArray[np.int64]]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class BackendUnavailableError(Exception):
    """A backend cannot run this model; the message says why."""


@dataclass(frozen=True)
class Traceable:
    """A model ready to be converted.

    Attributes:
        graph: takes the tensors of ``inputs`` by name, all int64 [B, L], and returns a tuple of tensors [B, ...].
        reference: what it must compute, in torch.
        per_token: outputs [B, L, ...], whose rows of padding tokens mean nothing.
        inputs: names; among ``input_ids``, ``attention_mask`` and ``token_type_ids``.
        vocabulary, pad: number of token ids, and the one that fills up short rows.
    """

    graph: nn.Module
    reference: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
    inputs: tuple[str, ...]
    vocabulary: int
    pad: int
    per_token: frozenset[int] = frozenset()

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


def conversion_folder(kept: Path, model: str) -> Path:
    """Where the conversion of a model lies; ``model`` is its fingerprint, which may hold characters of its name."""
    return kept / fingerprint_of(model)


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


def _convert(model: Traceable) -> Any:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns of constants; the check below sees whether they matter.
            warnings.simplefilter("ignore")
            shapes = [(name, [-1, -1], openvino.Type.i64) for name in model.inputs]
            return openvino.convert_model(model.graph.eval(), example_input=model.probe(3, 24), input=shapes)
    except Exception as error:  # whatever an architecture makes its tracer raise, torch can still run it
        raise BackendUnavailableError(f"conversion failed: {first_line(error)}") from error


def _check(model: Traceable, graph: Any) -> None:
    """Outputs for shapes that the conversion has not seen, against torch."""
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for rows, width in ((1, 9), (5, 40)):
        inputs = model.probe(rows, width)
        with torch.inference_mode():
            expected = [output.numpy() for output in model.reference(inputs)]
        try:
            found = compiled({name: value.numpy() for name, value in inputs.items()})
        except RuntimeError as error:
            raise BackendUnavailableError(f"the converted graph does not run: {first_line(error)}") from error
        filled = inputs["attention_mask"].numpy().astype(bool)
        for number, right in enumerate(expected):
            ours = found[number]
            if number in model.per_token:
                ours, right = ours[filled], right[filled]
            difference = float(np.abs(ours - right).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(right).max())):
                raise BackendUnavailableError(f"its outputs differ from torch's by {difference:.2g}")


class GraphRunner:
    """Runs a kept graph, one batch per core at a time.

    Args:
        graph: from :func:`ensure_converted`.
        bfloat16: multiply in bfloat16, for CPUs that do so in hardware.
        threads: cores to use.
        what: the model, for the log.
    """

    def __init__(self, graph: Path, bfloat16: bool, threads: int, what: str) -> None:
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            # One stream per core: no barrier between cores inside a matrix product.
            "NUM_STREAMS": str(threads),
            "INFERENCE_NUM_THREADS": str(threads),
        }
        self.compiled = openvino.Core().compile_model(graph, "CPU", properties)
        self.inputs = tuple(port.any_name for port in self.compiled.inputs)
        self.outputs = len(self.compiled.outputs)
        self.threads = threads
        self.limit = MemoryLimit(what, "cpu")
        self.requests: Any = openvino.AsyncInferQueue(self.compiled, threads)

    def run(self, batches: Iterable[tuple[Rows, Inputs]], store: Callable[[Rows, list[Floats]], None]) -> None:
        """Run batches, drawn as they are needed; one that memory does not hold is halved until it fits.

        Args:
            batches: int64 [B] rows of the batch, and its inputs int64 [B, L]; what the graph takes and a batch lacks
                is zero.
            store: gets rows and outputs of a finished batch, in any order, one batch at a time; it must copy what it
                keeps.

        Raises:
            DoesNotFitError: where memory does not hold a single item.
            UserError: where OpenVINO fails for another reason.
        """
        running: dict[int, tuple[Rows, Inputs]] = {}
        failed: list[Exception] = []

        def finished(request: Any, number: int) -> None:
            # An error that left this function would come back from OpenVINO as one of its own.
            try:
                store(running[number][0], [request.get_output_tensor(i).data for i in range(self.outputs)])
                del running[number]
            except Exception as error:
                failed.append(error)

        self.requests.set_callback(finished)
        pieces = self._pieces(batches)
        try:
            for number, (rows, values) in enumerate(pieces):
                running[number] = rows, values
                self.requests.start_async(self._filled(values), number)
                if failed:
                    raise failed[0]
            self.requests.wait_all()
        except RuntimeError as error:
            self._require_memory_trouble(error)
            self._wait()
            self._run_smaller(list(running.values()), store, error)
            # A queue that has failed goes on failing.
            self.requests = openvino.AsyncInferQueue(self.compiled, self.threads)
            self.run(pieces, store)
        finally:
            self._wait()
        if failed:
            raise failed[0]

    def _pieces(self, batches: Iterable[tuple[Rows, Inputs]]) -> Iterator[tuple[Rows, Inputs]]:
        for rows, values in batches:
            for piece in self.limit.pieces(*values["input_ids"].shape):
                yield rows[piece], _part(values, piece)

    def _filled(self, values: Inputs) -> dict[str, npt.NDArray[np.int64]]:
        zeros = np.zeros_like(values["input_ids"])
        return {name: values.get(name, zeros) for name in self.inputs}

    def _wait(self) -> None:
        # What it says has been said, or will be by the batch that is still in ``running``.
        with suppress(RuntimeError):
            self.requests.wait_all()

    def _require_memory_trouble(self, error: Exception) -> None:
        if not means_out_of_memory(error):
            raise UserError(
                f'OpenVINO failed on a batch: {first_line(error)}. Set CPU_ENGINE = "torch" in config/settings.py.'
            ) from error

    def _run_smaller(
        self, waiting: list[tuple[Rows, Inputs]], store: Callable[[Rows, list[Floats]], None], error: Exception
    ) -> None:
        """Run the batches that were lost, one after another, the largest of them in halves."""
        rows, values = max(waiting, key=lambda item: item[1]["input_ids"].size)
        items, width = values["input_ids"].shape
        self.limit.lower(int(rows[0]), items, width, first_line(error))
        waiting = waiting[::-1]
        while waiting:
            rows, values = waiting.pop()
            items, width = values["input_ids"].shape
            pieces = list(self.limit.pieces(items, width))
            if len(pieces) > 1:
                waiting.extend((rows[piece], _part(values, piece)) for piece in reversed(pieces))
                continue
            try:
                request = self.compiled.create_infer_request()
                request.infer(self._filled(values))
            except RuntimeError as failure:
                self._require_memory_trouble(failure)
                self.limit.lower(int(rows[0]), items, width, first_line(failure))
                waiting.append((rows, values))
            else:
                store(rows, [request.get_output_tensor(i).data for i in range(self.outputs)])


def _part(values: Inputs, rows: slice) -> Inputs:
    width = int(values["attention_mask"][rows].sum(axis=1).max())
    return {name: value[rows, :width] for name, value in values.items()}
