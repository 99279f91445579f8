import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.text import language, normalize, script_of, spans_of_terms, stem, terms, words


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\ufeffТариф&nbsp;&laquo;Плюс&raquo; &mdash; 0&nbsp;₽", "Тариф «Плюс» — 0 ₽"),
        ("строка\r\nещё\rконец", "строка\nещё\nконец"),
        ("a\n\n\n\n b \t c\n", "a\n\nb c"),
        ("и\u0306од", "йод"),
        ("AT&T и Q&A", "AT&T и Q&A"),
        ("5 &lt; 7 &#8212; да", "5 < 7 — да"),
        ("нуль\x00байт", "нульбайт"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("&notanentity; &", "&notanentity; &"),
        ("ПРОПИСНЫЕ и ёлка", "ПРОПИСНЫЕ и ёлка"),
    ],
)
def test_normalize(raw: str, clean: str) -> None:
    assert normalize(raw) == clean


@given(st.text())
def test_normalize_gives_clean_text(text: str) -> None:
    once = normalize(text)
    assert once == once.strip()
    assert unicodedata.is_normalized("NFC", once)
    assert not set(once) & set("\r\x00\ufeff")
    once.encode("utf-8")


@given(st.text(alphabet=st.characters(blacklist_characters="&", blacklist_categories=["Cs"])))
def test_normalize_is_idempotent(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_words_fold_case_and_yo_and_ignore_stress() -> None:
    assert words("Ёлка, Паша\u0301 и со\u00adгласие: 3.5 %") == ["елка", "паша", "и", "согласие", "3", "5"]


@pytest.mark.parametrize(
    ("word", "script"), [("карта", "cyrillic"), ("card", "latin"), ("2026", "digits"), ("卡", "other"), ("_", "other")]
)
def test_script_of(word: str, script: str) -> None:
    assert script_of(word) == script


def test_stem_follows_the_script_of_each_word() -> None:
    # Snowball: Russian "картами" -> "карт", English "cards" -> "card"; numbers stay.
    assert [stem("картами"), stem("cards"), stem("2026")] == ["карт", "card", "2026"]
    assert terms("Картами cards") == ["карт", "card"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("привет", "ru"), ("hello", "en"), ("карта mastercard gold", "mixed"), ("123", "other"), ("", "other")],
)
def test_language(text: str, expected: str) -> None:
    assert language(text) == expected


@given(st.text(), st.text())
def test_spans_hold_the_words_in_common(question: str, text: str) -> None:
    text = normalize(text)
    wanted = frozenset(terms(question))
    spans = spans_of_terms(text, wanted)
    found = {term for start, end in spans for term in terms(text[start:end])}
    assert found & wanted == set(terms(text)) & wanted
    assert all(a < b for a, b in spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


def test_spans_of_russian_inflections() -> None:
    text = "Снятие с кредитной карты: за\u0301мок, ЁЛКИ"
    spans = spans_of_terms(text, frozenset(terms("кредитные карты, замок и елка")))
    assert [text[a:b] for a, b in spans] == ["кредитной", "карты", "за\u0301мок", "ЁЛКИ"]
