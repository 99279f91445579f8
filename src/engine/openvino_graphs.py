"""Models converted for OpenVINO: made once, kept, and checked against torch whenever one is loaded."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from src.core.types import offsets_of
from src.engine.batches import PlainTokens, TokenBatch
from src.engine.lanes import serve_all
from src.engine.memory_limit import MemoryLimit

GRAPH_REVISION = 3  # of the graphs made here; a kept conversion of another revision is made anew
CACHE_TOKENS = 2048  # activations of a larger batch leave the cache of a core
TOLERANCE = 1e-4  # of an output against torch's, relative to the largest
ROUNDED_TOLERANCE = 0.05  # the same in 16 or 8 bits
THREADS_PER_LANE = 8
LANE_BYTES = 2e9  # of weights in all lanes together; each holds its own
GRAPH = "model.xml"
_PROBES = "probes.npz"
_PROBE_SHAPES = ((1, 9), (5, 40), (8, 100))

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Store = Callable[[Rows, list[Floats]], None]

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

    def probe(self, rows: int, width: int) -> TokenBatch:
        """Made-up texts, the first as long as the batch is wide, the others shorter."""
        generator = np.random.default_rng(rows * 1000 + width)
        lengths = np.linspace(width, max(3, width // 2), rows).astype(np.int64)
        ids = generator.integers(5, self.vocabulary, int(lengths.sum())).astype(np.int32)
        batch = TokenBatch(np.arange(rows), PlainTokens(ids, offsets_of(lengths)), self.pad)
        types = (batch.places >= width // 3).astype(np.int32)
        return replace(batch, source=PlainTokens(ids, batch.offsets, types))

    def tensors(self, batch: TokenBatch) -> dict[str, Tensor]:
        """The inputs that the graph takes."""
        return {name: torch.from_numpy(batch.inputs[name]) for name in self.inputs}


@dataclass(frozen=True)
class Probe:
    """A batch, and what torch makes of it.

    Attributes:
        expected: an array [B, ...] for each output; NaN where anything will do.
    """

    batch: TokenBatch
    expected: tuple[Floats, ...]


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
    if is_converted(fingerprint, folder):
        return folder / GRAPH
    log.info("Converting %s for OpenVINO (once) ...", name)
    model = prepare()
    graph = _convert(model)
    probes = _probes(model)
    _check(probes, partial(_infer, openvino.Core().compile_model(graph, "CPU", _properties(False, 1))), TOLERANCE)
    _keep(graph, probes, folder, *_identity(fingerprint), {})
    return folder / GRAPH


def is_converted(fingerprint: str, folder: Path) -> bool:
    """Whether the kept graph of a model will do."""
    try:
        require_current(folder, "openvino", *_identity(fingerprint), fix="automatic")
    except StaleArtifactError:
        return False
    return True


def _identity(fingerprint: str) -> tuple[dict[str, str], dict[str, Any]]:
    return {"model": fingerprint}, {"openvino": openvino.__version__, "revision": GRAPH_REVISION}


def keep_changed(
    graph: Any,
    original: Path,
    folder: Path,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
) -> None:
    """Keep a graph that was made from a kept one, and what it gives for the same batches: it may differ from torch.

    Args:
        original: the kept one.
        inputs, settings, counts: of its manifest.
    """
    compiled = openvino.Core().compile_model(graph, "CPU", _properties(False, 1))
    probes = [Probe(of.batch, tuple(_infer(compiled, of.batch))) for of in _load_probes(original.with_name(_PROBES))]
    _keep(graph, probes, folder, inputs, settings, counts)


def _keep(
    graph: Any,
    probes: Sequence[Probe],
    folder: Path,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
) -> None:
    with atomic_directory(folder) as temporary:
        openvino.save_model(graph, temporary / GRAPH, compress_to_fp16=False)
        _save_probes(temporary / _PROBES, probes)
        names = [path.name for path in temporary.iterdir()]
        manifest = Manifest("openvino", inputs, settings, describe_files(temporary, names), counts)
        save_manifest(temporary / MANIFEST_NAME, manifest)


def _convert(model: Traceable) -> Any:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns of constants; the check that follows sees whether they matter.
            warnings.simplefilter("ignore")
            shapes = [(name, [-1, -1], openvino.Type.i64) for name in model.inputs]
            example = model.tensors(model.probe(3, 24))
            return openvino.convert_model(model.graph.eval(), example_input=example, input=shapes)
    except Exception as error:  # whatever an architecture makes its tracer raise, torch can still run it
        raise BackendUnavailableError(f"conversion failed: {first_line(error)}") from error


def _probes(model: Traceable) -> list[Probe]:
    """Batches of shapes that the conversion has not seen."""
    found = []
    for rows, width in _PROBE_SHAPES:
        batch = model.probe(rows, width)
        with torch.inference_mode():
            outputs = [output.float().numpy().copy() for output in model.reference(model.tensors(batch))]
        for number in model.per_token:
            outputs[number][batch.mask == 0] = np.nan
        found.append(Probe(batch, tuple(outputs)))
    return found


def _save_probes(path: Path, probes: Sequence[Probe]) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for number, probe in enumerate(probes):
        batch = probe.batch
        assert batch.kinds is not None
        for name, values in (("tokens", batch.tokens), ("offsets", batch.offsets), ("kinds", batch.kinds)):
            arrays[f"{number}/{name}"] = values
        arrays[f"{number}/pad"] = np.array(batch.pad)
        arrays |= {f"{number}/output/{i}": values for i, values in enumerate(probe.expected)}
    np.savez(path, allow_pickle=False, **arrays)


def _load_probes(path: Path) -> list[Probe]:
    probes = []
    with np.load(path) as arrays:
        for number in range(len(_PROBE_SHAPES)):
            tokens, offsets, kinds, pad = (arrays[f"{number}/{name}"] for name in ("tokens", "offsets", "kinds", "pad"))
            outputs = sum(name.startswith(f"{number}/output/") for name in arrays)
            expected = tuple(arrays[f"{number}/output/{i}"] for i in range(outputs))
            batch = TokenBatch(np.arange(len(offsets) - 1), PlainTokens(tokens, offsets, kinds), int(pad))
            probes.append(Probe(batch, expected))
    return probes


def _check(probes: Sequence[Probe], infer: Callable[[TokenBatch], list[Floats]], tolerance: float) -> None:
    for probe in probes:
        try:
            found = infer(probe.batch)
        except RuntimeError as error:
            raise BackendUnavailableError(f"the converted graph does not run: {first_line(error)}") from error
        for ours, right in zip(found, probe.expected, strict=True):
            known = ~np.isnan(right)
            difference = float(np.abs(ours - right)[known].max())
            if not difference <= tolerance * max(1.0, float(np.abs(right[known]).max())):
                raise BackendUnavailableError(f"its outputs are off by {difference:.2g}")


def _properties(bfloat16: bool, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        # OpenVINO's streams share packed weights; seen with 2026.4: several of them, and wrong outputs now and then.
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }


def inputs_of(graph: Any, batch: TokenBatch) -> dict[str, npt.NDArray[np.int64]]:
    """A batch by the names of a graph's inputs; what the graph takes and the batch lacks is zero."""
    inputs, zeros = batch.inputs, np.zeros_like(batch.ids)
    return {port.any_name: inputs.get(port.any_name, zeros) for port in graph.inputs}


