"""Each text is tokenised once; pairs are put together from token ids, as the tokenizer itself would do it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from src.core.types import offsets_of

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenTable:
    """Token ids of N texts, without special tokens, one after another.

    Attributes:
        ids: int32 [total].
        offsets: int64 [N + 1]; text i is ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: Ids
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ids:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per text, int64 [N]."""
        return np.diff(self.offsets)


def tokenize(tokenizer: Any, texts: Sequence[str], block: int = 2048) -> TokenTable:
    """Tokenise N texts without special tokens and without truncation."""
    parts: list[Ids] = []
    lengths: list[int] = []
    for start in range(0, len(texts), block):
        rows = tokenizer(list(texts[start : start + block]), add_special_tokens=False, truncation=False, verbose=False)
        parts.append(np.fromiter(chain.from_iterable(rows["input_ids"]), dtype=np.int32))
        lengths.extend(len(ids) for ids in rows["input_ids"])
    return TokenTable(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), offsets_of(lengths))


@dataclass(frozen=True)
class PairTemplate:
    """How a tokenizer joins two texts: ``prefix + question + middle + passage + suffix``.

    Attributes:
        prefix, middle, suffix: ids of the special tokens.
        question_type, passage_type: token type of the ids up to the first special token after the question, and of
            those after it.
        middle_question_tokens: how many of ``middle`` have the question's token type.
        uses_types: whether the model takes token types at all.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    question_type: int
    passage_type: int
    middle_question_tokens: int
    uses_types: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "PairTemplate":
        """Read the template off the tokenizer's own encoding of a pair.

        Raises:
            ValueError: where the special tokens do not stand in three runs around two texts.
        """
        encoded = tokenizer(
            "a", "a", add_special_tokens=True, return_special_tokens_mask=True, return_token_type_ids=True
        )
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        types = encoded.get("token_type_ids") or [0] * len(ids)
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        starts = [
            i for i in range(len(ids)) if ids[i : i + len(plain)] == plain and not any(special[i : i + len(plain)])
        ]
        if len(starts) != 2:
            raise ValueError(f"the tokenizer does not join pairs in a known way: {ids}")
        question, passage = starts
        middle_start = question + len(plain)
        middle_types = types[middle_start:passage]
        question_type, passage_type = types[question], types[passage]
        same = sum(1 for value in middle_types if value == question_type) if question_type != passage_type else 0
        return cls(
            prefix=tuple(ids[:question]),
            middle=tuple(ids[middle_start:passage]),
            suffix=tuple(ids[passage + len(plain) :]),
            question_type=question_type,
            passage_type=passage_type,
            middle_question_tokens=same,
            uses_types="token_type_ids" in tokenizer.model_input_names,
        )

    @property
    def special_tokens(self) -> int:
        """Special tokens in a pair."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def pair_lengths(
        self, question_lengths: npt.NDArray[np.int64], passage_lengths: npt.NDArray[np.int64], max_length: npt.ArrayLike
    ) -> npt.NDArray[np.int64]:
        """Tokens of each pair after truncation, int64 [P]; the passage is cut, never the question.

        Args:
            max_length: most tokens in a pair, one number or int64 [P].
        """
        room = np.asarray(max_length, dtype=np.int64) - self.special_tokens - question_lengths
        lengths: npt.NDArray[np.int64] = question_lengths + np.minimum(passage_lengths, room) + self.special_tokens
        return lengths

    def join(
        self, questions: TokenTable, passages: TokenTable, pairs: Ids, limits: npt.NDArray[np.int64]
    ) -> "JoinedPairs":
        """Pairs, one after another; passages are cut, questions never.

        Args:
            pairs: int32 [B, 2], rows of the two tables.
            limits: int64 [B], most tokens of each pair.

        Raises:
            ValueError: where a question alone leaves no room.
        """
        asked = questions.lengths[pairs[:, 0]]
        room = limits - self.special_tokens - asked
        if len(room) and room.min() < 0:
            worst = int(room.argmin())
            raise ValueError(f"a question of {asked[worst]} tokens does not fit into a pair of {limits[worst]}")
        return JoinedPairs(self, questions, passages, pairs, asked, np.minimum(passages.lengths[pairs[:, 1]], room))


@dataclass(frozen=True)
class JoinedPairs:
    """Pairs and where their tokens lie; they are put together where they are asked for.

    It is what :class:`~src.engine.batches.Tokens` asks for. A card may put them together by itself.

    Attributes:
        pairs: int32 [B, 2], rows of the two tables.
        asked, read: int64 [B], tokens of the question, and those of the passage that fit beside them.
    """

    template: PairTemplate
    questions: TokenTable
    passages: TokenTable
    pairs: Ids
    asked: npt.NDArray[np.int64]
    read: npt.NDArray[np.int64]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64 [B + 1]; pair i has the tokens from ``offsets[i]`` to ``offsets[i + 1]``."""
        return offsets_of(self.asked + self.read + self.template.special_tokens)

    @cached_property
    def ids(self) -> Ids:
        """Token ids, int32 [T]."""
        template, start = self.template, self.offsets[:-1]
        ids = np.empty(int(self.offsets[-1]), dtype=np.int32)
        question = start + len(template.prefix)
        passage = question + self.asked + len(template.middle)
        for special, at in (
            (template.prefix, start), (template.middle, question + self.asked), (template.suffix, passage + self.read),
        ):  # fmt: skip
            ids[at[:, None] + np.arange(len(special))] = np.array(special, dtype=np.int32)
        _copy_runs(ids, question, self.questions.ids, self.questions.offsets[self.pairs[:, 0]], self.asked)
        _copy_runs(ids, passage, self.passages.ids, self.passages.offsets[self.pairs[:, 1]], self.read)
        return ids

    @cached_property
    def types(self) -> Ids | None:
        """Token types, int32 [T]; ``None`` where the model takes none."""
        template = self.template
        if not template.uses_types:
            return None
        borders = self.offsets[:-1] + len(template.prefix) + self.asked + template.middle_question_tokens
        of_question = np.arange(int(self.offsets[-1])) < np.repeat(borders, np.diff(self.offsets))
        return np.where(of_question, template.question_type, template.passage_type).astype(np.int32)

    def part(self, rows: slice) -> "JoinedPairs":
        """Some of the pairs, next to each other."""
        return replace(self, pairs=self.pairs[rows], asked=self.asked[rows], read=self.read[rows])


def _copy_runs(
    target: Ids,
    at: npt.NDArray[np.int64],
    source: Ids,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> None:
    """Copy runs of a flat array into another one, all at once."""
    inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target[np.repeat(at, lengths) + inside] = source[np.repeat(starts, lengths) + inside]


def usable_positions(config: Any, otherwise: int) -> int:
    """Most tokens that a model has positions for.

    Args:
        config: of the model.
        otherwise: where it does not say.
    """
    positions = int(getattr(config, "max_position_embeddings", 0) or otherwise)
    # RoBERTa counts positions from pad_token_id + 1, so two of its 514 can never be used.
    if getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert"}:
        positions -= int(config.pad_token_id) + 1
    return positions
