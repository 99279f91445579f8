"""Making training text look like users' text: undoing tokenised, lower-cased English, and longer passages."""

import random
import re
from dataclasses import replace

from src.quality.training import Example

_CLOSING = re.compile(r"\s+([.,;:!?%)\]}…]|n't\b|'(?:s|re|ve|ll|d|m)\b)")
_OPENING = re.compile(r"([(\[{$#])\s+")
_QUOTED = re.compile(r'"\s+([^"]*?)\s+"')
_DASH = re.compile(r"\s+--\s+")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?]\s))([a-z])")


def detokenize(text: str) -> str:
    """Undo Penn-style tokenisation: ``do n't , he said`` becomes ``don't, he said``."""
    text = _QUOTED.sub(r'"\1"', text)
    text = _DASH.sub(" — ", text)
    text = _OPENING.sub(r"\1", text)
    return _CLOSING.sub(r"\1", text)


def capitalize_sentences(text: str) -> str:
    """Upper-case the first Latin letter of every sentence."""
    return _SENTENCE_START.sub(lambda match: match.group(1).upper(), text)


class Rewriter:
    """Draws a variant of an example: detokenised, capitalised, or with the passages' neighbours joined on.

    Args:
        neighbours: passage -> the passages before and after it in its source, in order of the source; empty where
            the source has no order.
        tokenised: passages that are tokenised and lower-cased, so that undoing it makes sense.
        join: chance that passages are lengthened by neighbours.
        clean: chance that a tokenised example is detokenised (half of those are capitalised too).
    """

    def __init__(
        self,
        neighbours: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
        tokenised: frozenset[str],
        join: float = 0.5,
        clean: float = 0.7,
    ) -> None:
        self.neighbours = neighbours
        self.tokenised = tokenised
        self.join = join
        self.clean = clean

    def __call__(self, example: Example, generator: random.Random) -> Example:
        """Return a variant of ``example``; its negatives never come to hold the positive."""
        positive = example.positive
        tokenised = positive in self.tokenised
        negatives = list(example.negatives)
        if generator.random() < self.join:
            count = generator.randint(1, 3)
            joined = self._lengthen(positive, count, generator)
            long = [self._lengthen(n, count, generator) for n in negatives]
            negatives = [n for n in long if positive not in n] or negatives
            positive = joined
        question = example.question
        if tokenised and generator.random() < self.clean:
            question, positive = detokenize(question), detokenize(positive)
            negatives = [detokenize(n) for n in negatives]
            if generator.random() < 0.5:
                positive = capitalize_sentences(positive)
                negatives = [capitalize_sentences(n) for n in negatives]
                if generator.random() < 0.5:
                    question = capitalize_sentences(question)
        return replace(example, question=question, positive=positive, negatives=tuple(negatives))

    def _lengthen(self, passage: str, count: int, generator: random.Random) -> str:
        before, after = self.neighbours.get(passage, ((), ()))
        left = generator.randint(0, min(count, len(before)))
        right = count - left
        return " ".join([*before[len(before) - left :], passage, *after[:right]])
