"""Cross-encoders run by torch: any architecture, any device."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForSequenceClassification

from src.core.errors import UserError
from src.engine.batches import TokenBatch
from src.engine.devices import Precision, explain_loading, half_precision
from src.engine.memory_limit import MemoryLimit

log = logging.getLogger(__name__)


def load_classifier(directory: Path) -> Any:
    """The sequence classifier of a directory, float32, ready to score.

    Raises:
        UserError: where its files cannot be loaded, or lack weights of the classifier (those of a bi-encoder do).
    """
    with explain_loading("CROSS_ENCODER_MODEL", directory):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(
            f"CROSS_ENCODER_MODEL: {directory} has no weights for {missing[0]} ({len(missing)} missing): it is no "
            "cross-encoder, and would score at random. Name a cross-encoder."
        )
    return model.eval()


class TorchBackend:
    """Padded batches through the model's own forward.

    Args:
        directory: the model's directory.
        device: torch device.
        precision: ``exact`` is float32; ``fast`` takes the 16-bit type that the device multiplies in hardware, where it
            has one: on a card for the weights too, else under autocast.
    """

    name = "torch"
    most_tokens: int | None = None
    tokens_per_pair: int | None = None

    def __init__(self, directory: Path, device: str, precision: Precision = "exact") -> None:
        self.directory = directory
        self.device = torch.device(device)
        self.half = half_precision(device) if precision == "fast" else None
        self.arithmetic = str(self.half or torch.float32).removeprefix("torch.")
        self.whole = self.half is not None and self.device.type == "cuda"
        self.limit = MemoryLimit("the cross-encoder", device)
        self.model: Any = None

    def load(self) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`."""
        # Autocast would convert the weights anew for every batch.
        self.model = load_classifier(self.directory).to(self.device, self.half if self.whole else None)

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`."""
        for part, found in self.limit.results(batches, self._forward):
            if self.half == torch.float16 and not np.isfinite(found).all():
                log.warning("Scores beyond the range of float16: bfloat16 is used from now on, for these pairs too.")
                self.half, self.arithmetic = torch.bfloat16, "bfloat16"
                self.load()
                found = self._forward(part)
            scores[part.rows] = found

    def _forward(self, batch: TokenBatch) -> npt.NDArray[np.float32]:
        on_device = {name: torch.from_numpy(value).to(self.device) for name, value in batch.inputs.items()}
        autocast = torch.autocast(
            self.device.type, self.half or torch.bfloat16, enabled=self.half is not None and not self.whole
        )
        with torch.inference_mode(), autocast:
            logits = self.model(**on_device).logits
        result: npt.NDArray[np.float32] = logits[:, 0].float().cpu().numpy()
        return result
