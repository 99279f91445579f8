"""Embed: texts become vectors in blocks, each of which is encoded once and for all."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np

from src.core.pace import Pace
from src.core.types import Floats, Progress
from src.core.vector_parts import TokenFile, VectorParts
from src.engine.encoder import SentenceEncoder

# Seconds of work on a slow machine; the block is what is lost when a run is killed.
BLOCK_TEXTS, BLOCK_CHARACTERS = 256, 100_000
SAVE_SECONDS = 1.0

log = logging.getLogger(__name__)


def text_blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut distinct texts into blocks, longest text first, by nothing but the texts themselves."""
    block: list[str] = []
    characters = 0
    for text in sorted(dict.fromkeys(texts), key=len, reverse=True):
        if block and (len(block) == BLOCK_TEXTS or characters + len(text) > BLOCK_CHARACTERS):
            yield block
            block, characters = [], 0
        block.append(text)
        characters += len(text)
    if block:
        yield block


def encode_in_blocks(
    model: SentenceEncoder,
    texts: Sequence[str],
    batch_size: int,
    bars: Callable[[str, int], AbstractContextManager[Progress]],
    label: str,
    parts: VectorParts,
    tokens: TokenFile | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Floats:
    """Vectors of passages, float32 [N, D]; finished blocks are kept in ``parts``, and those kept before are reused.

    A block is always encoded as a whole, so a run that goes on after a kill computes what an undisturbed one does.

    Args:
        texts: N texts; equal ones are encoded once.
        label: of the progress bar.
        tokens: takes the vectors of the tokens of every text.
        save_seconds: least time between two saves.
    """
    numbers_of: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        numbers_of.setdefault(text, []).append(number)
    vectors = np.zeros((len(texts), model.dimension), dtype=np.float32)
    reused, pace = 0, Pace(save_seconds)
    with bars(label, len(texts)) as progress:
        try:
            for block in text_blocks(texts):
                owners = [numbers_of[text] for text in block]
                everyone = [number for numbers in owners for number in numbers]
                found = parts.find(block, tokens, everyone)
                if found is None:
                    found = model.encode(block, "document", batch_size, on_tokens=_to_owners(owners, tokens))
                    parts.add(block, found, tokens, everyone)
                else:
                    reused += len(everyone)
                for vector, numbers in zip(found, owners, strict=True):
                    vectors[numbers] = vector
                if pace.due:
                    with pace.saving():
                        parts.save(tokens)
                progress(len(everyone))
        finally:
            parts.save(tokens)
    if reused:
        log.info("%s: %s of %s reused from an interrupted run", label, f"{reused:,}", f"{len(texts):,}")
    return vectors


def _to_owners(owners: Sequence[Sequence[int]], tokens: TokenFile | None) -> Callable[[int, Floats], None] | None:
    """Writes the token vectors of a text of a block to every place that it has among all texts."""
    if tokens is None:
        return None

    def write(i: int, vectors: Floats) -> None:
        for number in owners[i]:
            tokens.write(number, vectors)

    return write
