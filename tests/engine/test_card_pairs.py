"""Pairs put together on a device are those of the host; on a card that is only pretended nothing is left behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bert_forward import segments_attention
from test_tokens import TEXTS, TOKENIZERS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from src.engine import packed_backend
from src.engine.batches import TokenBatch
from src.engine.card_pairs import CardPairs
from src.engine.packed_backend import PackedBackend, cuda_attention
from src.engine.tokens import JoinedPairs, PairTemplate, tokenize

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


class _Copies(TorchFunctionMode):
    """What torch's own functions of moving would ask of a driver, as the operations underneath."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            return args[0]
        if function is torch.Tensor.to:
            wanted: dict[str, Any] = {}
            for value in (*args[1:], kwargs.get("device"), kwargs.get("dtype")):
                if isinstance(value, torch.dtype):
                    wanted["dtype"] = value
                elif isinstance(value, str | torch.device):
                    wanted["device"] = torch.device(value)
            return torch.ops.aten._to_copy(args[0], **wanted)
        if function is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor):
            return torch.ops.aten.index.Tensor(args[0], [args[1]])
        if function is torch.Tensor.__getitem__ and isinstance(args[1], slice):
            return torch.ops.aten.slice.Tensor(args[0], 0, args[1].start, args[1].stop)
        if function is torch.Tensor.__getitem__ and isinstance(args[1], int):
            return torch.ops.aten.select.int(args[0], 0, args[1])
        return function(*args, **kwargs)


class _Event:
    def record(self, stream: object) -> None: ...


@contextmanager
def pretended_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Tensors without values: every operation still asks for one device, one type and fitting shapes, as on a card."""
    monkeypatch.setattr(packed_backend.torch.cuda, "Event", _Event)
    monkeypatch.setattr(packed_backend.torch.cuda, "current_stream", lambda device: None)
    with FakeTensorMode(allow_non_fake_inputs=True), _Copies():
        yield torch.device("cuda:0")


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
