"""The forward pass with a first-token last layer against transformers' own, padded and packed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from src.engine.bert_forward import BertPairForward, PackedLayout, PaddedLayout

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 60, "num_labels": 1,
}  # fmt: skip


def bert() -> torch.nn.Module:
    torch.manual_seed(1)
    return BertForSequenceClassification(BertConfig(**SIZES, initializer_range=0.2)).eval()


def xlmr() -> torch.nn.Module:
    torch.manual_seed(2)
    config = XLMRobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1, initializer_range=0.2)
    return XLMRobertaForSequenceClassification(config).eval()


MODELS = {"bert": bert(), "xlmr": xlmr()}


def segments_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    query_offsets: torch.Tensor, key_offsets: torch.Tensor, longest_query: int, longest_key: int,
) -> torch.Tensor:  # fmt: skip
    """What a variable-length kernel computes, one pair at a time."""
    parts = []
    for i in range(len(query_offsets) - 1):
        q = query[query_offsets[i] : query_offsets[i + 1]]
        k, v = (part[key_offsets[i] : key_offsets[i + 1]] for part in (key, value))
        assert len(q) <= longest_query
        assert len(k) <= longest_key
        heads = (part.transpose(0, 1) for part in (q, k, v))
        parts.append(torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1))
    return torch.cat(parts)


def batch(lengths: list[int], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    width = max(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    ids = torch.where(mask, torch.randint(4, 50, mask.shape, generator=generator), pad)
    types = (torch.arange(width)[None] >= 2).long() * mask
    return ids, mask, types


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(3, 40), min_size=1, max_size=6))
def test_padded_and_packed_equal_the_models_own_forward(name: str, lengths: list[int]) -> None:
    model = MODELS[name]
    ids, mask, types = batch(lengths, pad=0 if name == "bert" else 1)
    takes_types = name == "bert"
    own = {"token_type_ids": types} if takes_types else {}
    ours = BertPairForward(model)
    places = torch.arange(ids.shape[1])[None]
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask.long(), **own).logits[:, 0]
        padded = ours(ids, places, types if takes_types else None, PaddedLayout(mask))
        offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        packed = ours(
            ids[mask],
            places.expand(ids.shape)[mask],
            types[mask] if takes_types else None,
            PackedLayout(offsets, max(lengths), segments_attention),
        )
    assert padded.shape == packed.shape == (len(lengths),)
    torch.testing.assert_close(padded, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(packed, expected, atol=2e-5, rtol=2e-5)


def test_only_what_it_computes_is_supported(cross_encoder: Path) -> None:
    assert BertPairForward.supports(AutoModelForSequenceClassification.from_pretrained(cross_encoder))
    assert BertPairForward.supports(MODELS["xlmr"])
    assert not BertPairForward.supports(ElectraForSequenceClassification(ElectraConfig(**SIZES)))
    assert not BertPairForward.supports(BertForSequenceClassification(BertConfig(**SIZES, is_decoder=True)))
