"""Pairs put together from cached ids are what the tokenizer itself would have made."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from src.engine.batches import PlainTokens, TokenBatch, token_budget_batches
from src.engine.tokens import PairTemplate, tokenize
from tests.conftest import bert_tokenizer, xlmr_tokenizer


def roberta_style() -> PreTrainedTokenizerFast:
    tokenizer = xlmr_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def deberta_style() -> PreTrainedTokenizerFast:
    """SentencePiece and token types, as DeBERTa v3 has them."""
    tokenizer = xlmr_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


TOKENIZERS = {
    "bert": bert_tokenizer(), "xlm-r": xlmr_tokenizer(), "roberta": roberta_style(), "deberta": deberta_style(),
}  # fmt: skip
TEXTS = st.lists(st.text(alphabet="abcабв 12.,?Я", max_size=60), min_size=1, max_size=4)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(questions=TEXTS, passages=TEXTS, max_length=st.integers(8, 64))
def test_join_equals_the_tokenizers_own_pairs(
    name: str, questions: list[str], passages: list[str], max_length: int
) -> None:
    tokenizer = TOKENIZERS[name]
    template = PairTemplate.of(tokenizer)
    asked, read = tokenize(tokenizer, questions), tokenize(tokenizer, passages)
    pairs = np.array(
        [
            (q, p)
            for q in range(len(questions))
            for p in range(len(passages))
            if asked.lengths[q] + template.special_tokens + 1 <= max_length
        ],
        dtype=np.int32,
    ).reshape(-1, 2)
    limits = np.full(len(pairs), max_length)
    joined = template.join(asked, read, pairs, limits)
    ids, offsets, types = joined.ids, joined.offsets, joined.types
    assert (types is None) == (not template.uses_types)
    lengths = template.pair_lengths(asked.lengths[pairs[:, 0]], read.lengths[pairs[:, 1]], max_length)
    assert lengths.tolist() == np.diff(offsets).tolist()
    for i, (q, p) in enumerate(pairs.tolist()):
        # Lists: the tokenizer would take an empty second text for none at all.
        own = tokenizer(
            [questions[q]], [passages[p]], truncation="only_second", max_length=max_length, return_token_type_ids=True
        )
        inside = slice(offsets[i], offsets[i + 1])
        assert ids[inside].tolist() == own["input_ids"][0]
        if types is not None:
            assert types[inside].tolist() == own["token_type_ids"][0]


def test_pairs_have_limits_of_their_own() -> None:
    template = PairTemplate.of(TOKENIZERS["bert"])
    table = tokenize(TOKENIZERS["bert"], ["ab", "cdefgh"])
    pairs = np.array([(0, 1), (0, 1)], dtype=np.int32)
    joined = template.join(table, table, pairs, np.array([7, 9]))
    a, b, c, d, e, f = (int(table.ids[i]) for i in range(6))
    # [CLS] a b [SEP] c d [SEP], and the same with two more of the passage.
    assert joined.ids.tolist() == [2, a, b, 3, c, d, 3, 2, a, b, 3, c, d, e, f, 3]
    assert joined.offsets.tolist() == [0, 7, 16]
    second = joined.part(slice(1, 2))
    assert (second.ids.tolist(), second.offsets.tolist()) == ([2, a, b, 3, c, d, e, f, 3], [0, 9])
    assert second.types is not None
    assert second.types.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_templates_by_hand() -> None:
    bert, xlmr = PairTemplate.of(TOKENIZERS["bert"]), PairTemplate.of(TOKENIZERS["xlm-r"])
    assert (bert.prefix, bert.middle, bert.suffix, bert.uses_types) == ((2,), (3,), (3,), True)
    assert (xlmr.prefix, xlmr.middle, xlmr.suffix, xlmr.uses_types) == ((0,), (2, 2), (2,), False)


def test_question_that_does_not_fit() -> None:
    template = PairTemplate.of(TOKENIZERS["bert"])
    table = tokenize(TOKENIZERS["bert"], ["abcdef", "abc"])
    with pytest.raises(ValueError, match="a question of 6 tokens does not fit into a pair of 8"):
        template.join(table, table, np.array([(0, 1)], dtype=np.int32), np.array([8]))


def test_a_batch_in_rows_and_in_parts() -> None:
    batch = TokenBatch.of_rows(np.array([7, 5, 9]), [[1, 2, 3], [4], [5, 6]], pad=8)
    assert batch.shape == (3, 3)
    assert batch.ids.tolist() == [[1, 2, 3], [4, 8, 8], [5, 6, 8]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.places.tolist() == [0, 1, 2, 0, 0, 1]
    assert sorted(batch.inputs) == ["attention_mask", "input_ids"]
    typed = PlainTokens(batch.tokens, batch.offsets, np.array([0, 1, 1, 0, 0, 1], np.int32))
    part = replace(batch, source=typed).part(slice(1, 3))
    assert (part.rows.tolist(), part.ids.tolist()) == ([5, 9], [[4, 8], [5, 6]])
    assert part.inputs["token_type_ids"].tolist() == [[0, 0], [0, 1]]


def test_token_table() -> None:
    table = tokenize(TOKENIZERS["bert"], ["ab", "", "c"], block=2)
    assert len(table) == 3
    assert table.lengths.tolist() == [2, 0, 1]
    assert table[0].dtype == np.int32


@given(st.lists(st.integers(1, 500), max_size=80), st.integers(1, 16), st.integers(1, 1000))
def test_batches_cover_everything_once_within_the_budget(lengths: list[int], items: int, tokens: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = list(token_budget_batches(array, items, tokens))
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= items
        assert len(batch) == 1 or len(batch) * int(array[batch].max()) <= tokens
    longest = [int(array[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
