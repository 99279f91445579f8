"""Damage for measuring: slips of the finger and the wrong keyboard layout, put into questions at random."""

import random
import re
from collections.abc import Sequence

import _cli  # noqa: F401  (puts the project's folder on the path)

from src.core.text import script_of

_WORD = re.compile(r"[^\W\d_]+")
_ROWS = {"cyrillic": ("йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"), "latin": ("qwertyuiop", "asdfghjkl", "zxcvbnm")}
_KEYS = {
    "cyrillic": ("ёйцукенгшщзхъфывапролджэячсмитьбю.,", "`qwertyuiop[]asdfghjkl;'zxcvbnm,./?"),
    "latin": ("qwertyuiopasdfghjklzxcvbnm", "йцукенгшщзфывапролдячсмить"),
}
SHORTEST = 5  # letters of a word that gets a slip
WORDS_PER_SLIP = 4


def slip(word: str, generator: random.Random) -> str:
    """A word with one slip: two neighbours exchanged, a letter left out, doubled, or its neighbour on the keyboard."""
    place = generator.randrange(1, len(word) - 1)
    kind = generator.choice(("exchange", "leave out", "double", "neighbour"))
    a, b = word[place], word[place + 1]
    if kind == "exchange" and a != b:
        return word[:place] + b + a + word[place + 2 :]
    if kind == "leave out":
        return word[:place] + word[place + 1 :]
    if kind == "neighbour":
        for row in _ROWS.get(script_of(word), ()):
            if (at := row.find(a.lower())) >= 0:
                near = row[max(0, at - 1)] if at and generator.random() < 0.5 else row[min(len(row) - 1, at + 1)]
                if near != a.lower():
                    return word[:place] + near + word[place + 1 :]
    return word[:place] + a + word[place:]


def with_slips(text: str, generator: random.Random) -> str:
    """One slip for every four words of five letters or more, at least one."""
    spots = [match.span() for match in _WORD.finditer(text) if len(match[0]) >= SHORTEST]
    chosen = generator.sample(spots, min(len(spots), max(1, len(spots) // WORDS_PER_SLIP)))
    for start, end in sorted(chosen, reverse=True):
        text = text[:start] + slip(text[start:end], generator) + text[end:]
    return text


def in_wrong_layout(text: str) -> str:
    """The whole text as it comes out where the other layout is on, keys with marks on them included."""
    letters = [char for char in text if char.isalpha()]
    cyrillic = 2 * sum(script_of(char) == "cyrillic" for char in letters) >= len(letters)
    own, other = _KEYS["cyrillic" if cyrillic else "latin"]
    table = str.maketrans(own + own.upper(), other + _shifted(other))
    return text.translate(table)


def _shifted(keys: str) -> str:
    return "".join(
        {"`": "~", "[": "{", "]": "}", ";": ":", "'": '"', ",": "<", ".": ">"}.get(k, k.upper()) for k in keys
    )


def damage(texts: Sequence[str], percent: float, seed: int) -> tuple[list[str], list[str]]:
    """Damage a share of the questions, half of them with slips and half with the wrong layout.

    The same seed damages the same questions, and a larger share damages those of a smaller one too.

    Returns:
        The texts, and ``""``, ``slips`` or ``layout`` for each.
    """
    generator = random.Random(seed)
    order = generator.sample(range(len(texts)), len(texts))
    damaged, kinds = list(texts), [""] * len(texts)
    for n, i in enumerate(order[: round(len(texts) * percent / 100)]):
        own = random.Random(f"{seed} {i}")
        kinds[i] = "slips" if n % 2 == 0 else "layout"
        damaged[i] = with_slips(texts[i], own) if kinds[i] == "slips" else in_wrong_layout(texts[i])
    return damaged, kinds
