"""8 bits: a quantised model is used where the answers stay, and refused where they do not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTIONS, load_script

import src.int8
from config import Settings
from src.core.errors import UserError
from src.core.types import Chunks, Corpus, Queries, Run
from src.engine.devices import CpuEngine, Engine
from src.engine.int8_backend import Int8Backend
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer, make_scorer
from src.int8 import Sample, require_int8, sampled
from src.stages.rerank import PassageTexts


def scorer_of(directory: Path, kept: Path, engine: Engine = "openvino") -> PairScorer:
    return make_scorer(directory, "f" * 20, "cpu", 8, 128, "int8", CpuEngine(engine, kept, 2))


@pytest.mark.parametrize(("count", "most", "rows"), [(3, 100, [0, 1, 2]), (5, 2, [0, 4]), (9, 3, [0, 4, 8])])
def test_rows_are_spread_evenly(count: int, most: int, rows: list[int]) -> None:
    assert sampled(count, most) == rows


def sample(top_k: int) -> Sample:
    corpus = Corpus(tuple("abc"), ("",) * 3, ("one", "two", "three"))
    chunks = Chunks(*(np.array(column, dtype=np.int32) for column in ([0, 1, 2], [0, 0, 0], [3, 3, 5])))
    rows = np.array([[0, 1, 2], [2, 0, -1]], dtype=np.int32)
    candidates = Run("fused", ("q", "r"), rows, np.array([[3, 2, 1], [2, 1, 0]], np.float32), corpus.fingerprint)
    passages = PassageTexts.of(corpus, chunks, rows[:, :, None])
    return Sample(Queries(("q", "r"), ("x", "y")), candidates, passages, top_k, 1.0)


def test_the_first_documents_count_and_not_their_order() -> None:
    one = np.array([[3, 2, 1], [1, 2, 0]], dtype=np.float32)
    swapped = np.array([[2, 3, 1], [1, 2, 0]], dtype=np.float32)
    lifted = np.array([[3, 1, 2], [1, 2, 0]], dtype=np.float32)
    assert sample(2).agreement(one, swapped) == 1.0
    assert sample(2).agreement(one, lifted) == 0.5  # a, b became a, c; the other question keeps its two
    assert sample(1).agreement(one, lifted) == 1.0


def test_pairs_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sample(2).pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [1, 0]]
    monkeypatch.setattr(src.int8, "CALIBRATION_PAIRS", 2)
    assert sample(2).pairs.tolist() == [[0, 0], [1, 0]]


def test_it_is_for_openvino_alone(
    cross_encoder: Path, two_logit_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scorer in (scorer_of(cross_encoder, tmp_path, "torch"), scorer_of(two_logit_model, tmp_path)):
        with pytest.raises(UserError, match=r"that OpenVINO runs on a CPU; here .* runs the model"):
            require_int8(scorer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-int8\.txt"):
        require_int8(scorer_of(cross_encoder, tmp_path))


def test_a_quantised_model_scores_nearly_the_same(cross_encoder: Path, tmp_path: Path) -> None:
    exact = scorer_of(cross_encoder, tmp_path)
    assert isinstance(exact, CrossEncoderScorer)
    assert isinstance(exact.backend, OpenVinoBackend)
    tables = exact.tokenize(list(QUESTIONS.values())), exact.tokenize(["Карта бесплатна.", "lounge " * 20, "нет"])
    pairs = np.array([(q, p) for q in range(4) for p in range(3)], dtype=np.int32)
    expected = exact.score(*tables, pairs)
    made = Int8Backend(exact.backend, "corpus")
    assert not made.made
    made.make(exact.batches(*tables, pairs))
    again = Int8Backend(exact.backend, "corpus")
    assert again.made
    assert again.arithmetic.startswith("int8, scales ")
    assert not Int8Backend(exact.backend, "another corpus").made
    found = CrossEncoderScorer(cross_encoder, again, 8, 128).score(*tables, pairs)
    # The scores of this random model hardly differ, so the measure is their size; sums that overflow were off by .25.
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.fixture
def eight_bits(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    import _plans

    monkeypatch.setattr(_plans, "cpu_engine", lambda settings: CpuEngine("openvino", tmp_path / "kept", 2))
    return settings.model_copy(update={"reranker_precision": "int8", "cpu_engine": "openvino"})


def run(name: str, settings: Settings, data: Path, *arguments: str) -> None:
    load_script(name).run(settings, ["--data-dir", str(data), *arguments])


def test_a_run_in_8_bits(
    bank: Path,
    eight_bits: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    for step in ("01_preprocess", "02_build_indices"):
        run(step, eight_bits, bank)
    output = tmp_path / "submission.csv"
    with pytest.raises(UserError, match="no run has quantised the cross-encoder for this corpus yet"):
        run("08_explain", eight_bits, bank, "--q-id", "q1")

    monkeypatch.setattr(Sample, "agreement", lambda self, one, other: 0.75)
    with pytest.raises(UserError) as refused:
        run("03_run_search", eight_bits, bank, "--output", str(output))
    assert str(refused.value) == (
        "RERANKER_PRECISION = 'int8': the first 3 documents of 75.0% of 4 sampled questions are those of float32, "
        "99% are asked. Set it to 'exact' or 'fast'."
    )
    assert not output.exists()
    monkeypatch.undo()
    import _plans

    monkeypatch.setattr(_plans, "cpu_engine", lambda settings: CpuEngine("openvino", tmp_path / "kept", 2))

    caplog.clear()
    monkeypatch.setattr(src.int8, "LEAST_AGREEMENT", 0.5)
    run("03_run_search", eight_bits, bank, "--output", str(output), "--enable-profiling")
    assert "Quantising" not in caplog.text  # the first run has
    assert "on cpu, int8, scales " in caplog.text
    assert "int8: the first 3 documents of " in caplog.text
    assert "Pairs: 0 scored, 20 kept" in caplog.text  # the sample was the whole run
    assert output.exists()
    run("08_explain", eight_bits, bank, "--q-id", "q1")
    assert "Кредитная карта" in capsys.readouterr().out
