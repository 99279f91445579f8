"""MaxSim on a device is that of the host."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.core.types import TokenVectors, offsets_of
from src.engine.card_maxsim import CardMaxSim
from src.stages.late_interaction import maxsim
from tests.pretended_card import pretended_card

CPU = torch.device("cpu")
ROOM = 1 << 30


def vectors(lengths: Sequence[int], seed: int = 0, width: int = 8) -> TokenVectors:
    values = np.random.default_rng(seed).normal(size=(sum(lengths), width))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    return TokenVectors(unit.astype(np.float16), offsets_of(lengths))


@pytest.mark.parametrize("free", [ROOM, 0])
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    chosen=st.lists(st.integers(0, 7), max_size=6),
    asked=st.integers(0, 4),
)
def test_equals_the_host(free: int, lengths: list[int], chosen: list[int], asked: int) -> None:
    passages = vectors(lengths)
    rows = np.array([row % len(lengths) for row in chosen], np.int32)
    question = vectors([asked], seed=1)[0].astype(np.float32)
    score = CardMaxSim(passages, CPU, free)
    assert (score.held is None) == (passages.values.nbytes > free // 2)
    np.testing.assert_allclose(score(question, rows), maxsim(question, passages, rows), atol=1e-6)


def test_by_hand() -> None:
    values = np.array([[1, 0], [-1, 0], [0, 1], [0.6, 0.8]], np.float16)
    passages = TokenVectors(values, np.array([0, 1, 3, 3, 4]))
    question = np.array([[1, 0], [0, 1]], np.float32)
    # 1 and 0; max(-1, 0) and max(0, 1); no token; 0.6 and 0.8
    found = CardMaxSim(passages, CPU, ROOM)(question, np.array([0, 1, 2, 3], np.int32))
    assert found.tolist() == pytest.approx([0.5, 0.5, -1.0, 0.7], abs=1e-3)


def test_vectors_that_do_not_fit_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*shape: object, **kind: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    passages, question = vectors([2, 3]), vectors([2], seed=1)[0].astype(np.float32)
    monkeypatch.setattr("src.engine.card_maxsim.torch.empty", full)
    score = CardMaxSim(passages, CPU, ROOM)
    assert score.held is None
    rows = np.array([1, 0], np.int32)
    np.testing.assert_allclose(score(question, rows), maxsim(question, passages, rows), atol=1e-6)


@pytest.mark.parametrize("free", [ROOM, 0])
def test_it_stays_on_the_card(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    passages, question = vectors([2, 0, 3]), vectors([2], seed=1)[0].astype(np.float32)
    with pretended_card(monkeypatch) as card:
        found = CardMaxSim(passages, card, free).scores(question, np.array([2, 1], np.int32))
        assert (found.device, found.shape, found.dtype) == (card, (2,), torch.float32)
