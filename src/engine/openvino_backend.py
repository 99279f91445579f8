"""Cross-encoders run by OpenVINO on a CPU: several batches at a time, one core each.

The model is converted once and kept. BERT, RoBERTa and XLM-RoBERTa get a last layer that computes the first token
alone (:mod:`src.engine.bert_forward`); other architectures are converted as they are. Every conversion is checked
against torch before it is used.
"""

import logging
import warnings
from collections.abc import Callable, Iterable
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
from src.engine.bert_forward import BertPairForward, PaddedLayout
from src.engine.devices import Precision, half_precision
from src.engine.pair_backends import BackendUnavailableError, PairBatch
from src.engine.torch_backend import load_classifier

GRAPH_REVISION = 1  # of the forward pass here; a kept conversion of another revision is made anew
CACHE_TOKENS = 2048  # activations of a larger batch leave the cache of a core
TOLERANCE = 1e-4
_GRAPH = "model.xml"

log = logging.getLogger(__name__)


class OpenVinoBackend:
    """Padded batches through a converted graph.

    Args:
        directory: the model's directory.
        fingerprint: of the model, which names its conversion.
        kept: folder of the conversions.
        precision: ``exact`` multiplies in float32; ``fast`` in bfloat16 where the CPU does so in hardware.
        threads: cores to use.
    """

    name = "OpenVINO"
    most_tokens: int | None = CACHE_TOKENS

    def __init__(self, directory: Path, fingerprint: str, kept: Path, precision: Precision, threads: int) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.folder = kept / fingerprint[:16]
        self.threads = threads
        half = half_precision("cpu") if precision == "fast" else None
        self.arithmetic = "float32" if half is None else "bfloat16"
        self.requests: Any = None
        self.inputs: tuple[str, ...] = ()

    def load(self) -> None:
        """Convert where that has not been done, then compile.

        Raises:
            BackendUnavailableError: where OpenVINO cannot convert the model, or its scores differ from torch's.
            UserError: where the model's files cannot be loaded.
        """
        compiled = self._compile(ensure_converted(self.directory, self.fingerprint, self.folder))
        self.inputs = tuple(port.any_name for port in compiled.inputs)
        self.requests = openvino.AsyncInferQueue(compiled, self.threads)

    def _compile(self, graph: Path) -> Any:
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.arithmetic == "bfloat16" else "f32",
            # One stream per core: no barrier between cores inside a matrix product.
            "NUM_STREAMS": str(self.threads),
            "INFERENCE_NUM_THREADS": str(self.threads),
        }
        return openvino.Core().compile_model(graph, "CPU", properties)

    def run(self, batches: Iterable[PairBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`.

        Raises:
            UserError: where OpenVINO fails, for want of memory mostly.
        """

        def store(request: Any, rows: npt.NDArray[np.int64]) -> None:
            scores[rows] = request.get_output_tensor().data

        self.requests.set_callback(store)
        try:
            for batch in batches:
                types = np.zeros_like(batch.ids) if batch.types is None else batch.types
                values = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": types}
                self.requests.start_async({name: values[name] for name in self.inputs}, batch.rows)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO failed on a batch: {str(error).splitlines()[0]}. Halve RERANKER_BATCH_SIZE in "
                'config/settings.py, or set RERANKER_ENGINE = "torch".'
            ) from error
        finally:
            self.requests.wait_all()


def ensure_converted(directory: Path, fingerprint: str, folder: Path) -> Path:
    """The kept graph of a model; made once, and anew where model, OpenVINO or the pass here changed.

    Raises:
        BackendUnavailableError: where OpenVINO cannot convert the model, or its scores differ from torch's.
        UserError: where the model's files cannot be loaded.
    """
    inputs = {"model": fingerprint}
    settings = {"openvino": openvino.__version__, "revision": GRAPH_REVISION}
    try:
        require_current(folder, "openvino", inputs, settings, fix="automatic")
        return folder / _GRAPH
    except StaleArtifactError:
        log.info("Converting %s for OpenVINO (once) ...", directory.name)
    model = load_classifier(directory)
    graph = _convert(model)
    _check(model, graph)
    with atomic_directory(folder) as temporary:
        openvino.save_model(graph, temporary / _GRAPH, compress_to_fp16=False)
        names = [path.name for path in temporary.iterdir()]
        manifest = Manifest("openvino", inputs, settings, describe_files(temporary, names), {})
        save_manifest(temporary / MANIFEST_NAME, manifest)
    return folder / _GRAPH


class _FirstTokenGraph(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.forward_pass = BertPairForward(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        logits: Tensor = self.forward_pass(input_ids, places, token_type_ids, PaddedLayout(attention_mask.bool()))
        return logits


class _PlainGraph(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits[:, 0]


def _probe(model: Any, rows: int, width: int) -> dict[str, Tensor]:
    """A batch of made-up pairs, the first as long as the batch is wide, the others shorter."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    ids = torch.randint(5, int(model.config.vocab_size), (rows, width), generator=generator)
    lengths = torch.linspace(width, max(3, width // 2), rows).long()
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if int(getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = (torch.arange(width)[None] >= width // 3).long() * mask
    pad = getattr(model.config, "pad_token_id", None) or 0
    inputs["input_ids"] = torch.where(mask.bool(), inputs["input_ids"], torch.full_like(ids, pad))
    return inputs


def _convert(model: Any) -> Any:
    graph: nn.Module = _FirstTokenGraph(model) if BertPairForward.supports(model) else _PlainGraph(model)
    example = _probe(model, 3, 24)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns of constants; the check below sees whether they matter.
            warnings.simplefilter("ignore")
            shapes = [(name, [-1, -1], openvino.Type.i64) for name in example]
            return openvino.convert_model(graph.eval(), example_input=example, input=shapes)
    except Exception as error:  # whatever an architecture makes its tracer raise, torch can still run it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendUnavailableError(f"conversion failed: {reason}") from error


def _check(model: Any, graph: Any) -> None:
    """Scores of shapes that the conversion has not seen, against torch.

    Raises:
        BackendUnavailableError: where they differ by more than :data:`TOLERANCE` of their size.
    """
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run: Callable[[dict[str, Any]], Any] = compiled
    for rows, width in ((1, 9), (5, 40)):
        inputs = _probe(model, rows, width)
        with torch.inference_mode():
            expected = model(**inputs).logits[:, 0].numpy()
        try:
            found = run({name: value.numpy() for name, value in inputs.items()})[0]
        except RuntimeError as error:
            raise BackendUnavailableError(f"the converted graph does not run: {str(error).splitlines()[0]}") from error
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise BackendUnavailableError(f"its scores differ from torch's by {difference:.2g}")
