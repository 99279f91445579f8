"""Pairs put together from cached ids are what the tokenizer itself would have made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from src.engine.batches import token_budget_batches
from src.engine.tokens import PairTemplate, tokenize
from tests.conftest import bert_tokenizer, xlmr_tokenizer


def roberta_style() -> PreTrainedTokenizerFast:
    tokenizer = xlmr_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


TOKENIZERS = {"bert": bert_tokenizer(), "xlm-r": xlmr_tokenizer(), "roberta": roberta_style()}
TEXTS = st.text(alphabet="abcабв 12.,?Я", max_size=60)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(question=TEXTS, passage=TEXTS, max_length=st.integers(8, 64))
def test_join_equals_the_tokenizers_own_pairs(name: str, question: str, passage: str, max_length: int) -> None:
    tokenizer = TOKENIZERS[name]
    template = PairTemplate.of(tokenizer)
    table = tokenize(tokenizer, [question, passage])
    if len(table[0]) + template.special_tokens + 1 > max_length:
        return
    # Lists: the tokenizer would take an empty second text for none at all.
    own = tokenizer([question], [passage], truncation="only_second", max_length=max_length, return_token_type_ids=True)
    ids, types = own["input_ids"][0], own["token_type_ids"][0]
    joined = template.join(table[0], table[1], max_length)
    assert joined.tolist() == ids
    lengths = template.pair_lengths(np.array([len(table[0])]), np.array([len(table[1])]), max_length)
    assert lengths.tolist() == [len(ids)]
    if template.uses_types:
        assert template.types(len(table[0]), len(joined)).tolist() == types


def test_templates_by_hand() -> None:
    bert, xlmr = PairTemplate.of(TOKENIZERS["bert"]), PairTemplate.of(TOKENIZERS["xlm-r"])
    assert (bert.prefix, bert.middle, bert.suffix, bert.uses_types) == ((2,), (3,), (3,), True)
    assert (xlmr.prefix, xlmr.middle, xlmr.suffix, xlmr.uses_types) == ((0,), (2, 2), (2,), False)


def test_question_that_does_not_fit() -> None:
    template = PairTemplate.of(TOKENIZERS["bert"])
    with pytest.raises(ValueError, match="a question of 6 tokens does not fit into a pair of 8"):
        template.join(np.arange(6, dtype=np.int32), np.arange(3, dtype=np.int32), 8)


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
