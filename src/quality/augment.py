"""Making training text look like users' text: undoing tokenised English, longer passages, questions made by rules."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from src.core.text import words
from src.quality.mining import Example, Pair

_CLOSING = re.compile(r"\s+([.,;:!?%)\]}…]|n't\b|'(?:s|re|ve|ll|d|m)\b)")
_OPENING = re.compile(r"([(\[{$#])\s+")
_QUOTED = re.compile(r'"\s+([^"]*?)\s+"')
_DASH = re.compile(r"\s+--\s+")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?]\s))([a-z])")
_SPACED_POINT = re.compile(r"\w [.,?] |\w [.?]$")

_YEAR = re.compile(r"\b(?:[вВ]|[Ii]n) \d{4}(?: год[уа])?\b")
_NUMBER = re.compile(r"\d[\d\s.,]*")
_WORD = re.compile(r"[\w-]+")
_ASKING = ("что", "кто", "какой", "где", "когда", "почему", "как", "чем", "", "", "")
_FUNCTION_WORDS_RU = (
    "и в во на не он она оно они с со к ко по из за для от до о об у а но что как это его её их же бы то был была было "
    "были при также или так ещё который которая которые"
)
_FUNCTION_WORDS_EN = "the a an of and in on to for is are was were with by from as at it its that this"
_FUNCTION_WORDS = frozenset(f"{_FUNCTION_WORDS_RU} {_FUNCTION_WORDS_EN}".split())


def detokenize(text: str) -> str:
    """Undo Penn-style tokenisation: ``do n't , he said`` becomes ``don't, he said``."""
    text = _QUOTED.sub(r'"\1"', text)
    text = _DASH.sub(" — ", text)
    text = _OPENING.sub(r"\1", text)
    return _CLOSING.sub(r"\1", text)


def looks_tokenized(text: str) -> bool:
    """Whether a text is lower-cased with blanks before its punctuation, as tokenised corpora are."""
    return text == text.lower() and _SPACED_POINT.search(text) is not None


def capitalize_sentences(text: str) -> str:
    """Upper-case the first Latin letter of every sentence."""
    return _SENTENCE_START.sub(lambda match: match.group(1).upper(), text)


class Rewriter:
    """Draws a variant of an example: passages lengthened by their neighbours, tokenised text made plain.

    Args:
        passages: passages in the order of their source; what stands beside one in it is joined on.
        join: chance that an example's passages are lengthened (by 1 to 3 neighbours each, the same number for all).
        clean: chance that a tokenised example is detokenised; six in ten of those are capitalised too.
        longest: passages with more characters are never lengthened.
    """

    def __init__(self, passages: Sequence[str], join: float = 0.6, clean: float = 0.8, longest: int = 300) -> None:
        self.passages = passages
        self.place = {passage: i for i, passage in enumerate(passages)}
        self.join = join
        self.clean = clean
        self.longest = longest

    def __call__(self, example: Example, generator: random.Random) -> Example:
        """Return a variant of ``example``; its negatives never come to hold the positive."""
        positive, negatives, question = example.positive, list(example.negatives), example.question
        if generator.random() < self.join and len(positive) <= self.longest:
            count = generator.randint(1, 3)
            long = [self._lengthen(negative, count, generator) for negative in negatives]
            negatives = [n if positive not in n else plain for n, plain in zip(long, negatives, strict=True)]
            positive = self._lengthen(positive, count, generator)
        if looks_tokenized(example.positive) and generator.random() < self.clean:
            question, positive = detokenize(question), detokenize(positive)
            negatives = [detokenize(n) for n in negatives]
            if generator.random() < 0.6:
                positive = capitalize_sentences(positive)
                negatives = [capitalize_sentences(n) for n in negatives]
                if generator.random() < 0.5:
                    question = capitalize_sentences(question)
        return replace(example, question=question, positive=positive, negatives=tuple(negatives))

    def _lengthen(self, passage: str, count: int, generator: random.Random) -> str:
        place = self.place.get(passage)
        if place is None or len(passage) > self.longest:
            return passage
        left = generator.randint(0, count)
        parts = self.passages[max(0, place - left) : place + count - left + 1]
        return " ".join(part if part[-1:] in ".!?…" else part + "." for part in parts)


def question_by_rule(sentence: str, generator: random.Random) -> str | None:
    """A keyword question that a sentence answers, or ``None`` where it has too few words.

    A year or number is taken out and asked for; three to seven of the other content words are kept, in order, some
    without their last letters, so that words rarely match to the letter. No translation, no model.
    """
    asking = generator.choice(_ASKING)
    if _YEAR.search(sentence) and generator.random() < 0.8:
        sentence = _YEAR.sub(" ", sentence, count=1)
        asking = generator.choice(("когда", "в каком году", "год"))
    elif _NUMBER.search(sentence) and generator.random() < 0.5:
        sentence = _NUMBER.sub(" ", sentence)
        asking = generator.choice(("сколько", "какое количество", ""))
    content = [w for w in _WORD.findall(sentence) if w.lower() not in _FUNCTION_WORDS and len(w) > 2]
    if len(content) < 4:
        return None
    count = generator.randint(3, min(7, len(content)))
    first = generator.randint(0, len(content) - count)
    neighbouring = list(range(first, first + count))
    places = neighbouring if generator.random() < 0.5 else sorted(generator.sample(range(len(content)), count))
    kept = [
        word if len(word) < 6 or generator.random() < 0.7 else word[: -generator.randint(1, 2)]
        for word in (content[place] for place in places)
    ]
    question = " ".join([asking, *kept]).strip()
    if generator.random() < 0.6:
        question = question.lower()
    return question + "?" if generator.random() < 0.3 else question


def pairs_by_rule(
    documents: Mapping[str, Sequence[str]], count: int, generator: random.Random
) -> tuple[list[Pair], list[str]]:
    """Question-passage pairs made from unlabelled documents.

    Args:
        documents: id -> its sentences, in order.
        count: most pairs to make.

    Returns:
        The pairs, and all passages (windows of 1 to 3 sentences; those without a question serve as negatives).
    """
    pairs: list[Pair] = []
    passages: list[str] = []
    for sentences in documents.values():
        usable = [sentence for sentence in sentences if 40 < len(sentence) < 350]
        if len(usable) < 4:
            continue
        for start in sorted(generator.sample(range(len(usable) - 2), min(14, len(usable) - 2))):
            window = usable[start : start + generator.choice((1, 2, 2, 3))]
            passage = " ".join(window)
            if len(passage) > 650:
                window, passage = window[:1], window[0]
            passages.append(passage)
            question = question_by_rule(generator.choice(window), generator)
            if question is not None and len(words(question)) >= 3:
                pairs.append((question, passage))
    if len(pairs) > count:
        pairs = [pairs[i] for i in sorted(generator.sample(range(len(pairs)), count))]
    return pairs, list(dict.fromkeys(passages))
