"""The scorer against sentence-transformers' CrossEncoder on the same model and pairs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from src.core.errors import UserError
from src.engine.devices import CpuEngine, Engine, Precision
from src.engine.openvino_backend import traceable
from src.engine.openvino_graphs import ensure_converted
from src.engine.pair_scorer import CrossEncoderScorer, make_scorer
from src.engine.torch_backend import TorchBackend, load_classifier

QUESTIONS = ["сколько стоит карта", "airport lounge", "где банкомат?"]
PASSAGES = ["Карта бесплатна.", "Free airport lounges for premium customers. " * 5, "Банкомат на вокзале", "нет"]


def torch_scorer(
    directory: Path, batch_size: int, max_length: int, precision: Precision = "exact"
) -> CrossEncoderScorer:
    return CrossEncoderScorer(directory, TorchBackend(directory, "cpu", precision), batch_size, max_length)


def all_pairs() -> np.ndarray:
    return np.array([(q, p) for q in range(len(QUESTIONS)) for p in range(len(PASSAGES))], dtype=np.int32)


def test_scores_equal_sentence_transformers(cross_encoder: Path) -> None:
    scorer = torch_scorer(cross_encoder, batch_size=5, max_length=128)
    pairs = all_pairs()
    found = scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), pairs)
    peer = CrossEncoder(str(cross_encoder), device="cpu", max_length=128)
    texts = [(QUESTIONS[q], PASSAGES[p]) for q, p in pairs.tolist()]
    expected = peer.predict(texts, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected) > 1e-3  # the comparison would be empty on equal scores


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_depend_on_the_batch(cross_encoder: Path, batch_size: int) -> None:
    pairs = all_pairs()
    scorers = [torch_scorer(cross_encoder, size, 64) for size in (12, batch_size)]
    first, second = (s.score(s.tokenize(QUESTIONS), s.tokenize(PASSAGES), pairs) for s in scorers)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_passage_is_cut_and_question_is_not(cross_encoder: Path) -> None:
    scorer = torch_scorer(cross_encoder, batch_size=4, max_length=32)
    questions = scorer.tokenize(["а " * 40])  # longer than half of 32: the model's own limit of 128 applies
    passages = scorer.tokenize(["б " * 300, "б " * 85, "б " * 84])
    scores = scorer.score(questions, passages, np.array([[0, 0], [0, 1], [0, 2]], dtype=np.int32))
    # 128 - 3 special tokens - 40 of the question leave 85 tokens of the passage.
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[1] != scores[2]


def test_question_beyond_the_models_limit(cross_encoder: Path) -> None:
    scorer = torch_scorer(cross_encoder, batch_size=4, max_length=32)
    assert scorer.longest_question == 128 - 3 - 1
    with pytest.raises(UserError, match="a question has 125 tokens; this cross-encoder reads at most 124"):
        scorer.score(scorer.tokenize(["а " * 125]), scorer.tokenize(["б"]), np.array([[0, 0]], dtype=np.int32))


def test_two_logits_are_refused(two_logit_model: Path) -> None:
    with pytest.raises(UserError, match="has 2 outputs, a reranker has 1"):
        torch_scorer(two_logit_model, 4, 64)


def test_no_pairs(cross_encoder: Path) -> None:
    scorer = torch_scorer(cross_encoder, 4, 64)
    empty = np.zeros((0, 2), dtype=np.int32)
    assert scorer.score(scorer.tokenize([]), scorer.tokenize([]), empty).shape == (0,)


def test_half_precision_keeps_the_order_of_clear_differences(cross_encoder: Path) -> None:
    pairs = all_pairs()
    exact, fast = (
        s.score(s.tokenize(QUESTIONS), s.tokenize(PASSAGES), pairs)
        for s in (torch_scorer(cross_encoder, 8, 128, precision) for precision in ("exact", "fast"))  # type: ignore[arg-type]
    )
    # bfloat16 has 8 bits of mantissa.
    np.testing.assert_allclose(exact, fast, atol=0.02 * np.abs(exact).max())


def test_the_arithmetic_is_told(cross_encoder: Path) -> None:
    assert torch_scorer(cross_encoder, 8, 128, "exact").arithmetic == "float32"
    assert torch_scorer(cross_encoder, 8, 128, "fast").arithmetic in {"float32", "bfloat16"}


def test_broken_weights_are_one_line(cross_encoder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(cross_encoder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"CROSS_ENCODER_MODEL: the model in .*broken cannot be loaded: ") as caught:
        torch_scorer(broken, 8, 128).load()
    assert "\n" not in str(caught.value)


def openvino_scorer(directory: Path, kept: Path, engine: Engine = "openvino") -> CrossEncoderScorer:
    return make_scorer(directory, "0123456789abcdef00", "cpu", 5, 128, "exact", CpuEngine(engine, kept, 2))


@pytest.mark.parametrize("model", ["cross_encoder", "xlmr_cross_encoder", "electra_cross_encoder"])
def test_openvino_scores_equal_torch(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory: Path = request.getfixturevalue(model)
    pairs = all_pairs()
    torch_s, openvino_s = torch_scorer(directory, 5, 128), openvino_scorer(directory, tmp_path)
    expected, found = (
        s.score(s.tokenize(QUESTIONS), s.tokenize(PASSAGES), pairs) for s in (torch_s, openvino_s)
    )  # fmt: skip
    assert (openvino_s.backend.name, openvino_s.arithmetic) == ("OpenVINO", "float32")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected) > 1e-3


def convert(directory: Path, fingerprint: str, folder: Path) -> Path:
    return ensure_converted("tiny", fingerprint, folder, lambda: traceable(load_classifier(directory)))


def test_conversion_is_kept_and_made_anew_for_another_model(cross_encoder: Path, tmp_path: Path) -> None:
    graph = convert(cross_encoder, "f" * 20, tmp_path / "m")
    made = graph.stat().st_mtime_ns
    assert convert(cross_encoder, "f" * 20, tmp_path / "m").stat().st_mtime_ns == made
    assert convert(cross_encoder, "e" * 20, tmp_path / "m").stat().st_mtime_ns != made


def test_truncated_conversion_is_made_anew(cross_encoder: Path, tmp_path: Path) -> None:
    graph = convert(cross_encoder, "f" * 20, tmp_path / "m")
    weights = graph.with_suffix(".bin")
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: size // 2])
    convert(cross_encoder, "f" * 20, tmp_path / "m")
    assert weights.stat().st_size == size


def test_scores_do_not_depend_on_the_number_of_lanes(cross_encoder: Path, tmp_path: Path) -> None:
    scorers = [
        make_scorer(cross_encoder, "f" * 20, "cpu", 5, 128, "exact", CpuEngine("openvino", tmp_path, threads))
        for threads in (1, 24)
    ]
    one, many = (s.score(s.tokenize(QUESTIONS), s.tokenize(PASSAGES), all_pairs()) for s in scorers)
    assert [len(s.backend.runner.compiled) for s in scorers] == [1, 3]  # type: ignore[attr-defined]
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_a_kept_conversion_is_checked_whenever_it_is_loaded(
    cross_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    openvino_scorer(cross_encoder, tmp_path).load()
    (weights,) = tmp_path.glob("*/model.bin")
    values = np.fromfile(weights, np.uint8)
    values[3::400] ^= 2  # exponents of floats; the file stays as long as it was
    values.tofile(weights)
    with pytest.raises(UserError, match=r"its outputs are off by .*; delete .* to convert it anew"):
        openvino_scorer(cross_encoder, tmp_path).load()
    scorer = openvino_scorer(cross_encoder, tmp_path, "auto")
    scorer.load()
    assert scorer.backend.name == "torch"
    assert "torch runs it." in caplog.text


def unconvertible(*_: object, **__: object) -> None:
    raise RuntimeError("no such operator\nand more")


def test_torch_takes_over_loudly_where_openvino_cannot(
    cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("openvino.convert_model", unconvertible)
    scorer = openvino_scorer(cross_encoder, tmp_path, "auto")
    scorer.load()
    assert scorer.backend.name == "torch"
    assert "OpenVINO cannot run the cross-encoder (conversion failed: no such operator): torch runs it." in caplog.text


def test_openvino_by_name_does_not_fall_back(
    cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openvino.convert_model", unconvertible)
    with pytest.raises(UserError, match="OpenVINO cannot run the cross-encoder: conversion failed: no such operator"):
        openvino_scorer(cross_encoder, tmp_path).load()


def test_torch_runs_whatever_is_not_a_cpu(cross_encoder: Path, tmp_path: Path) -> None:
    scorer = make_scorer(cross_encoder, "f", "cuda", 5, 128, "exact", CpuEngine("openvino", tmp_path, 1))
    assert scorer.backend.name == "torch"


def test_characters_that_are_read(cross_encoder: Path) -> None:
    """Letters are tokens here: 32 less 3 special tokens and 9 of the question leave 20 letters of the passage."""
    scorer = torch_scorer(cross_encoder, batch_size=4, max_length=32)
    assert scorer.characters_read("abcdefghi", "а" * 20) == 20
    assert scorer.characters_read("abcdefghi", "абв " * 10) == 26
    questions, passages = scorer.tokenize(["abcdefghi"]), scorer.tokenize(["абв " * 10, ("абв " * 10)[:26]])
    cut, whole = scorer.score(questions, passages, np.array([[0, 0], [0, 1]], dtype=np.int32))
    assert cut == pytest.approx(whole, abs=1e-6)
