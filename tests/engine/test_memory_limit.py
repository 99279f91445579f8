"""Running out of memory, by doubles that hold no more than so many tokens: same scores, fewer at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.core.pair_scores import PairScores
from src.core.types import Queries, Run
from src.engine.batches import TokenBatch
from src.engine.devices import CpuEngine
from src.engine.encoder import SentenceEncoder
from src.engine.memory_limit import DoesNotFitError, MemoryLimit
from src.engine.pair_scorer import CrossEncoderScorer, PairTooLargeError, make_scorer
from src.stages.rerank import CandidateScorer, PassageTexts

QUESTIONS = ["сколько стоит карта", "airport lounge"]
PASSAGES = ["Карта бесплатна.", "Free airport lounges for premium customers. ", "Банкомат на вокзале", "нет"]
PAIRS = np.array([(q, p) for q in range(2) for p in range(4)], dtype=np.int32)
ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: MemoryError("Unable to allocate 3 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried ..."),
    lambda: RuntimeError("std::bad_alloc"),
]


def test_pieces_keep_to_the_limit() -> None:
    limit = MemoryLimit("the model", "cpu")
    assert list(limit.pieces(8, 10)) == [slice(0, 8)]
    limit.lower(0, 8, 10, "no room")  # 4 x 10 tokens from now on
    assert list(limit.pieces(8, 10)) == [slice(0, 4), slice(4, 8)]
    assert list(limit.pieces(8, 5)) == [slice(0, 8)]
    assert list(limit.pieces(2, 100)) == [slice(0, 1), slice(1, 2)]
    with pytest.raises(DoesNotFitError, match="an item of 100 tokens does not fit into the memory of cpu"):
        limit.lower(3, 1, 100, "no room")


def test_results_come_in_order_in_parts_that_fit() -> None:
    def work(batch: TokenBatch) -> list[int]:
        tried.append(len(batch.rows))
        if batch.ids.size > 12:
            raise MemoryError("no room")
        return batch.rows.tolist()

    def batches(width: int) -> list[TokenBatch]:
        return [TokenBatch.of_rows(np.arange(start, start + 5), [[1] * width] * 5, 0) for start in (0, 5)]

    limit, tried = MemoryLimit("the model", "cpu"), list[int]()
    found = [(part.rows.tolist(), result) for part, result in limit.results(batches(4), work)]
    # 5 x 4 tokens do not fit, 2 x 4 do, and the second batch begins with what is known.
    assert tried == [5, 2, 2, 1, 2, 2, 1]
    assert [rows for rows, _ in found] == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]
    assert all(rows == result for rows, result in found)
    with pytest.raises(DoesNotFitError) as caught:
        list(limit.results(batches(13), work))
    assert (caught.value.row, caught.value.tokens) == (0, 13)

    def broken(_: TokenBatch) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(limit.results(batches(1), broken))


def test_a_thread_whose_batch_failed_under_an_older_limit_does_not_lower_it_again() -> None:
    limit = MemoryLimit("the model", "cpu")
    limit.lower(0, 8, 10, "no room")
    limit.lower(0, 8, 10, "no room")  # two batches were under way
    assert limit.tokens == 40
    limit.lower(0, 4, 10, "no room")
    assert limit.tokens == 20


def score(scorer: CrossEncoderScorer) -> np.ndarray:
    return scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)


def torch_scorer(directory: Path) -> CrossEncoderScorer:
    return make_scorer(directory, "", "cpu", 8, 128, "exact", CpuEngine("torch", directory, 1))


def hold_at_most(scorer: CrossEncoderScorer, tokens: int, error: Callable[[], BaseException]) -> list[int]:
    """Make the model of a torch scorer fail beyond so many tokens; returns the sizes that were tried."""
    scorer.load()
    forward, tried = scorer.backend.model.forward, []  # type: ignore[attr-defined]

    def limited(**inputs: Any) -> Any:
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > tokens:
            raise error()
        return forward(**inputs)

    scorer.backend.model.forward = limited  # type: ignore[attr-defined]
    return tried


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "torch-cpu", "openvino"])
def test_torch_halves_and_remembers(
    cross_encoder: Path, error: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    expected = score(torch_scorer(cross_encoder))
    scorer = torch_scorer(cross_encoder)
    tried = hold_at_most(scorer, 200, error)
    np.testing.assert_allclose(score(scorer), expected, atol=1e-5)
    failures = sum(size > 200 for size in tried)
    assert 1 <= failures <= 3
    warnings = [r.getMessage() for r in caplog.records if "ran out of memory on cpu with 8 x" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].endswith("4 at a time from now on.")
    tried.clear()
    np.testing.assert_allclose(score(scorer), expected, atol=1e-5)
    assert max(tried) <= 200


def test_other_errors_are_not_taken_for_it(cross_encoder: Path) -> None:
    scorer = torch_scorer(cross_encoder)
    hold_at_most(scorer, 200, lambda: RuntimeError("a shape is wrong"))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        score(scorer)


def test_one_pair_that_cannot_fit_is_named(cross_encoder: Path, tmp_path: Path) -> None:
    scorer = torch_scorer(cross_encoder)
    hold_at_most(scorer, 40, ERRORS[0])
    with pytest.raises(PairTooLargeError) as caught:
        score(scorer)
    assert (caught.value.question, caught.value.passage) == (0, 1)
    run = Run("fused", ("в-1", "в-2"), np.array([[0, 1]] * 2, np.int32), np.array([[2, 1]] * 2, np.float32), "c")
    own = np.array([*range(len(PASSAGES)), -1], np.int32)
    passages = PassageTexts(tuple(PASSAGES), np.array([[[0], [1]]] * 2, np.int32), own)
    candidates = CandidateScorer(scorer, passages, PairScores(tmp_path), block=1)
    with pytest.raises(
        UserError, match=r"question 'в-1' with the passage 'Free airport lounges .*this one pair of \d+"
    ):
        candidates.pair_scores(Queries(("в-1", "в-2"), tuple(QUESTIONS)), run)


class Stingy:
    """A compiled model that holds no more than so many tokens."""

    def __init__(self, compiled: Any, tokens: int) -> None:
        self.compiled, self.tokens = compiled, tokens
        self.inputs, self.outputs = compiled.inputs, compiled.outputs

    def __call__(self, inputs: dict[str, Any]) -> Any:
        if inputs["input_ids"].size > self.tokens:
            raise RuntimeError("Exception from src/inference: std::bad_alloc\nmore")
        return self.compiled(inputs)


def make_stingy(runner: Any, tokens: int) -> None:
    runner.compiled = [Stingy(compiled, tokens) for compiled in runner.compiled]


def test_openvino_halves_and_remembers(cross_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = score(torch_scorer(cross_encoder))
    scorer = make_scorer(cross_encoder, "f" * 20, "cpu", 8, 128, "exact", CpuEngine("openvino", tmp_path, 2))
    scorer.load()
    make_stingy(scorer.backend.runner, 200)  # type: ignore[attr-defined]
    np.testing.assert_allclose(score(scorer), expected, atol=1e-4)
    assert "the cross-encoder ran out of memory on cpu with 8 x" in caplog.text
    caplog.clear()
    np.testing.assert_allclose(score(scorer), expected, atol=1e-4)
    assert not caplog.text
    make_stingy(scorer.backend.runner, 40)  # type: ignore[attr-defined]
    with pytest.raises(PairTooLargeError):
        score(scorer)


@pytest.mark.parametrize("with_tokens", [False, True])
def test_the_bi_encoder_by_torch(bi_encoder: Path, with_tokens: bool, caplog: pytest.LogCaptureFixture) -> None:
    texts = [*PASSAGES, *QUESTIONS]
    expected, tokens = SentenceEncoder(bi_encoder).encode_tokens(texts, "query", 8)
    encoder = SentenceEncoder(bi_encoder)
    forward = encoder.model.forward

    def limited(features: dict[str, Any], **rest: Any) -> Any:
        if len(features["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(features, **rest)

    encoder.model.forward = limited  # type: ignore[method-assign]
    if with_tokens:
        found, found_tokens = encoder.encode_tokens(texts, "query", 8)
        np.testing.assert_allclose(found_tokens.values.astype(np.float32), tokens.values.astype(np.float32), atol=2e-3)
    else:
        found = encoder.encode(texts, "query", 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.largest_batch == 1  # 6 -> 3 -> 1
    assert [r.getMessage().split("): ")[1] for r in caplog.records] == [
        f"{count} at a time from now on." for count in (3, 1)
    ]


def test_the_bi_encoder_by_openvino(bi_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [*PASSAGES, *QUESTIONS]
    encoder = SentenceEncoder(bi_encoder, cpu=CpuEngine("openvino", tmp_path, 2), fingerprint="f" * 20)
    expected = encoder.encode(texts, "document", 8)
    make_stingy(encoder.runner, 100)
    np.testing.assert_allclose(encoder.encode(texts, "document", 8), expected, atol=1e-5)
    assert "the bi-encoder ran out of memory on cpu with 6 x" in caplog.text
    make_stingy(encoder.runner, 20)
    with pytest.raises(UserError, match=r"the text 'Free airport lounges .*' alone \(\d+ tokens\) does not fit"):
        encoder.encode(texts, "document", 8)
