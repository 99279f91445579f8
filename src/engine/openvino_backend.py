"""Cross-encoders run by OpenVINO on a CPU.

BERT, RoBERTa and XLM-RoBERTa get a last layer that computes the first token alone (:mod:`src.engine.bert_forward`);
other architectures are converted as they are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from src.engine.batches import TokenBatch
from src.engine.bert_forward import BertPairForward, PaddedLayout
from src.engine.devices import Precision, half_precision
from src.engine.openvino_graphs import CACHE_TOKENS, GraphRunner, Traceable, conversion_folder, ensure_converted
from src.engine.torch_backend import load_classifier


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
    tokens_per_pair: int | None = None

    def __init__(self, directory: Path, fingerprint: str, kept: Path, precision: Precision, threads: int) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.folder = conversion_folder(kept, fingerprint)
        self.threads = threads
        half = half_precision("cpu") if precision == "fast" else None
        self.arithmetic = "float32" if half is None else "bfloat16"
        self.runner: GraphRunner | None = None

    def load(self) -> None:
        """Convert where that has not been done, then compile.

        Raises:
            BackendUnavailableError: where OpenVINO cannot convert the model, or its scores differ from torch's.
            UserError: where the model's files cannot be loaded.
        """
        graph = ensure_converted(
            self.directory.name, self.fingerprint, self.folder, lambda: traceable(load_classifier(self.directory))
        )
        self.runner = GraphRunner(graph, self.arithmetic, self.threads, "the cross-encoder")

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """See :class:`~src.engine.pair_backends.PairBackend`.

        Raises:
            UserError: where OpenVINO fails for another reason than memory.
        """
        assert self.runner is not None

        def store(rows: npt.NDArray[np.int64], outputs: list[npt.NDArray[np.float32]]) -> None:
            scores[rows] = outputs[0]

        self.runner.run(batches, store)


def traceable(model: Any) -> Traceable:
    """A sequence classifier with one output, to be converted."""
    types = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
    return Traceable(
        graph=_FirstTokenGraph(model) if BertPairForward.supports(model) else _PlainGraph(model),
        reference=lambda inputs: (model(**inputs).logits[:, 0],),
        inputs=("input_ids", "attention_mask", *(["token_type_ids"] if types else [])),
        vocabulary=int(model.config.vocab_size),
        pad=int(getattr(model.config, "pad_token_id", None) or 0),
    )


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
