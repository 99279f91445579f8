"""Cross-encoders in 8 bits on a CPU: quantised by NNCF on pairs of the user.

Weights and activations of the matrix products become 8-bit integers (post-training quantisation with NNCF's scheme for
transformers, SmoothQuant included; Xiao et al. 2023). How far that changes the order of the candidates depends on the
model and on the texts, so whoever uses this must compare: see :mod:`src.int8`.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openvino
import torch

from src.core.artifacts import require_current
from src.core.errors import StaleArtifactError, UserError
from src.core.memory import first_line, means_out_of_memory
from src.engine.batches import TokenBatch
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.openvino_graphs import (
    GRAPH,
    GRAPH_REVISION,
    GraphRunner,
    conversion_folder,
    inputs_of,
    keep_changed,
)

_REVISION = 1  # of how graphs are quantised here

log = logging.getLogger(__name__)


def require_library() -> None:
    """Find out whether NNCF, which quantises, is installed.

    Raises:
        UserError: where it is not.
    """
    if importlib.util.find_spec("nncf") is None:
        raise UserError(
            "RERANKER_PRECISION = 'int8': package 'nncf' is not installed. Type: "
            f"{sys.executable} -m pip install -r requirements-int8.txt, or set it to 'exact' or 'fast'."
        )


class Int8Backend(OpenVinoBackend):
    """The same model as another backend, quantised.

    Args:
        exact: the backend of the model in float32.
        texts: fingerprint of the texts that it is quantised for.

    Attributes:
        pairs: how many have set the scales of the quantised graph; 0 where it is not there.
    """

    def __init__(self, exact: OpenVinoBackend, texts: str) -> None:
        super().__init__(exact.directory, exact.fingerprint, exact.folder.parent, "exact", exact.threads)
        self.original = exact.folder / GRAPH
        self.folder = conversion_folder(exact.folder.parent, f"{exact.fingerprint}-int8-{texts}")
        self.texts = texts
        self.pairs = self._look_up()

    def _look_up(self) -> int:
        try:
            manifest = require_current(self.folder, "openvino", *self._identity(), fix="automatic")
        except StaleArtifactError:
            return 0
        self.arithmetic = f"int8, scales {manifest.files[self.original.with_suffix('.bin').name]['sha256'][:8]}"
        return manifest.counts["pairs"]

    def _identity(self) -> tuple[dict[str, str], dict[str, Any]]:
        libraries = {"openvino": openvino.__version__, "nncf": importlib.metadata.version("nncf")}
        made_by = {"revision": _REVISION, "graph": GRAPH_REVISION, "vnni": _sums_are_wide()}
        return {"model": self.fingerprint, "texts": self.texts}, {**libraries, **made_by}

    def make(self, batches: Iterable[TokenBatch], pairs: int) -> None:
        """Quantise; the float32 backend must have been loaded.

        Args:
            batches: what sets the scales.
            pairs: how many these are.

        Raises:
            UserError: where that fails for another reason than memory.
        """
        log.info("Quantising %s to 8 bits (once for this corpus) ...", self.directory.name)
        try:
            graph = _quantised(self.original, batches)
            keep_changed(graph, self.original, self.folder, *self._identity(), {"pairs": pairs})
        except (MemoryError, OSError, UserError):
            raise
        except Exception as error:  # NNCF's errors have no common ground
            if means_out_of_memory(error):
                raise
            raise UserError(
                f"RERANKER_PRECISION = 'int8': {self.directory.name} cannot be quantised: {first_line(error)}. Set it "
                "to 'exact' or 'fast'."
            ) from error
        self.pairs = self._look_up()

    def discard(self) -> None:
        """Remove the quantised graph."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.pairs = 0

    def load(self) -> None:
        """Compile the quantised graph, which must be there."""
        self.runner = GraphRunner(self.folder / GRAPH, self.arithmetic, self.threads, "the cross-encoder")


def _quantised(graph: Path, batches: Iterable[TokenBatch]) -> Any:
    import nncf

    model = openvino.Core().read_model(graph)
    given = [inputs_of(model, batch) for batch in batches]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # Its bars would stand in the log as thousands of lines.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(given),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(given),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE if _sums_are_wide() else nncf.OverflowFix.ENABLE
            ),
        )


def _sums_are_wide() -> bool:
    """Whether the CPU adds products of 8 bits in 32; else they overflow 16, unless weights have 7 bits."""
    return bool(torch.cpu._is_vnni_supported())
