"""Pairs put together on a device are those of the host; on a card that is only pretended nothing is left behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bert_forward import segments_attention
from test_tokens import TEXTS, TOKENIZERS
from torch._subclasses.fake_tensor import FakeTensor

from src.engine.batches import TokenBatch
from src.engine.card_pairs import CardPairs
from src.engine.packed_backend import PackedBackend, cuda_attention
from src.engine.tokens import JoinedPairs, PairTemplate, tokenize
from tests.pretended_card import pretended_card

CPU = torch.device("cpu")


def joined(name: str, questions: list[str], passages: list[str], max_length: int) -> JoinedPairs:
    """Every question that fits with every passage."""
    tokenizer = TOKENIZERS[name]
    template = PairTemplate.of(tokenizer)
    asked, read = tokenize(tokenizer, questions), tokenize(tokenizer, passages)
    fit = [q for q in range(len(questions)) if asked.lengths[q] + template.special_tokens + 1 <= max_length]
    pairs = np.array([(q, p) for q in fit for p in range(len(passages))], dtype=np.int32).reshape(-1, 2)
    return template.join(asked, read, pairs, np.full(len(pairs), max_length))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(questions=TEXTS, passages=TEXTS, max_length=st.integers(8, 64))
def test_a_device_joins_as_the_host_does(name: str, questions: list[str], passages: list[str], max_length: int) -> None:
    source = joined(name, questions, passages, max_length)
    batch = TokenBatch(np.arange(len(source.pairs)), source)
    found = CardPairs(CPU).tokens(batch)
    assert found.ids.tolist() == source.ids.tolist()
    assert found.places.tolist() == batch.places.tolist()
    assert found.offsets.tolist() == source.offsets.tolist()
    assert found.offsets.dtype == torch.int32
    assert (None if found.types is None else found.types.tolist()) == (
        None if source.types is None else source.types.tolist()
    )


def test_by_hand() -> None:
    source = joined("bert", ["ab"], ["cdef"], 7)
    a, b, c, d = (int(i) for i in (*source.questions.ids, *source.passages.ids[:2]))
    found = CardPairs(CPU).tokens(TokenBatch(np.arange(1), source))
    assert found.ids.tolist() == [2, a, b, 3, c, d, 3]
    assert found.places.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found.types is not None
    assert found.types.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert found.offsets.tolist() == [0, 7]


def test_tables_are_brought_once_and_exchanged_for_others() -> None:
    cards = CardPairs(CPU)
    first, second = joined("bert", ["ab"], ["cd", "ef"], 20), joined("bert", ["x"], ["yz"], 20)
    cards.tokens(TokenBatch(np.arange(2), first))
    held = cards._ids
    cards.tokens(TokenBatch(np.arange(1), first.part(slice(1, 2))))
    assert cards._ids is held
    assert cards.tokens(TokenBatch(np.arange(1), second)).ids.tolist() == second.ids.tolist()
    assert cards.tokens(TokenBatch(np.arange(2), first)).ids.tolist() == first.ids.tolist()


def test_a_card_that_joins_wrongly_leaves_it_to_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cumsum = torch.cumsum
    monkeypatch.setattr("src.engine.card_pairs.torch.cumsum", lambda *what: cumsum(*what) - 1)
    cards, source = CardPairs(CPU), joined("bert", ["ab", "c"], ["de"], 20)
    for _ in range(2):
        assert cards.tokens(TokenBatch(np.arange(2), source)).ids.tolist() == source.ids.tolist()
    assert caplog.text.count("cpu does not put pairs together as the host does") == 1


def test_a_card_without_room_gets_token_by_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(parts: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("src.engine.card_pairs.torch.cat", full)
    cards, source = CardPairs(CPU), joined("xlm-r", ["ab", "c"], ["de"], 20)
    for _ in range(2):
        found = cards.tokens(TokenBatch(np.arange(2), source))
        assert found.ids.tolist() == source.ids.tolist()
        assert found.types is None
    assert caplog.text.count("no room for the token tables on cpu (CUDA out of memory)") == 1


@pytest.mark.parametrize("style", ["bert", "xlm-r"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_whole_pass_stays_on_the_card(
    cross_encoder: Path, xlmr_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch, style: str, dtype: torch.dtype
) -> None:
    backend = PackedBackend(cross_encoder if style == "bert" else xlmr_cross_encoder, "cpu", dtype, segments_attention)
    backend.load()
    source = joined(style, ["ab", "c"], ["def", "gh", ""], 32)
    with pretended_card(monkeypatch) as card:
        assert backend.forward is not None
        backend.forward = backend.forward.to(card)
        backend.device, backend.attention = card, cuda_attention()
        backend.pairs = CardPairs(card)
        backend.pairs.checked = True  # there are no values to check
        for batch in (TokenBatch(np.arange(6), source), TokenBatch.of_rows(np.arange(2), [[5, 6, 7], [8, 9]], 0)):
            found = backend.pairs.tokens(batch)
            for tensor in (found.ids, found.places, found.offsets):
                assert isinstance(tensor, FakeTensor)
                assert tensor.device == card
            logits = backend._logits(batch)
            assert logits.host.device.type == "cpu"
            assert logits.host.shape == (len(batch.rows),)
            assert logits.made_in == dtype


def test_what_is_left_on_the_host_is_noticed(xlmr_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = PackedBackend(xlmr_cross_encoder, "cpu", torch.float16, segments_attention)
    backend.load()
    with pretended_card(monkeypatch) as card:
        backend.device, backend.attention, backend.pairs = card, cuda_attention(), CardPairs(card)
        with pytest.raises(RuntimeError, match="device"):  # the weights are
            backend._logits(TokenBatch.of_rows(np.arange(1), [[5, 6, 7]], 0))
