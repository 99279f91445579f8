"""The packed backend with an attention that runs on a CPU, and several devices at once, against the padded model."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_bert_forward import segments_attention
from test_pair_scorer import PASSAGES, QUESTIONS, all_pairs, torch_scorer

from src.core.errors import UserError
from src.engine.batches import TokenBatch
from src.engine.openvino_graphs import BackendUnavailableError
from src.engine.packed_backend import PackedBackend, cuda_attention
from src.engine.pair_backends import PairBackend
from src.engine.pair_scorer import CrossEncoderScorer
from src.engine.split_backend import SplitBackend
from src.engine.torch_backend import TorchBackend


def scores_of(scorer: CrossEncoderScorer) -> np.ndarray:
    return scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), all_pairs())


def packed(directory: Path, dtype: torch.dtype = torch.float32) -> PackedBackend:
    return PackedBackend(directory, "cpu", dtype, segments_attention)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_packed_scores_equal_padded_ones(cross_encoder: Path, xlmr_cross_encoder: Path, batch_size: int) -> None:
    for folder in (cross_encoder, xlmr_cross_encoder):
        expected = scores_of(torch_scorer(folder, batch_size=4, max_length=64))
        found = scores_of(CrossEncoderScorer(folder, packed(folder), batch_size, 64))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_sixteen_bits_keep_the_order_of_spread_scores(xlmr_cross_encoder: Path) -> None:
    expected = scores_of(torch_scorer(xlmr_cross_encoder, batch_size=4, max_length=64))
    found = scores_of(CrossEncoderScorer(xlmr_cross_encoder, packed(xlmr_cross_encoder, torch.bfloat16), 8, 64))
    assert np.corrcoef(expected, found)[0, 1] > 0.99


def test_an_attention_that_computes_something_else_is_refused(xlmr_cross_encoder: Path) -> None:
    def careless(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
        return query * 7

    backend = PackedBackend(xlmr_cross_encoder, "cpu", torch.float32, careless)
    with pytest.raises(BackendUnavailableError, match="differ from the model's own"):
        backend.load()


def test_what_it_cannot_run_is_run_padded(electra_cross_encoder: Path) -> None:
    scorer = CrossEncoderScorer(
        electra_cross_encoder, packed(electra_cross_encoder), 4, 64,
        fallback=lambda: TorchBackend(electra_cross_encoder, "cpu"),
    )  # fmt: skip
    expected = scores_of(torch_scorer(electra_cross_encoder, batch_size=4, max_length=64))
    np.testing.assert_allclose(scores_of(scorer), expected, atol=1e-6)
    assert scorer.backend_name == "torch"


def test_several_devices_give_the_same_scores(cross_encoder: Path) -> None:
    expected = scores_of(torch_scorer(cross_encoder, batch_size=2, max_length=64))
    split = SplitBackend([TorchBackend(cross_encoder, "cpu") for _ in range(3)])
    np.testing.assert_allclose(scores_of(CrossEncoderScorer(cross_encoder, split, 2, 64)), expected, atol=1e-6)


def test_a_batch_that_does_not_fit_is_halved(xlmr_cross_encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = scores_of(CrossEncoderScorer(xlmr_cross_encoder, packed(xlmr_cross_encoder), 32, 64))

    def small(query: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if len(query) > 150:
            raise torch.OutOfMemoryError("out of memory")
        return segments_attention(query, *rest)  # type: ignore[arg-type]

    backend = PackedBackend(xlmr_cross_encoder, "cpu", torch.float32, small)
    found = scores_of(CrossEncoderScorer(xlmr_cross_encoder, backend, 32, 64))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert "ran out of memory on cpu with 12 x " in caplog.text


class Unfit(TorchBackend):
    def __init__(self, directory: Path, error: Exception) -> None:
        super().__init__(directory, "cpu")
        self.error = error

    def load(self) -> None:
        raise self.error


def test_a_device_that_cannot_run_the_model_is_left_out(cross_encoder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = scores_of(torch_scorer(cross_encoder, batch_size=2, max_length=64))
    old, full = BackendUnavailableError("older than Ampere"), torch.OutOfMemoryError("out of memory")
    split = SplitBackend([Unfit(cross_encoder, old), TorchBackend(cross_encoder, "cpu"), Unfit(cross_encoder, full)])
    np.testing.assert_allclose(scores_of(CrossEncoderScorer(cross_encoder, split, 2, 64)), expected, atol=1e-6)
    assert split.name == "torch on 1 device"
    assert "one of 3 devices is left out: older than Ampere" in caplog.text
    with pytest.raises(BackendUnavailableError, match="Ampere"):
        SplitBackend([Unfit(cross_encoder, full), Unfit(cross_encoder, old)]).load()
    with pytest.raises(MemoryError):
        SplitBackend([Unfit(cross_encoder, full), Unfit(cross_encoder, full)]).load()


def test_an_attention_that_is_not_there_or_takes_other_arguments(
    xlmr_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("cannot import name 'varlen_attn'")

    monkeypatch.setattr("src.engine.packed_backend.cuda_attention", missing)
    with pytest.raises(BackendUnavailableError, match="does not run here: cannot import name"):
        PackedBackend(xlmr_cross_encoder, "cpu", torch.float32).load()

    def older(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query

    with pytest.raises(BackendUnavailableError, match=r"does not run here: .*positional"):
        PackedBackend(xlmr_cross_encoder, "cpu", torch.float32, older).load()  # type: ignore[arg-type]


def overflowing(after: int) -> Callable[..., torch.Tensor]:
    """An attention that leaves the range of float16 from a call on."""
    calls = iter(range(10_000))

    def attention(query: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        found = segments_attention(query, *rest)  # type: ignore[arg-type]
        return found * float("nan") if query.dtype == torch.float16 and next(calls) >= after else found

    return attention


@pytest.mark.parametrize("after", [0, 8])
def test_scores_beyond_float16_are_made_in_bfloat16(
    xlmr_cross_encoder: Path, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    expected = scores_of(CrossEncoderScorer(xlmr_cross_encoder, packed(xlmr_cross_encoder, torch.bfloat16), 1, 64))
    backend = PackedBackend(xlmr_cross_encoder, "cpu", torch.float16, overflowing(after))
    backend.tokens_per_pair = 64
    found = scores_of(CrossEncoderScorer(xlmr_cross_encoder, backend, 1, 64))
    assert backend.arithmetic == "bfloat16"
    assert caplog.text.count("bfloat16 is used") == 1
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=0.05 * float(np.abs(expected).max()))


def test_a_model_that_bfloat16_does_not_save_ends_the_run_in_words(
    xlmr_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = PackedBackend(xlmr_cross_encoder, "cpu", torch.float16, overflowing(8))
    backend.tokens_per_pair = 64
    scorer = CrossEncoderScorer(xlmr_cross_encoder, backend, 1, 64)
    scorer.load()

    def refused(dtype: torch.dtype) -> bool:
        raise BackendUnavailableError("its scores differ from the model's own by 3")

    monkeypatch.setattr(backend, "_load_as", refused)
    with pytest.raises(UserError, match=r"in bfloat16 its scores differ .* Set RERANKER_PRECISION = 'exact'"):
        scores_of(scorer)


def test_scores_keep_more_than_sixteen_bits(xlmr_cross_encoder: Path) -> None:
    found = scores_of(CrossEncoderScorer(xlmr_cross_encoder, packed(xlmr_cross_encoder, torch.bfloat16), 8, 64))
    rounded = torch.from_numpy(found).to(torch.bfloat16).float().numpy()
    assert (found != rounded).mean() > 0.9


def test_one_device_in_bfloat16_names_the_arithmetic_of_all(cross_encoder: Path) -> None:
    split = SplitBackend([packed(cross_encoder, torch.float16) for _ in range(2)])
    assert split.arithmetic == "float16"
    split.backends[1].arithmetic = "bfloat16"  # type: ignore[misc]
    assert split.arithmetic == "bfloat16"


def test_padded_scores_beyond_float16_are_made_in_bfloat16(
    cross_encoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = scores_of(torch_scorer(cross_encoder, batch_size=2, max_length=64))
    backend = TorchBackend(cross_encoder, "cpu")
    backend.half, backend.whole = torch.float16, True  # as on a card
    forward = backend._forward

    def overflowing_forward(batch: TokenBatch) -> np.ndarray:
        found = forward(batch)
        return found * np.nan if backend.half == torch.float16 else found

    monkeypatch.setattr(backend, "_forward", overflowing_forward)
    found = scores_of(CrossEncoderScorer(cross_encoder, backend, 2, 64))
    assert backend.arithmetic == "bfloat16"
    assert caplog.text.count("bfloat16 is used") == 1
    np.testing.assert_allclose(found, expected, atol=0.05 * float(np.abs(expected).max()))


class Broken(TorchBackend):
    def run(self, batches: Iterable[TokenBatch], scores: np.ndarray) -> None:
        raise torch.OutOfMemoryError("no room")


def test_an_error_of_one_device_stops_the_run(cross_encoder: Path) -> None:
    backends: list[PairBackend] = [TorchBackend(cross_encoder, "cpu"), Broken(cross_encoder, "cpu")]
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        scores_of(CrossEncoderScorer(cross_encoder, SplitBackend(backends), 2, 64))


def test_torchs_attention_takes_what_it_is_given() -> None:
    # The kernel runs on CUDA alone; that its signature fits can be seen anywhere.
    attention = cuda_attention()
    inspect.signature(attention).bind(*(torch.zeros(1),) * 3, torch.zeros(2), torch.zeros(2), 1, 1)
    assert attention.keywords == {"num_splits": 1}  # type: ignore[attr-defined]
