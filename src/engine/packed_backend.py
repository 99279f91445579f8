"""Cross-encoders of the BERT family on CUDA: 16 bits, tokens one after another without padding."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.core.errors import UserError
from src.core.memory import first_line, means_out_of_memory
from src.engine.batches import TokenBatch
from src.engine.bert_forward import BertPairForward, PackedLayout, VariableLengthAttention
from src.engine.memory_limit import MemoryLimit
from src.engine.openvino_graphs import BackendUnavailableError
from src.engine.torch_backend import load_classifier

# Flash attention needs Ampere or later.
MIN_CAPABILITY = (8, 0)
TOKENS_PER_PAIR = 512  # of the budget: packed batches are bounded by tokens, and large ones keep the card busy
_TOLERANCE = 0.05  # of a logit in 16 bits against float32, relative to the largest


def cuda_attention() -> VariableLengthAttention:
    """Torch's variable-length attention; it has kernels for CUDA alone.

    Without splits along the keys, a pair's attention does not depend on the other pairs of its batch.
    """
    from torch.nn.attention.varlen import varlen_attn

    return partial(varlen_attn, num_splits=1)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Logits:
    """Logits on their way from the card.

    The copy stands in the card's queue right behind the work that makes them. Asked for later, it would stand behind
    the next batch, and the host would wait for that.
    """

    host: Tensor
    done: torch.cuda.Event | None

    @classmethod
    def of(cls, logits: Tensor, device: torch.device) -> "_Logits":
        if device.type != "cuda":
            return cls(logits, None)
        host = logits.to("cpu", non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # The stream is named: without it the event would be of the thread's current card.
        done.record(torch.cuda.current_stream(device))
        return cls(host, done)

    def wait(self) -> Tensor:
        """The logits, float32 [B], once they have arrived."""
        if self.done is not None:
            self.done.synchronize()
        return self.host


class PackedBackend:
    """Packed batches through :class:`~src.engine.bert_forward.BertPairForward`.

    Args:
        directory: the model's directory.
        device: torch device.
        dtype: what weights and activations are held in.
        attention: variable-length attention; ``None`` takes torch's.
    """

    name = "torch, packed"
    most_tokens: int | None = None
    tokens_per_pair: int | None = TOKENS_PER_PAIR

    def __init__(
        self,
        directory: Path,
        device: str,
        dtype: torch.dtype = torch.float16,
        attention: VariableLengthAttention | None = None,
    ) -> None:
        self.directory = directory
        self.device = torch.device(device)
        self.dtype = dtype
        self.attention = attention
        self.arithmetic = str(dtype).removeprefix("torch.")
        self.limit = MemoryLimit("the cross-encoder", device)
        self.forward: BertPairForward | None = None

    def load(self) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`; the packed pass is checked against the model's own."""
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < MIN_CAPABILITY:
            raise BackendUnavailableError("the card is older than Ampere, flash attention does not run on it")
        model = load_classifier(self.directory)
        if not BertPairForward.supports(model):
            raise BackendUnavailableError(f"{type(model).__name__} is not of the BERT family")
        if self.attention is None:
            self.attention = cuda_attention()
        # The packed pass shares the model's weights: what they give in float32 is asked before they are converted.
        batch, expected = _probe(model)
        self.forward = BertPairForward(model).eval().to(self.device, self.dtype)
        self._check(batch, expected)

    def _check(self, batch: TokenBatch, expected: Tensor) -> None:
        try:
            found = self._logits(batch).wait()
        except (RuntimeError, NotImplementedError) as error:
            if means_out_of_memory(error):
                raise
            raise BackendUnavailableError(
                f"variable-length attention does not run here: {first_line(error)}"
            ) from error
        difference = float((found - expected).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise BackendUnavailableError(f"its scores differ from the model's own by {difference:.2g}")

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`."""
        under_way: tuple[npt.NDArray[np.int64], _Logits] | None = None
        for part, logits in self.limit.results(batches, self._logits):
            # The card works on this part while the last one is stored and the next one is put together.
            if under_way is not None:
                _store(*under_way, scores)
            under_way = part.rows, logits
        if under_way is not None:
            _store(*under_way, scores)

    def _logits(self, batch: TokenBatch) -> _Logits:
        assert self.forward is not None
        assert self.attention is not None
        filled = batch.mask.astype(bool)
        lengths = batch.mask.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        places = np.broadcast_to(np.arange(batch.ids.shape[1]), batch.ids.shape)[filled]
        types = None if batch.types is None else self._to_device(batch.types[filled])
        layout = PackedLayout(self._to_device(offsets), int(lengths.max()), self.attention)
        with torch.inference_mode():
            logits: Tensor = self.forward(self._to_device(batch.ids[filled]), self._to_device(places), types, layout)
            return _Logits.of(logits.float(), self.device)

    def _to_device(self, values: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _probe(model: Any) -> tuple[TokenBatch, Tensor]:
    """Three made-up pairs, and the logits that the model gives them."""
    rows, width = 3, 40
    ids = np.random.default_rng(0).integers(5, model.config.vocab_size, (rows, width))
    lengths = np.array([[9], [40], [23]])
    mask = (np.arange(width) < lengths).astype(np.int64)
    with torch.inference_mode():
        found: Tensor = model(input_ids=torch.from_numpy(ids * mask), attention_mask=torch.from_numpy(mask)).logits
    return TokenBatch(np.arange(rows), ids * mask, mask, None), found[:, 0]


def _store(rows: npt.NDArray[np.int64], logits: _Logits, scores: npt.NDArray[np.float32]) -> None:
    scores[rows] = logits.wait().numpy()
    if not np.isfinite(scores[rows]).all():
        raise UserError(
            "the cross-encoder returned a score that is not finite in 16 bits. Set RERANKER_PRECISION = 'exact'."
        )
