from collections.abc import Callable

import pytest
from conftest import bert_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from src.core.types import Corpus
from src.stages.chunk import Chunking, chunk_corpus, chunk_spans, sentence_spans


def test_sentences() -> None:
    text = "Карта бесплатна. Снятие 3 % (мин. 390 руб.) без даты! Что дальше?\n\n— пункт один;\n— пункт два"
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "Карта бесплатна.",
        "Снятие 3 % (мин. 390 руб.) без даты!",
        "Что дальше?",
        "— пункт один;",
        "— пункт два",
    ]


def test_what_a_full_stop_does_not_end() -> None:
    text = (
        "Срок 3 дня. 15 мая всё. Адрес: г. Москва, ул. Ленина, д. 5. Автор А. С. Пушкин. Dr. Smith, no. 7. Т. е. так."
    )
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "Срок 3 дня.",
        "15 мая всё.",
        "Адрес: г. Москва, ул. Ленина, д. 5.",
        "Автор А. С. Пушкин.",
        "Dr. Smith, no. 7.",
        "Т. е. так.",
    ]


def letters(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i, char in enumerate(text) if not char.isspace()]


def test_chunks_hold_whole_sentences_and_overlap() -> None:
    text = "Aaa. Bbb. Ccc. Ddd."
    # Each sentence has 4 tokens: two fit into 9, and one is repeated.
    spans = chunk_spans(text, letters(text), limit=9, overlap=4)
    assert [text[a:b] for a, b in spans] == ["Aaa. Bbb.", "Bbb. Ccc.", "Ccc. Ddd."]
    spans = chunk_spans(text, letters(text), limit=9, overlap=0)
    assert [text[a:b] for a, b in spans] == ["Aaa. Bbb.", "Ccc. Ddd."]


def test_a_long_sentence_is_cut_between_tokens() -> None:
    text = "abcdefghij"
    assert chunk_spans(text, letters(text), limit=4, overlap=1) == [(0, 4), (4, 8), (8, 10)]


def test_a_long_sentence_is_cut_before_words_and_overlaps() -> None:
    text = "aaaa bbbb cccc dddd eeee ffff"
    # Six words of 4 letters, parts of 8, chunks of 16: each begins with the last part of the one before.
    spans = chunk_spans(text, letters(text), limit=16, overlap=8)
    assert [text[a:b] for a, b in spans] == ["aaaa bbbb cccc dddd", "cccc dddd eeee ffff"]
    # Without room for the whole of the next word the cut comes before it.
    spans = chunk_spans(text, letters(text), limit=10, overlap=0)
    assert [text[a:b] for a, b in spans] == ["aaaa bbbb", "cccc dddd", "eeee ffff"]


def with_blanks(text: str) -> list[tuple[int, int]]:
    """As SentencePiece gives them: a token begins with the blanks before it."""
    spans, start = [], 0
    for i, char in enumerate(text):
        if not char.isspace():
            spans.append((start, i + 1))
            start = i + 1
    return spans


def test_tokens_that_begin_with_a_blank_count() -> None:
    text = "Aaa. Bbb. Ccc."
    # 4 tokens a sentence, the second one's first being " B".
    spans = chunk_spans(text, with_blanks(text), limit=7, overlap=0)
    assert [text[a:b] for a, b in spans] == ["Aaa.", "Bbb.", "Ccc."]


@pytest.mark.parametrize("tokens_of", [letters, with_blanks])
@given(st.text(alphabet="abАБ .!?\n", max_size=120), st.integers(1, 12), st.integers(0, 11))
def test_chunks_cover_every_token_within_the_limit(
    tokens_of: Callable[[str], list[tuple[int, int]]], text: str, limit: int, overlap: int
) -> None:
    tokens = tokens_of(text)
    spans = chunk_spans(text, tokens, limit, min(overlap, limit - 1))
    covered = {i for start, end in spans for i in range(start, end)}
    assert {end - 1 for _, end in tokens} <= covered
    for start, end in spans:
        assert sum(start <= last - 1 < end for _, last in tokens) <= limit
        assert text[start:end].strip() == text[start:end]
    assert spans == sorted(set(spans))


def test_chunk_corpus_offsets_and_empty_documents() -> None:
    corpus = Corpus(("1", "2", "3"), ("", "Только заголовок", "T"), ("", "", "Aaa. Bbb."))
    chunks = chunk_corpus(corpus, Chunking("tokens", 4), bert_tokenizer())
    assert chunks.doc_rows.tolist() == [1, 2, 2]
    assert [chunks.text(corpus, i) for i in range(3)] == ["", "Aaa.", "Bbb."]


def test_chunks_measured_in_characters() -> None:
    #                  0         1         2
    corpus = Corpus(("1",), ("",), ("Карта и счёт. Вклад. Да.",))
    chunks = chunk_corpus(corpus, Chunking("characters", limit=20, overlap=6))
    assert [chunks.text(corpus, i) for i in range(len(chunks))] == ["Карта и счёт. Вклад.", "Вклад. Да."]
    # "Да." has 3 characters: below the minimum, it joins the chunk before it.
    chunks = chunk_corpus(corpus, Chunking("characters", limit=20, overlap=0, minimum=5))
    assert [chunks.text(corpus, i) for i in range(len(chunks))] == ["Карта и счёт. Вклад. Да."]


def test_whole_documents() -> None:
    corpus = Corpus(("1", "2", "3"), ("", "Только заголовок", ""), ("Раз. Два.\n\nТри.", "", ""))
    chunks = chunk_corpus(corpus, Chunking("whole"))
    assert chunks.doc_rows.tolist() == [0, 1]
    assert [chunks.text(corpus, i) for i in range(2)] == ["Раз. Два.\n\nТри.", ""]


@example("?????  ???", 5, 0, 4)  # joined, the white space between them would break the bound
@given(st.text(alphabet="abАБ .!?\n", max_size=200), st.integers(5, 40), st.integers(0, 4), st.integers(0, 5))
def test_character_chunks_cover_the_text(text: str, limit: int, overlap: int, minimum: int) -> None:
    corpus = Corpus(("1",), ("",), (text,))
    chunks = chunk_corpus(corpus, Chunking("characters", limit, overlap, minimum))
    covered = {i for start, end in zip(chunks.starts, chunks.ends, strict=True) for i in range(start, end)}
    assert {i for i, char in enumerate(text) if not char.isspace()} <= covered
    spans = list(zip(chunks.starts.tolist(), chunks.ends.tolist(), strict=True))
    if text.strip():
        assert all(end - start <= limit for start, end in spans[:-1])
        assert spans[-1][1] - spans[-1][0] <= limit + minimum
