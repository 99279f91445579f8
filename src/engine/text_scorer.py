"""What the scorers have in common that hand texts, not tokens, to sentence-transformers."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from src.core.errors import UserError
from src.core.memory import means_out_of_memory
from src.engine.devices import Precision, explain_loading, half_precision
from src.engine.memory_limit import PairTooLargeError
from src.engine.tokens import TokenTable, tokenize

Pairs = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable(TokenTable):
    """Token ids and the texts that they came from."""

    texts: tuple[str, ...] = ()


class TextScorer:
    """A model that sentence-transformers loads and feeds.

    Args:
        directory: the model's directory.
        device: torch device.
        batch_size: texts or pairs per forward pass; halved where memory runs out.
        max_length: most tokens of question and passage together.
        precision: ``exact`` is float32; ``fast`` loads the weights in the 16-bit type that the device multiplies in
            hardware, where it has one.
        remote_code: whether the model's own Python code may run.

    Raises:
        UserError: where the model's files cannot be loaded.
    """

    backend_name = "sentence-transformers"
    joint = True

    def __init__(
        self, directory: Path, device: str, batch_size: int, max_length: int, precision: Precision, remote_code: bool
    ) -> None:
        self.directory = directory
        self.device = device
        self.batch_size = batch_size
        self.max_length = max_length
        self.remote_code = remote_code
        self.half = half_precision(device) if precision == "fast" else None
        if self.half == torch.float16 and _trained_in_bfloat16(directory):
            # Activations of such models can leave the range of float16.
            self.half = torch.bfloat16
        self.arithmetic = str(self.half or torch.float32).removeprefix("torch.")
        self.model: Any = None
        with explain_loading("CROSS_ENCODER_MODEL", directory):
            from transformers import AutoTokenizer

            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=remote_code
            )

    def tokenize(self, texts: Sequence[str]) -> TokenTable:
        """Tokenise texts; the table keeps the texts too."""
        table = tokenize(self.tokenizer, texts)
        return TextTable(table.ids, table.offsets, tuple(texts))

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters."""
        offsets = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )["offset_mapping"]
        return [end for _, end in offsets]

    def halving(self, work: Callable[[], T], largest: PairTooLargeError) -> T:
        """What ``work`` returns; where memory runs out, ``batch_size`` is halved for the rest of the run.

        Args:
            largest: the error where a batch of one does not fit; it names what takes most.

        Raises:
            PairTooLargeError: that one.
        """
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not means_out_of_memory(error):
                    raise
            # Only here is the error, and with it the tensors that its frames hold, gone.
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            if self.batch_size == 1:
                raise largest
            self.batch_size //= 2
            log.warning(
                "WARNING: the cross-encoder ran out of memory on %s: %d at a time from now on.",
                self.device, self.batch_size,
            )  # fmt: skip


def _trained_in_bfloat16(directory: Path) -> bool:
    with explain_loading("CROSS_ENCODER_MODEL", directory):
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return "bfloat16" in {config.get("dtype"), config.get("torch_dtype")}


def text_tables(questions: TokenTable, passages: TokenTable) -> tuple[TextTable, TextTable]:
    """The same tables, known to hold texts.

    Raises:
        TypeError: where another kind of scorer made them.
    """
    if not isinstance(questions, TextTable) or not isinstance(passages, TextTable):
        raise TypeError("tables of another scorer")
    return questions, passages


def checked(scores: npt.ArrayLike) -> Scores:
    """Scores as float32.

    Raises:
        UserError: where one of them is not finite.
    """
    found = np.asarray(scores, dtype=np.float32)
    if not np.isfinite(found).all():
        raise UserError(
            "the cross-encoder returned a score that is not finite. The model's files may be damaged; in 16 bits, set "
            "RERANKER_PRECISION = 'exact'."
        )
    return found
