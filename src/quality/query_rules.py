"""Other wordings of a question by rules: keyboard layout, transliteration, spelling, abbreviations. No model.

Every rule but the abbreviations asks the corpus: a word that occurs there (in any inflection) is never touched, and a
word is only put in its place that does occur there. A corpus of some hundred pages does not hold every word of a
language, so a word of the dictionary (Russian or English) is not taken for a slip either.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pymorphy3
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist
from spellchecker import SpellChecker

from src.core.errors import UserError
from src.core.text import normalize, script_of, stem, words
from src.core.types import Corpus
from src.stages.preprocess import read_table

Rule = Callable[[str], str]

_TOKEN = re.compile(r"\S+")
_WORD = re.compile(r"\w+")
_LETTERS = re.compile(r"[^\W\d_]+")
_ONE_ALPHABET = re.compile(r"[а-я]+|[a-z]+")
_CLOSING_MARKS = ".,;:!?\"')]}»…"

# The same keys of a US and a Russian keyboard, without and with shift.
_ENGLISH = "`qwertyuiop[]asdfghjkl;'zxcvbnm,./" + '~QWERTYUIOP{}ASDFGHJKL:"ZXCVBNM<>?@#$^&'
_RUSSIAN = "ёйцукенгшщзхъфывапролджэячсмитьбю." + 'ЁЙЦУКЕНГШЩЗХЪФЫВАПРОЛДЖЭЯЧСМИТЬБЮ,"№;:?'
_TO_RUSSIAN, _TO_ENGLISH = str.maketrans(_ENGLISH, _RUSSIAN), str.maketrans(_RUSSIAN, _ENGLISH)

# Latin spellings of Russian sounds, the longest first. Letters that people spell in several ways share one letter.
_SOUNDS = {
    "shch": "ш", "sch": "ш", "sh": "ш", "ch": "ч", "zh": "ж", "kh": "х", "ts": "ц", "tz": "ц",
    "ya": "я", "ja": "я", "ia": "я", "yu": "ю", "ju": "ю", "iu": "ю", "yo": "е", "jo": "е", "ye": "е", "je": "е",
    "a": "а", "b": "б", "c": "ц", "d": "д", "e": "е", "f": "ф", "g": "г", "h": "х", "i": "и", "j": "и", "k": "к",
    "l": "л", "m": "м", "n": "н", "o": "о", "p": "п", "q": "к", "r": "р", "s": "с", "t": "т", "u": "у", "v": "в",
    "w": "в", "x": "кс", "y": "и", "z": "з",
}  # fmt: skip
_SPELLINGS = re.compile("|".join(map(re.escape, _SOUNDS)))
_SAME_SOUND = str.maketrans({"щ": "ш", "ы": "и", "й": "и", "э": "е", "ё": "е", "ь": "", "ъ": ""})
# Endings that one Latin spelling stands for and that the stem drops: "kartoj" is "картой".
_ENDINGS = re.compile(r"(?<=[оеиа])и$")

# Letters: shorter words are changed only beside one that is so long, as too many of them mean something else.
SURE_BY_LAYOUT = 3
SURE_BY_SOUND = 4
SHORTEST_CORRECTED = 5
TWO_SLIPS = 8  # letters from which a word may have two slips


@dataclass(frozen=True)
class Vocabulary:
    """The words of a corpus.

    Attributes:
        counts: word (lower case, ``ё`` as ``е``) -> how often it occurs.
    """

    counts: Mapping[str, int]

    @classmethod
    def of(cls, corpus: Corpus) -> "Vocabulary":
        """Words of all titles and texts."""
        counts: Counter[str] = Counter()
        for part in (*corpus.titles, *corpus.texts):
            counts.update(words(part))
        return cls(counts)

    @cached_property
    def _by_stem(self) -> Mapping[str, str]:
        """Stem -> its most frequent word."""
        found: dict[str, str] = {}
        for word in sorted(self.counts, key=lambda w: (-self.counts[w], w)):
            found.setdefault(stem(word), word)
        return found

    @cached_property
    def _pairs(self) -> frozenset[str]:
        return frozenset(pair for word in self.counts for pair in _letter_pairs(word))

    @cached_property
    def _by_sound(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for word in sorted(self.counts, key=lambda w: (-self.counts[w], w)):
            if script_of(word) == "cyrillic":
                found.setdefault(word.translate(_SAME_SOUND), word)
        return found

    @cached_property
    def _correct(self) -> tuple[list[str], np.ndarray]:
        """Words that may stand in for another, most frequent first, and their lengths."""
        kept = [word for word in self.counts if len(word) >= SHORTEST_CORRECTED - 1 and _ONE_ALPHABET.fullmatch(word)]
        kept.sort(key=lambda word: (-self.counts[word], word))
        return kept, np.array([len(word) for word in kept], dtype=np.int64)

    def knows(self, text: str) -> bool:
        """Whether every word of a text occurs in the corpus, in some inflection; false where it has no word."""
        found = words(text)
        return bool(found) and all(stem(word) in self._by_stem for word in found)

    def knows_any(self, text: str) -> bool:
        """Whether one of the words of a text occurs in the corpus."""
        return any(stem(word) in self._by_stem for word in words(text))

    def sounds_possible(self, text: str) -> bool:
        """Whether every two neighbouring letters of a text (and each first and last one) occur so in the corpus."""
        found = words(text)
        return bool(found) and all(pair in self._pairs for word in found for pair in _letter_pairs(word))

    def by_sound(self, latin: str) -> str | None:
        """The word of the corpus that a lower-case Latin word spells; ``None`` where there is none."""
        sound = _SPELLINGS.sub(lambda match: _SOUNDS[match[0]], latin)
        word = self._by_sound.get(sound)
        if word is not None:
            return word
        plain = _ENDINGS.sub("й", sound)
        if not self.knows(plain):
            return None
        return plain if in_dictionary(plain) else self._by_stem[stem(plain)]

    def nearest(self, word: str) -> str | None:
        """The nearest word of the corpus in the same script, the most frequent one of the nearest.

        Distance is that of optimal string alignment: a letter more, less or another, or two neighbours exchanged. One
        of these is allowed from :data:`SHORTEST_CORRECTED` letters on, two from :data:`TWO_SLIPS` on. The first
        letter, which is seldom wrong, may only change places with the second.
        """
        if len(word) < SHORTEST_CORRECTED:
            return None
        limit = 1 if len(word) < TWO_SLIPS else 2
        candidates, lengths = self._correct
        near = np.flatnonzero(np.abs(lengths - len(word)) <= limit)
        if not len(near):
            return None
        chosen = [candidates[i] for i in near.tolist()]
        distances = cdist([word], chosen, scorer=OSA.distance, score_cutoff=limit, dtype=np.int32)[0]
        for distance in range(1, limit + 1):
            for place in np.flatnonzero(distances == distance).tolist():
                other = chosen[place]
                if other[0] in word[:2] and other[:2].find(word[0]) >= 0 and script_of(other) == script_of(word):
                    return other
        return None


@lru_cache(maxsize=1)
def _russian_dictionary() -> pymorphy3.MorphAnalyzer:
    return pymorphy3.MorphAnalyzer(lang="ru")


@lru_cache(maxsize=1)
def _english_dictionary() -> SpellChecker:
    return SpellChecker(language="en", distance=1)


def in_dictionary(word: str) -> bool:
    """Whether a lower-case word stands in a dictionary, in some inflection.

    Russian is looked up in that of OpenCorpora, words in Latin letters in the English one of pyspellchecker.
    """
    if script_of(word) == "cyrillic":
        return bool(_russian_dictionary().word_is_known(word))
    return word in _english_dictionary()


def _letter_pairs(word: str) -> Iterable[str]:
    return (a + b for a, b in pairwise(f" {word} "))


def like(word: str, written: str) -> str:
    """A lower-case word in the case of another: all upper, first letter upper, or lower."""
    if len(written) > 1 and written.isupper():
        return word.upper()
    return word.capitalize() if written[:1].isupper() else word


def switch_layout(text: str, vocabulary: Vocabulary) -> str:
    """Words that were typed in the wrong keyboard layout, Russian or English: ``rfhnf`` becomes ``карта``.

    A word is read in the other layout where the corpus holds that reading and not the word. Where this explains at
    least half of the unknown words, and two or more, the other unknown ones follow if their new letters stand
    together in some word of the corpus and their old ones do not.
    """
    tokens = _TOKEN.findall(text)
    readings = [None if vocabulary.knows_any(token) else _other_layout(token, vocabulary.knows) for token in tokens]
    unknown = [bool(words(token)) and not vocabulary.knows_any(token) for token in tokens]
    if not any(reading and _letters(reading) >= SURE_BY_LAYOUT for reading in readings):
        return text
    explained = sum(reading is not None for reading in readings)
    if explained > 1 and 2 * explained >= sum(unknown):
        for i, token in enumerate(tokens):
            if readings[i] is None and unknown[i] and not vocabulary.sounds_possible(token):
                readings[i] = _other_layout(token, vocabulary.sounds_possible)
    changed = iter(readings)
    return _TOKEN.sub(lambda match: next(changed) or match[0], text)


def _other_layout(token: str, accepted: Callable[[str], bool]) -> str | None:
    scripts = {script_of(char) for char in token if char.isalpha()}
    if scripts not in ({"latin"}, {"cyrillic"}):
        return None
    table = _TO_RUSSIAN if scripts == {"latin"} else _TO_ENGLISH
    # Keys such as the comma are letters in one layout and marks in the other: at the end they may be either.
    core = token.rstrip(_CLOSING_MARKS)
    for length in sorted({len(token), len(core)}, reverse=True):
        reading = token[:length].translate(table) + token[length:]
        if accepted(reading) and all(map(_LETTERS.fullmatch, words(reading))):
            return reading
    return None


def _letters(text: str) -> int:
    return sum(char.isalpha() for char in text)


def _by_words(text: str, change: Callable[[str], str | None]) -> str:
    """A text with those of its words replaced for which ``change`` (of the folded word) gives another one."""

    def replace(match: re.Match[str]) -> str:
        folded = words(match[0])
        new = change(folded[0]) if len(folded) == 1 and _LETTERS.fullmatch(folded[0]) else None
        return match[0] if new is None else like(new, match[0])

    return _WORD.sub(replace, text)


def undo_transliteration(text: str, vocabulary: Vocabulary) -> str:
    """Russian words in Latin letters: ``karta`` becomes ``карта``, where the corpus holds that and not the other.

    Only where this explains at least half of the Latin words that the corpus does not hold: the rest is English.
    """

    def russian(word: str) -> str | None:
        if script_of(word) != "latin" or not word.isascii() or vocabulary.knows(word):
            return None
        return vocabulary.by_sound(word)

    unknown = [word for word in words(text) if script_of(word) == "latin" and not vocabulary.knows(word)]
    explained = [word for word in unknown if russian(word)]
    clear = any(len(word) >= SURE_BY_SOUND for word in explained) and 2 * len(explained) >= len(unknown)
    return _by_words(text, russian) if clear else text


def correct_spelling(text: str, vocabulary: Vocabulary) -> str:
    """Words that neither corpus nor dictionary holds in any inflection become the corpus' nearest word.

    A word that has none near enough stays as it is.
    """

    def corrected(word: str) -> str | None:
        return None if vocabulary.knows(word) or in_dictionary(word) else vocabulary.nearest(word)

    return _by_words(text, corrected)


def spell_out(text: str, abbreviations: Mapping[str, str]) -> str:
    """Whole words that are short forms become their long forms, whatever their case.

    Args:
        abbreviations: short form in lower case -> long form.
    """
    if not abbreviations:
        return text
    longest_first = sorted(abbreviations, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    return pattern.sub(lambda match: abbreviations[match[0].lower()], text)


def read_abbreviations(path: Path) -> dict[str, str]:
    """Short form in lower case -> long form, from a CSV file with the columns ``short`` and ``long``.

    Raises:
        UserError: see :func:`src.stages.preprocess.read_table`; also an empty cell, or a short form with two long ones.
    """
    table = read_table(path, {"short": "short", "long": "long"})
    found: dict[str, str] = {}
    for row, cells in enumerate(zip(table["short"], table["long"], strict=True), start=1):
        short, long = (normalize(cell) for cell in cells)
        if not short or not long:
            raise UserError(f"{path}, row {row}: short form {short!r}, long form {long!r}: fill in both, or remove it.")
        if found.setdefault(short.lower(), long) != long:
            raise UserError(
                f"{path}, row {row}: short form {short!r} is {long!r} here and {found[short.lower()]!r} above. "
                "Keep one of them."
            )
    return found


class RulesMaker:
    """Makes variants of questions.

    Args:
        corpus: whose words decide.
        abbreviations: short form in lower case -> long form.
    """

    def __init__(self, corpus: Corpus, abbreviations: Mapping[str, str] | None = None) -> None:
        self.vocabulary = Vocabulary.of(corpus)
        self.rules: dict[str, Rule] = {
            "layout": lambda text: switch_layout(text, self.vocabulary),
            "transliteration": lambda text: undo_transliteration(text, self.vocabulary),
            "abbreviations": lambda text: spell_out(text, abbreviations or {}),
            "spelling": lambda text: correct_spelling(text, self.vocabulary),
        }
        self.applied: Counter[str] = Counter()

    def variants(self, question: str, number: int) -> list[str]:
        """At most ``number`` variants: all rules one after another, then each one alone; none equal to another.

        Where one rule changes anything, that is one variant; where none does, there is none.
        """
        combined, used = question, []
        for name, rule in self.rules.items():
            changed = rule(combined)
            if changed != combined:
                used.append(name)
            combined = changed
        self.applied.update(used)
        alone = [rule(question) for rule in self.rules.values()]
        found = dict.fromkeys(text for text in (combined, *alone) if text != question)
        return list(found)[:number]