def _infer(compiled: Any, batch: TokenBatch) -> list[Floats]:
    outputs = compiled(inputs_of(compiled, batch))
    return [outputs[i] for i in range(len(compiled.outputs))]


class GraphRunner:
    """Runs a kept graph on the cores of a CPU.

    Args:
        graph: from :func:`ensure_converted`, or of :func:`keep_changed`.
        arithmetic: ``float32``; ``bfloat16``, for CPUs that multiply it in hardware; ``int8`` where the graph has it.
        threads: cores to use.
        what: the model, for the log.

    Raises:
        BackendUnavailableError: where the graph gives something else here than it gave where it was made.
    """

    def __init__(self, graph: Path, arithmetic: str, threads: int, what: str) -> None:
        lanes = lanes_of(threads, graph.with_suffix(".bin").stat().st_size)
        properties = _properties(arithmetic == "bfloat16", threads // lanes)
        tolerance = TOLERANCE if arithmetic == "float32" else ROUNDED_TOLERANCE
        if lanes > 1:
            properties["ENABLE_CPU_PINNING"] = False  # every lane would take the same cores
        core, probes = openvino.Core(), _load_probes(graph.with_name(_PROBES))
        self.compiled = [core.compile_model(graph, "CPU", properties) for _ in range(lanes)]
        for compiled in self.compiled:
            try:
                _check(probes, partial(_infer, compiled), tolerance)
            except BackendUnavailableError as error:
                raise BackendUnavailableError(f"{error}; delete {graph.parent} to convert it anew") from error
        self.limit = MemoryLimit(what, "cpu")

    def run(self, batches: Iterable[TokenBatch], store: Store) -> None:
        """Run batches, drawn as they are needed; one that memory does not hold is halved until it fits.

        Args:
            batches: what the graph takes and a batch lacks is zero.
            store: gets rows and outputs of a finished batch, in any order, one batch at a time.

        Raises:
            DoesNotFitError: where memory does not hold a single item.
            UserError: where OpenVINO fails for another reason.
        """
        storing = threading.Lock()

        def serve(compiled: Any, drawn: Iterator[TokenBatch]) -> None:
            for part, outputs in self.limit.results(drawn, partial(_infer_or_explain, compiled)):
                with storing:
                    store(part.rows, outputs)

        serve_all(batches, [partial(serve, compiled) for compiled in self.compiled])


def lanes_of(threads: int, model_bytes: int) -> int:
    """How many copies of a model work side by side: one core waits for another inside a matrix product, so many cores
    are better split, but not where the copies would fill the memory.
    """
    return max(1, min(threads // THREADS_PER_LANE, int(LANE_BYTES // max(1, model_bytes))))


def _infer_or_explain(compiled: Any, batch: TokenBatch) -> list[Floats]:
    try:
        return _infer(compiled, batch)
    except RuntimeError as error:
        if means_out_of_memory(error):
            raise
        raise UserError(
            f'OpenVINO failed on a batch: {first_line(error)}. Set CPU_ENGINE = "torch" in config/settings.py.'
        ) from error
