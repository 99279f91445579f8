import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.quality.augment import (
    Rewriter,
    capitalize_sentences,
    detokenize,
    looks_tokenized,
    pairs_by_rule,
    question_by_rule,
)
from src.quality.mining import Example


@pytest.mark.parametrize(
    ("tokenised", "plain"),
    [
        ("they do n't , he said .", "they don't, he said."),
        ('the legend " venite ad me " .', 'the legend "venite ad me".'),
        ("won 24 -- 10 ( in 2016 ) !", "won 24 — 10 (in 2016)!"),
        ("levi 's stadium", "levi's stadium"),
        ("Уже обычный текст, ничего не меняется.", "Уже обычный текст, ничего не меняется."),
    ],
)
def test_detokenize(tokenised: str, plain: str) -> None:
    assert detokenize(tokenised) == plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it is a replica of the grotto at lourdes , france .", True),
        ("It is a replica of the grotto at Lourdes, France.", False),
        ("ты выдержал экзамен", False),
        ("Tokenised , but in capitals .", False),
    ],
)
def test_looks_tokenized(text: str, found: bool) -> None:
    assert looks_tokenized(text) is found


def test_capitals_at_sentence_starts() -> None:
    assert capitalize_sentences("one two. three? four") == "One two. Three? Four"


PASSAGES = [f"passage number {i}" for i in range(9)]


@given(st.integers(0, 10_000))
def test_neighbours_are_joined_in_order_and_the_positive_stays_out_of_the_negatives(seed: int) -> None:
    example = Example("q", PASSAGES[4], (PASSAGES[3], PASSAGES[8]))
    found = Rewriter(PASSAGES, join=1.0)(example, random.Random(seed))
    parts = found.positive.removesuffix(".").split(". ")
    first = PASSAGES.index(parts[0])
    assert parts == PASSAGES[first : first + len(parts)]
    assert PASSAGES[4] in parts
    assert 2 <= len(parts) <= 4
    assert all(PASSAGES[4] not in negative for negative in found.negatives)
    assert found.question == "q"


def test_long_passages_are_left_alone() -> None:
    example = Example("q", "x" * 301, ("y" * 301,))
    assert Rewriter(["x" * 301, "y" * 301], join=1.0)(example, random.Random(0)) == example


@given(st.integers(0, 10_000))
def test_rule_questions_use_the_sentence_and_ask_for_what_was_taken_out(seed: int) -> None:
    sentence = "Роман Гарриет Бичер-Стоу вышел в 1852 году и направлен против рабовладения в Америке."
    question = question_by_rule(sentence, random.Random(seed))
    assert question is not None
    words = question.removesuffix("?").lower().split()
    asked = [word for word in words if not any(known.startswith(word) for known in sentence.lower().split())]
    assert set(asked) <= {"когда", "в", "каком", "году", "год", "что", "кто", "какой", "где", "почему", "как", "чем",
                          "сколько", "какое", "количество"}  # fmt: skip
    if words[0] in {"в", "год"}:  # "в каком году", "год": the year is what is asked for
        assert "1852" not in question


def test_too_few_words_give_no_question() -> None:
    assert question_by_rule("Да, это так.", random.Random(0)) is None


def test_pairs_by_rule_are_bounded_and_their_passages_come_from_the_documents() -> None:
    sentences = [f"Предложение номер {i} рассказывает подробно про вклад, карту и перевод денег." for i in range(20)]
    pairs, passages = pairs_by_rule({"1": sentences, "2": ["Коротко."]}, 5, random.Random(1))
    assert len(pairs) == 5
    assert {passage for _, passage in pairs} <= set(passages)
    assert all(passage in " ".join(sentences) for passage in passages)
    assert pairs_by_rule({"1": sentences}, 5, random.Random(1)) == pairs_by_rule({"1": sentences}, 5, random.Random(1))
