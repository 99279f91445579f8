"""8 bits: a quantised model is used where the answers stay, and refused where they do not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTIONS, load_script

import src.int8
from config import Settings
from src.core.errors import UserError
from src.core.types import Run
from src.engine.devices import CpuEngine, Engine
from src.engine.int8_backend import Int8Backend
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer, make_scorer
from src.int8 import judge, require_int8, same_answers, sampled, spread_pairs
from src.stages.variants import QueryVariants


def scorer_of(directory: Path, kept: Path, engine: Engine = "openvino") -> PairScorer:
    return make_scorer(directory, "f" * 20, "cpu", 8, 128, "int8", CpuEngine(engine, kept, 2))


@pytest.mark.parametrize(("count", "most", "rows"), [(3, 100, [0, 1, 2]), (5, 2, [0, 4]), (9, 3, [0, 4, 8])])
def test_rows_are_spread_evenly(count: int, most: int, rows: list[int]) -> None:
    assert sampled(count, most) == rows


def candidates() -> Run:
    rows = np.array([[0, 1, 2], [2, 0, -1]], dtype=np.int32)
    return Run("fused", ("q", "r"), rows, np.array([[3, 2, 1], [2, 1, 0]], np.float32), "corpus")


EXACT = np.array([[3, 2, 1], [1, 2, 0]], dtype=np.float32)
SWAPPED = np.array([[2, 3, 1], [1, 2, 0]], dtype=np.float32)
LIFTED = np.array([[3, 1, 2], [1, 2, 0]], dtype=np.float32)


def test_the_first_documents_count_and_not_their_order() -> None:
    assert same_answers(candidates(), EXACT, SWAPPED, 1.0, 2) == 2
    assert same_answers(candidates(), EXACT, LIFTED, 1.0, 2) == 1  # a, b became a, c; the other question keeps its two
    assert same_answers(candidates(), EXACT, LIFTED, 1.0, 1) == 2
    assert same_answers(candidates(), EXACT, LIFTED, 0.0, 2) == 2  # stage one decides alone


def test_the_worst_weight_is_judged() -> None:
    found = (
        "int8: 2 of 2 sampled questions have the same first 2 documents as in float32 (blend weight 0; 99% are asked)"
    )
    assert judge(candidates(), EXACT, LIFTED, [0.0], 2) == found
    with pytest.raises(UserError) as refused:
        judge(candidates(), EXACT, LIFTED, [0.0, 1.0], 2)
    assert str(refused.value) == (
        "RERANKER_PRECISION = 'int8': 1 of 2 sampled questions have the same first 2 documents as in float32 (blend "
        "weight 1; 99% are asked). Set it to 'exact' or 'fast'."
    )


def test_pairs_that_set_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = np.array([[[0], [1], [2]], [[2], [0], [-1]]], dtype=np.int32)
    assert spread_pairs(texts).tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [1, 0]]
    monkeypatch.setattr(src.int8, "CALIBRATION_PAIRS", 2)
    assert spread_pairs(texts).tolist() == [[0, 0], [1, 0]]


def test_it_is_for_openvino_alone(
    cross_encoder: Path, two_logit_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scorer in (scorer_of(cross_encoder, tmp_path, "torch"), scorer_of(two_logit_model, tmp_path)):
        with pytest.raises(UserError, match=r"that OpenVINO runs on a CPU; here .* runs some/model\. "):
            require_int8(scorer, "some/model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-int8\.txt"):
        require_int8(scorer_of(cross_encoder, tmp_path), "some/model")


def test_a_quantised_model_scores_nearly_the_same(cross_encoder: Path, tmp_path: Path) -> None:
    exact = scorer_of(cross_encoder, tmp_path)
    assert isinstance(exact, CrossEncoderScorer)
    assert isinstance(exact.backend, OpenVinoBackend)
    tables = exact.tokenize(list(QUESTIONS.values())), exact.tokenize(["Карта бесплатна.", "lounge " * 20, "нет"])
    pairs = np.array([(q, p) for q in range(4) for p in range(3)], dtype=np.int32)
    expected = exact.score(*tables, pairs)
    made = Int8Backend(exact.backend, "corpus")
    assert made.pairs == 0
    made.make(exact.batches(*tables, pairs), len(pairs))
    again = Int8Backend(exact.backend, "corpus")
    assert again.pairs == 12
    assert again.arithmetic.startswith("int8, scales ")
    assert Int8Backend(exact.backend, "another corpus").pairs == 0
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
    none = rf"no run has quantised .* Run: python scripts/03_run_search\.py --data-dir {bank}, or"
    with pytest.raises(UserError, match=none):
        run("08_explain", eight_bits, bank, "--q-id", "q1")

    with monkeypatch.context() as context:
        context.setattr(src.int8, "same_answers", lambda *_: 3)
        with pytest.raises(UserError, match="3 of 4 sampled questions have the same first 3 documents"):
            run("03_run_search", eight_bits, bank, "--output", str(output))
    assert not output.exists()
    with pytest.raises(UserError, match=none):
        run("08_explain", eight_bits, bank, "--q-id", "q1")

    caplog.clear()
    monkeypatch.setattr(src.int8, "LEAST_AGREEMENT", 0.0)
    run("03_run_search", eight_bits, bank, "--output", str(output), "--enable-profiling")
    assert "Quantising" in caplog.text
    assert "on cpu, int8, scales " in caplog.text
    assert "of 4 sampled questions have the same first 3 documents as in float32" in caplog.text
    assert output.exists()
    caplog.clear()
    run("05_compare", eight_bits, bank, "--candidates", "3", "5", "--weights", "0", "1")
    assert "Quantising" not in caplog.text
    run("08_explain", eight_bits, bank, "--q-id", "q1")
    assert "Кредитная карта" in capsys.readouterr().out


def test_a_failed_quantisation_is_one_line(
    cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf

    def unable(*_: object, **__: object) -> None:
        raise nncf.ValidationError("no operation to quantise\nmore")

    monkeypatch.setattr(nncf, "quantize", unable)
    exact = scorer_of(cross_encoder, tmp_path)
    assert isinstance(exact, CrossEncoderScorer)
    assert isinstance(exact.backend, OpenVinoBackend)
    exact.load()
    with pytest.raises(UserError, match=r"cross-encoder cannot be quantised: no operation to quantise\. Set it to"):
        Int8Backend(exact.backend, "corpus").make([], 0)


def test_variants_of_some_questions() -> None:
    owners = np.array([0, 0, 2, 3], dtype=np.int32)
    variants = QueryVariants(texts=("a", "b", "c", "d"), owners=owners, names=("0a", "0b", "2c", "3d"))
    picked = variants.picked([2, 3])
    assert (picked.texts, picked.owners.tolist(), picked.names) == (("c", "d"), [0, 1], ("2c", "3d"))
    assert variants.picked([1]).texts == ()
