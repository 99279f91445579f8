import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT, bert_tokenizer, load_script

import _bench
import bench_quality
from config import Settings
from src.core.errors import UserError


def test_agreement_by_hand() -> None:
    reference = np.arange(12, dtype=np.float32)
    swapped = reference.copy()
    swapped[[0, 5]] = swapped[[5, 0]]  # the best and the worst of the first question change places
    found = _bench.agreement(swapped, reference, 6)
    assert found["max_error"] == 5.0
    assert found["top5_agreement"] == 0.5
    assert found["spearman"] == pytest.approx(1 - 6 * (25 + 25) / (12 * 143))
    same = _bench.agreement(reference, reference, 6)
    assert same == {"max_error": 0.0, "spearman": pytest.approx(1.0), "top5_agreement": 1.0}


def test_ratios_are_taken_round_by_round() -> None:
    assert _bench.ratios([1.0, 2.0, 4.0], [4.0, 4.0, 4.0]) == (2.0, 1.0, 4.0)


@pytest.mark.parametrize(("kind", "low", "high"), [("ru512", 490, 490), ("short", 16, 64), ("mixed", 16, 500)])
def test_lengths(kind: str, low: int, high: int) -> None:
    found = _bench.passage_lengths(kind, 2000, random.Random(0))
    assert low <= min(found) <= max(found) <= high
    if kind == "mixed":
        assert np.median(found) == pytest.approx(110, rel=0.1)


def test_work_is_whole_questions_and_repeatable() -> None:
    made = [_bench.make_work(PROJECT / "data" / "sample", bert_tokenizer(), 250, "short") for _ in range(2)]
    assert made[0].passages == made[1].passages
    assert made[0].pairs.tolist() == made[1].pairs.tolist()
    assert (len(made[0].questions), made[0].pairs.shape, made[0].candidates) == (3, (300, 2), 100)
    for q in range(3):
        rows = made[0].pairs[100 * q : 100 * (q + 1)]
        assert set(rows[:, 0].tolist()) == {q}
        assert len(set(rows[:, 1].tolist())) == 100


def test_bench_rerank_writes_every_figure(
    cross_encoder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("bench_rerank")
    monkeypatch.setattr(script, "PROJECT_ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(PROJECT / "data" / "sample")
    monkeypatch.setattr(script, "measured_peak", lambda device, kind, threads: 1e9)
    flags = ["--model", str(cross_encoder), "--pairs", "20", "--lengths", "short", "--rounds", "2", "--device", "cpu"]
    script.run(settings, [*flags, "--only", "predict", "exact", "--name", "out"])
    found = json.loads((tmp_path / "data" / "results" / "out.json").read_text(encoding="utf-8"))
    assert {"loop", "predict", "exact"} <= set(found)
    assert found["loop"]["ratio_to_loop"] == 1.0
    assert found["exact"]["max_error"] < 1e-4
    assert found["exact"]["top5_agreement"] == 1.0
    assert (tmp_path / "data" / "results" / "out.png").stat().st_size > 1000
    with pytest.raises(UserError, match="--only fastest: no such configuration"):
        script.run(settings, [*flags, "--only", "fastest"])


def write_set(folder: Path, labelled: int = 5) -> Path:
    folder.mkdir()
    ids = [f"q{i}" for i in range(8)]
    pd.DataFrame({"web_id": ["01", "2"], "title": "", "text": ["a", "b"]}).to_csv(folder / "websites.csv", index=False)
    pd.DataFrame({"q_id": ids, "query": ids}).to_csv(folder / "questions.csv", index=False)
    rows = [(q, d) for q in ids[:labelled] for d in ("01", "2")]
    pd.DataFrame(rows, columns=["q_id", "web_id"]).to_csv(folder / "qrels.csv", index=False)
    return folder


def test_drawn_questions_are_labelled_and_always_the_same(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    assert bench_quality.draw_questions(source, tmp_path / "a", 3, seed=0) == 3
    bench_quality.draw_questions(source, tmp_path / "b", 3, seed=0)
    for name in ("questions.csv", "qrels.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    questions = pd.read_csv(tmp_path / "a" / "questions.csv", dtype=str)["q_id"].tolist()
    labels = pd.read_csv(tmp_path / "a" / "qrels.csv", dtype=str)
    assert set(questions) <= {f"q{i}" for i in range(5)}
    assert labels["q_id"].drop_duplicates().tolist() == questions
    assert labels["web_id"].tolist() == ["01", "2"] * 3
    assert bench_quality.draw_questions(source, tmp_path / "c", 99, seed=0) == 5


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set: no question has a label"):
        bench_quality.draw_questions(write_set(tmp_path / "set", labelled=0), tmp_path / "a", 3, seed=0)


def test_table_row_by_hand() -> None:
    def run(hit1: float, hit5: float, gap: float) -> dict[str, Any]:
        return {"metrics": {"Hit@1": {"mean": hit1}, "Hit@5": {"mean": hit5}}, "gap": gap}

    def difference(metric: str, mean: float, low: float, high: float, p: float) -> dict[str, Any]:
        return {"metric": metric, "change": {"mean": mean, "low": low, "high": high}, "p": p}

    changes = [difference("Hit@1", 0.05, 0.01, 0.09, 0.0321), difference("Hit@5", -0.01, -0.04, 0.02, 0.5)]
    found = {
        "set": "tiny", "documents": 1234, "labelled": 200,
        "runs": [run(0.5, 0.75, 0.2), run(0.55, 0.74, 0.0), run(0.4, 0.6, 0.0)],
        "pairs": [{"differences": changes}],
    }  # fmt: skip
    assert bench_quality.table_row(found, 100) == (
        "| tiny | 1,234 | 200 | 100 | 0.5000 -> 0.5500 | +5.0 (+1.0 to +9.0) | 0.032 | 0.7500 -> 0.7400 | "
        "-1.0 (-4.0 to +2.0) | 0.500 | 0.9500 | 0.4000 |"
    )
    assert bench_quality.mean_gain([found, found], "Hit@1") == pytest.approx(5.0)


def test_the_benchmark_runs_with_the_packages_of_the_search_but_for_three() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))

    search, bench = pins("requirements-common.txt"), pins("requirements-bench.txt")
    differing = {name for name, version in search.items() if bench.get(name) != version}
    assert differing == {"transformers", "tokenizers", "huggingface_hub"}
