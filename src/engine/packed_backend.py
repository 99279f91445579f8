"""Cross-encoders of the BERT family on CUDA: 16 bits, tokens one after another without padding."""

import copy
import logging
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
from src.engine.batches import PlainTokens, TokenBatch
from src.engine.bert_forward import BertPairForward, PackedLayout, VariableLengthAttention
from src.engine.card_pairs import CardPairs
from src.engine.memory_limit import MemoryLimit
from src.engine.openvino_graphs import BackendUnavailableError
from src.engine.torch_backend import load_classifier

# Flash attention needs Ampere or later.
MIN_CAPABILITY = (8, 0)
TOKENS_PER_PAIR = 512  # of the budget: packed batches are bounded by tokens, and large ones keep the card busy
_TOLERANCE = 0.05  # of a logit in 16 bits against float32, relative to the largest

log = logging.getLogger(__name__)


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
    made_in: torch.dtype
    done: torch.cuda.Event | None

    @classmethod
    def of(cls, logits: Tensor, made_in: torch.dtype, device: torch.device) -> "_Logits":
        if device.type != "cuda":
            return cls(logits, made_in, None)
        host = logits.to("cpu", non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # The stream is named: without it the event would be of the thread's current card.
        done.record(torch.cuda.current_stream(device))
        return cls(host, made_in, done)

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

    A model whose activations leave the range of float16 runs in bfloat16, pairs that alone do so are scored again.
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
        self.pairs = CardPairs(self.device)
        self.forward: BertPairForward | None = None

    def load(self) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`; the packed pass is checked against the model's own."""
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < MIN_CAPABILITY:
            raise BackendUnavailableError("the card is older than Ampere, flash attention does not run on it")
        try:
            if self.attention is None:
                self.attention = cuda_attention()
            finite = self._load_as(self.dtype)
            if not finite and self.dtype == torch.float16:
                self.dtype, self.arithmetic = torch.bfloat16, "bfloat16"
                log.warning("The cross-encoder leaves the range of float16: bfloat16 is used.")
                finite = self._load_as(self.dtype)
        except (ImportError, TypeError, RuntimeError, NotImplementedError) as error:
            if means_out_of_memory(error):
                raise
            raise BackendUnavailableError(
                f"variable-length attention does not run here: {first_line(error)}"
            ) from error
        if not finite:
            raise BackendUnavailableError(f"its scores are not finite in {self.arithmetic}")

    def _load_as(self, dtype: torch.dtype) -> bool:
        """Load the weights anew, and check them; false where the scores are not finite."""
        model = load_classifier(self.directory)
        if not BertPairForward.supports(model):
            raise BackendUnavailableError(f"{type(model).__name__} is not of the BERT family")
        # The packed pass shares the model's weights: what they give in float32 is asked before they are converted.
        batch, expected = _probe(model)
        self.forward = None  # two may not fit
        made = BertPairForward(model).eval()
        head = copy.deepcopy(made.head)
        made.to(self.device, dtype)
        made.head = head.to(self.device)
        self.forward = made
        found = self._logits(batch).wait()
        if not bool(torch.isfinite(found).all()):
            return False
        difference = float((found - expected).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise BackendUnavailableError(f"its scores differ from the model's own by {difference:.2g}")
        return True

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`."""
        under_way: tuple[TokenBatch, _Logits] | None = None
        for part, logits in self.limit.results(batches, self._logits):
            # The card works on this part while the last one is stored and the next one is put together.
            if under_way is not None:
                self._store(*under_way, scores)
            under_way = part, logits
        if under_way is not None:
            self._store(*under_way, scores)

    def _store(self, part: TokenBatch, logits: _Logits, scores: npt.NDArray[np.float32]) -> None:
        scores[part.rows] = logits.wait().numpy()
        if np.isfinite(scores[part.rows]).all():
            return
        if self.dtype == torch.float16:
            log.warning("Scores beyond the range of float16: bfloat16 is used from now on, for these pairs too.")
            self.dtype, self.arithmetic = torch.bfloat16, "bfloat16"
            try:
                self._load_as(self.dtype)
            except BackendUnavailableError as error:
                raise UserError(
                    f"the cross-encoder leaves the range of float16, and in bfloat16 {error}. Set RERANKER_PRECISION = "
                    "'exact'."
                ) from error
        if logits.made_in == torch.float16:  # this part, or the one that was on its way when the last one was stored
            for piece, again in self.limit.results([part], self._logits):
                scores[piece.rows] = again.wait().numpy()
        if not np.isfinite(scores[part.rows]).all():
            raise UserError(
                "the cross-encoder returned a score that is not finite in 16 bits. Set RERANKER_PRECISION = 'exact'."
            )

    def _logits(self, batch: TokenBatch) -> _Logits:
        assert self.forward is not None
        assert self.attention is not None
        with torch.inference_mode():
            found = self.pairs.tokens(batch)
            layout = PackedLayout(found.offsets, batch.shape[1], self.attention)
            logits: Tensor = self.forward(found.ids, found.places, found.types, layout)
            return _Logits.of(logits, self.dtype, self.device)


def _probe(model: Any) -> tuple[TokenBatch, Tensor]:
    """Three made-up pairs, and the logits that the model gives them."""
    offsets = np.array([0, 9, 49, 72])
    tokens = np.random.default_rng(0).integers(5, model.config.vocab_size, offsets[-1]).astype(np.int32)
    batch = TokenBatch(np.arange(3), PlainTokens(tokens, offsets))
    with torch.inference_mode():
        found: Tensor = model(input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)).logits
    return batch, found[:, 0]
