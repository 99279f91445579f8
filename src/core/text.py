"""The one normaliser, word tokenizer, stemmer and script detection of the project."""

import html
import html.entities
import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Literal

import Stemmer

Script = Literal["cyrillic", "latin", "digits", "other"]

_SPACES = re.compile(r"[^\S\n]+")
_SPACES_AROUND_NEWLINE = re.compile(r" *\n *")
_MANY_NEWLINES = re.compile(r"\n{3,}")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_WORD = re.compile(r"\w+")
# Stress marks and soft hyphens sit inside Russian words and would split them.
_INVISIBLE_IN_WORDS = dict.fromkeys(map(ord, "\u0301\u0300\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_WORD_AS_WRITTEN = re.compile(r"[\w\u0300-\u036f\u00ad\u200b-\u200d\u2060\ufeff]+")
_STEMMER_LANGUAGE: dict[Script, str] = {"cyrillic": "russian", "latin": "english"}


def normalize(text: str) -> str:
    """Clean a text from a CSV export without changing its words.

    Does, in this order: HTML entities to characters, line ends to ``\\n``, NUL, BOM and lone surrogates dropped,
    Unicode NFC, runs of blanks to one blank, more than one empty line to one. Nothing else is altered.
    """
    text = _ENTITY.sub(_entity, text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace("\x00", "").replace("\ufeff", "")
    text = text.encode("utf-8", "ignore").decode("utf-8")
    text = unicodedata.normalize("NFC", text)
    text = _SPACES.sub(" ", text)
    text = _SPACES_AROUND_NEWLINE.sub("\n", text)
    return _MANY_NEWLINES.sub("\n\n", text).strip()


def _entity(match: re.Match[str]) -> str:
    found = match.group()
    # html.unescape would also read the beginning of an unknown name: "&notanentity;" as "¬anentity;".
    return html.unescape(found) if found[1] == "#" or found[1:] in html.entities.html5 else found


def script_of(word: str) -> Script:
    """Script of a word: that of its first letter; ``digits`` where it has no letter but a digit."""
    for char in word:
        if char.isalpha():
            name = unicodedata.name(char, "")
            if name.startswith("CYRILLIC"):
                return "cyrillic"
            return "latin" if name.startswith("LATIN") else "other"
    return "digits" if any(char.isdigit() for char in word) else "other"


def words(text: str) -> list[str]:
    """Lower-case words of a text for matching: stress marks and soft hyphens dropped, ``ё`` read as ``е``."""
    folded = unicodedata.normalize("NFC", text.translate(_INVISIBLE_IN_WORDS).casefold()).replace("ё", "е")
    return _WORD.findall(folded)


@lru_cache(maxsize=4)
def _stemmer(language: str) -> Stemmer.Stemmer:
    return Stemmer.Stemmer(language)


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Snowball stem of a lower-case word, by its script: Russian for Cyrillic, English for Latin, else as it is."""
    language = _STEMMER_LANGUAGE.get(script_of(word))
    return str(_stemmer(language).stemWord(word)) if language else word


def terms(text: str) -> list[str]:
    """Stemmed words of a text, in order: what BM25 indexes and searches."""
    return [stem(word) for word in words(text)]


def spans_of_terms(text: str, wanted: Collection[str]) -> list[tuple[int, int]]:
    """Where words of a text stand whose stems are wanted: (start, end) in characters, in order.

    Args:
        wanted: stems, as :func:`terms` gives them.
    """
    found = _WORD_AS_WRITTEN.finditer(text)
    return [match.span() for match in found if any(term in wanted for term in terms(match.group()))]


def language(text: str) -> str:
    """``ru``, ``en``, ``mixed`` or ``other``, by the share of Cyrillic and Latin letters in the first 2,000 characters.

    A rough guess for summary tables: any Cyrillic text counts as Russian and any Latin one as English.
    """
    sample = text[:2000]
    cyrillic = sum("\u0400" <= char <= "\u04ff" for char in sample)
    latin = sum(char.isascii() and char.isalpha() for char in sample)
    if cyrillic + latin == 0:
        return "other"
    share = cyrillic / (cyrillic + latin)
    if share >= 0.7:
        return "ru"
    return "en" if share <= 0.1 else "mixed"


def count_by_language(texts: Iterable[str]) -> dict[str, int]:
    """Number of texts per :func:`language`, most frequent first."""
    counts: dict[str, int] = {}
    for text in texts:
        key = language(text)
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
