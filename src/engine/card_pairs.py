"""Pairs put together on the card, from token tables that stay there: a batch costs a copy of four numbers a pair."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.core.memory import first_line, means_out_of_memory
from src.engine.batches import TokenBatch
from src.engine.tokens import JoinedPairs, PairTemplate, TokenTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardTokens:
    """Tokens of a batch on a device, one text after another.

    Attributes:
        ids: integers [T].
        places: place of each token in its text, from 0, integers [T].
        types: token types, integers [T]; ``None`` where the model takes none.
        offsets: int32 [B + 1]; text i has the tokens ``offsets[i]`` to ``offsets[i + 1]``.
    """

    ids: Tensor
    places: Tensor
    types: Tensor | None
    offsets: Tensor


class CardPairs:
    """Brings batches to a device: those of joined pairs as places in tables that it holds, others token by token.

    A device without room for the tables gets all batches token by token.

    Args:
        device: torch device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.joins = True
        self.checked = False
        self._tables: tuple[PairTemplate, TokenTable, TokenTable] | None = None
        self._ids = torch.zeros(0, dtype=torch.int32)

    def tokens(self, batch: TokenBatch) -> CardTokens:
        """The tokens of a batch on the device."""
        source = batch.source
        if isinstance(source, JoinedPairs) and self._hold(source):
            found = self._join(source)
            if self.checked or self._is_right(found, batch):
                return found
        types = None if batch.kinds is None else self.copied(batch.kinds)
        offsets = self.copied(batch.offsets.astype(np.int32))
        return CardTokens(self.copied(batch.tokens), self.copied(batch.places), types, offsets)

    def _is_right(self, found: CardTokens, batch: TokenBatch) -> bool:
        """Whether the first pairs that were joined here are those of the host; if not, the host joins all."""
        self.checked = True
        pairs = ((found.ids, batch.tokens), (found.places, batch.places), (found.offsets, batch.offsets))
        same = all(np.array_equal(ours.cpu().numpy(), right) for ours, right in pairs)
        if found.types is not None and batch.kinds is not None:
            same = same and np.array_equal(found.types.cpu().numpy(), batch.kinds)
        if not same:
            log.warning("WARNING: %s does not put pairs together as the host does: the host does it.", self.device)
            self.joins = False
        return same

    def copied(self, values: npt.NDArray[Any]) -> Tensor:
        """An array on the device; the host does not wait for the copy."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _hold(self, source: JoinedPairs) -> bool:
        tables = source.template, source.questions, source.passages
        held = self._tables
        if not self.joins:
            return False
        if held is not None and all(a is b for a, b in zip(held, tables, strict=True)):
            return True
        special = np.array(self._special(source.template), dtype=np.int32)
        # What was held makes room first.
        self._tables, self._ids = None, torch.zeros(0, dtype=torch.int32)
        try:
            # 100,000 passages of 100 tokens take 40 MB. Not pinned: pinned memory is never given back.
            parts = (special, source.questions.ids, source.passages.ids)
            self._ids = torch.cat([torch.from_numpy(ids).to(self.device) for ids in parts])
        except (MemoryError, RuntimeError) as error:
            if not means_out_of_memory(error):
                raise
            log.warning(
                "WARNING: no room for the token tables on %s (%s): pairs are put together on the host.",
                self.device, first_line(error)[:100],
            )  # fmt: skip
            self.joins = False
            return False
        self._tables = tables
        return True

    @staticmethod
    def _special(template: PairTemplate) -> tuple[int, ...]:
        return template.prefix + template.middle + template.suffix

    def _join(self, source: JoinedPairs) -> CardTokens:
        """What :class:`~src.engine.tokens.JoinedPairs` joins, as places in the table of all ids."""
        template = source.template
        before = len(self._special(template))
        questions = before + source.questions.offsets[source.pairs[:, 0]]
        passages = before + len(source.questions.ids) + source.passages.offsets[source.pairs[:, 1]]
        question, asked, passage, read = self.copied(np.stack([questions, source.asked, passages, source.read]))
        lengths = asked + read + before
        ends = torch.cumsum(lengths, 0)
        total = int(source.offsets[-1])
        # Told how many tokens there are, the card need not be waited for.
        owner = torch.repeat_interleave(lengths, output_size=total)
        places = torch.arange(total, device=self.device) - (ends - lengths)[owner]
        # Where a token stands behind the start of each run; below 0, it is in a run before.
        in_question = places - len(template.prefix)
        in_middle = in_question - asked[owner]
        in_passage = in_middle - len(template.middle)
        in_suffix = in_passage - read[owner]
        middle, suffix = len(template.prefix), len(template.prefix) + len(template.middle)
        at = torch.where(in_suffix < 0, passage[owner] + in_passage, suffix + in_suffix)
        at = torch.where(in_passage < 0, middle + in_middle, at)
        at = torch.where(in_middle < 0, question[owner] + in_question, at)
        at = torch.where(in_question < 0, places, at)
        types = None
        if template.uses_types:
            of_question = in_middle < template.middle_question_tokens
            types = torch.where(of_question, template.question_type, template.passage_type)
        offsets = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
        return CardTokens(self._ids[at], places, types, offsets)
