"""The packed backend with an attention that runs on a CPU, and several devices at once, against the padded model."""

import inspect
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_bert_forward import segments_attention
from test_pair_scorer import PASSAGES, QUESTIONS, all_pairs, torch_scorer

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
