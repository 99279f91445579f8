import json
import random
import subprocess
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import sentence_transformers
import torch
from conftest import PROJECT, bert_tokenizer, load_script

import _bench
import _bench_peers
import _pipeline_bench
import bench_quality
from config import Settings
from src.core.errors import UserError
from src.core.types import TokenVectors
from src.engine.peak import ModelShape
from src.insight.profile import Profiler


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


@pytest.mark.parametrize("tokens", [100, 456])
def test_pairs_of_about_so_many_tokens(tokens: int) -> None:
    tokenizer = bert_tokenizer()  # a token a letter
    work = _bench.make_work(PROJECT / "data" / "sample", tokenizer, 300, "mixed", tokens=tokens)
    lengths = [len(tokenizer(*pair)["input_ids"]) for pair in work.texts()]
    assert np.median(lengths) == pytest.approx(tokens, rel=0.05)
    assert np.quantile(lengths, [0.05, 0.95]) == pytest.approx([tokens, tokens], abs=30)  # questions differ


def test_too_few_tokens_for_a_passage_are_refused() -> None:
    with pytest.raises(UserError, match=r"--tokens 20: a question takes about \d+ of them"):
        _bench.make_work(PROJECT / "data" / "sample", bert_tokenizer(), 10, "mixed", tokens=20)


@pytest.mark.parametrize(("most", "questions"), [(2000, 7), (500, 5), (99, 1)])
def test_sample_is_whole_questions(most: int, questions: int) -> None:
    pairs = np.stack([np.repeat(np.arange(7), 100), np.tile(np.arange(100), 7)], axis=1).astype(np.int32)
    work = _bench.Work(tuple("abcdefg"), ("p",) * 100, pairs, 100)
    sample, rows = _bench.sample_of(work, most)
    assert sample.pairs.tolist() == pairs[rows].tolist()
    asked, counts = np.unique(sample.pairs[:, 0], return_counts=True)
    assert (len(asked), set(counts.tolist())) == (questions, {100})
    if questions == 5:
        assert sample.pairs[::100, 0].tolist() not in (list(range(5)), list(range(2, 7)))  # drawn, not cut off


def test_cuda_is_one_card_unless_all_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    assert _bench.pick_devices("cuda") == _bench.pick_devices("auto") == ("cuda:0", "cuda:0")
    assert _bench.pick_devices("cuda:2") == ("cuda:2", "cuda:2")
    assert _bench.pick_devices("cuda:all") == ("cuda", "cuda:0")
    assert _bench.pick_devices("cpu") == ("cpu", "cpu")
    found = _bench.machine("cuda:0")
    assert (found["device"], found["device_name"], found["cards"]) == ("cuda:0", "card cuda:0", 4)


def test_machine_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = _bench.machine("cpu")
    assert found["device_name"] == found["processor"] != ""
    assert (found["cards"], found["cores"] >= 1) == (0, True)


def test_ours_count_every_card_that_they_use() -> None:
    assert _bench.cards_of(None) == 1
    assert _bench.cards_of(Namespace(backend=Namespace(name="torch"))) == 1
    assert _bench.cards_of(Namespace(backend=Namespace(backends=(1, 2, 3)))) == 3


def test_commit_is_that_of_the_folder_itself(tmp_path: Path) -> None:
    assert _bench.commit(tmp_path) is None

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    git("init")
    assert _bench.commit(tmp_path) is None  # nothing is committed yet
    git("commit", "--allow-empty", "-m", "m")
    assert _bench.commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "inside").mkdir()
    assert _bench.commit(tmp_path / "inside") is None


class FakeCrossEncoder:
    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, directory: str, **given: Any) -> None:
        self.made.append(given)

    def predict(self, texts: list[Any], **given: Any) -> list[float]:
        return [0.0] * len(texts)


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:0"])
def test_peers_are_those_of_the_device(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentence_transformers, "CrossEncoder", FakeCrossEncoder)
    monkeypatch.setattr(FakeCrossEncoder, "made", [])
    work = _bench.Work(("q",), ("a", "b"), np.array([[0, 0], [0, 1]], dtype=np.int32), 2)
    found, missing = _bench_peers.peers(tmp_path, device, 512, work)
    assert {"loop", "predict"} <= set(found)
    assert found["loop"](work).tolist() == [0.0, 0.0]
    assert ("predict, OpenVINO backend" in found) is (device == "cpu")
    assert ("loop, float16" in found) is (device == "cuda:0")
    assert "predict, OpenVINO backend" not in missing
    kinds = [
        (given.get("device"), given["model_kwargs"]["dtype"])
        for given in FakeCrossEncoder.made
        if "backend" not in given
    ]
    half = [("cuda:0", torch.float16)] if device == "cuda:0" else []
    assert kinds == [(device, torch.float32), *half]


def test_ours_are_counted_by_what_they_compute(cross_encoder: Path) -> None:
    script = load_script("bench_rerank")
    scorers = {"exact": Namespace(backend_name="OpenVINO"), "torch, sorted": Namespace(backend_name="torch")}
    shape = ModelShape(2, 4, 8)
    found = script._operations(cross_encoder, shape, np.array([3, 1]), scorers)
    assert found == {"loop": 2368.0, "torch, sorted": 2368.0, "exact": 1888.0}


def _rerank_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with its results in a folder and no time spent on the peak."""
    script = load_script("bench_rerank")
    monkeypatch.setattr(script, "PROJECT_ROOT", folder)
    (folder / "data").mkdir()
    (folder / "data" / "sample").symlink_to(PROJECT / "data" / "sample")
    monkeypatch.setattr(script, "measured_peak", lambda device, kind, threads: 1e9)
    return script


def test_bench_rerank_warms_up_and_samples_its_reference(
    cross_encoder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _rerank_bench(tmp_path, monkeypatch)
    monkeypatch.setattr(_bench, "REFERENCE_PAIRS", 10)
    monkeypatch.setattr(_bench, "WARM_UP_PAIRS", 5)
    monkeypatch.setattr(_bench, "CANDIDATES", 5)
    calls: list[int] = []

    def peers(directory: Path, device: str, max_length: int, work: _bench.Work) -> Any:
        def loop(some: _bench.Work) -> Any:
            calls.append(len(some.pairs))
            return np.arange(len(some.pairs), dtype=np.float32)

        return {"loop": loop}, {}

    monkeypatch.setattr(script, "peers", peers)
    flags = ["--model", str(cross_encoder), "--pairs", "20", "--tokens", "90", "--rounds", "2", "--device", "cpu"]
    script.run(settings, [*flags, "--only", "torch, sorted", "--name", "out"])
    found = json.loads((tmp_path / "data" / "results" / "out.json").read_text(encoding="utf-8"))
    assert calls == [5, 20, 20]
    assert (found["reference"]["pairs"], found["reference"]["questions"], found["pairs"]) == (10, 2, 20)
    assert found["torch, sorted"]["max_error"] < 1e-5
    assert found["lengths"] == "90 tokens a pair"
    assert found["tokens_per_pair"] == pytest.approx(90, rel=0.1)
    assert found["machine"]["device_name"]
    assert (found["machine"]["device"], found["commit"]) == ("cpu", None)
    with pytest.raises(UserError, match="--tokens 900: this model reads at most 128 of a pair"):
        script.run(settings, [*flags, "--tokens", "900"])


def test_pipeline_times_late_interaction(cross_encoder: Path, tmp_path: Path) -> None:
    _pipeline_bench.make_files(PROJECT / "data" / "sample", tmp_path, 12, 4)
    profiler = Profiler()
    found = _pipeline_bench.run_stages(tmp_path, cross_encoder, bert_tokenizer(), profiler)
    stages = {stage.name: stage for stage in profiler.stages}
    assert (found.questions, found.documents) == (4, 12)
    assert list(stages).index("passages") < list(stages).index("late interaction") < list(stages).index("tokenise")
    assert stages["late interaction"].items == 4
    assert stages["late interaction"].seconds > 0


def test_made_up_token_vectors_are_as_many_as_the_tokens() -> None:
    most, longest = _pipeline_bench.MADE_UP_VECTORS, _pipeline_bench.LONGEST
    values = np.zeros((most + longest, 1), dtype=np.float16)
    lengths = np.array([3, 0, *([longest] * 300), longest + 1, 5])
    found: TokenVectors = _pipeline_bench._token_vectors(lengths, values)
    assert int(found.offsets[-1]) > most
    assert [len(found[i]) for i in range(len(found))] == np.minimum(lengths, longest).tolist()


def test_bench_rerank_writes_every_figure(
    cross_encoder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _rerank_bench(tmp_path, monkeypatch)
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


def test_saved_quality_says_what_it_was_made_from(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(source: Path, work: Path, flags: Namespace, weight: float) -> dict[str, Any]:
        return {"set": source.name, "ranks": [1], "pairs": [{"differences": [], "worst_losses": [1]}]}

    monkeypatch.setattr(bench_quality, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(bench_quality, "measure", measured)
    monkeypatch.setattr(bench_quality, "table_row", lambda found, candidates: "|")
    monkeypatch.setattr(bench_quality, "mean_gain", lambda found, metric: 0.0)
    write_set(tmp_path / "set")
    bench_quality.run(settings, ["--datasets", str(tmp_path), "--model", "some-model", "--name", "out"])
    found = json.loads((tmp_path / "data" / "results" / "out" / "bench.json").read_text(encoding="utf-8"))
    assert found["settings"] == settings.snapshot()
    assert (found["model"], found["commit"], found["candidates"]) == ("some-model", None, settings.reranker_candidate_k)
    assert found["machine"]["processor"]
    assert found["machine"]["cores"] >= 1
    assert found["created"].startswith("20")
    assert found["sets"] == [{"set": "set", "pairs": [{"differences": []}]}]


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set: no question has a label"):
        bench_quality.draw_questions(write_set(tmp_path / "set", labelled=0), tmp_path / "a", 3, seed=0)


def test_table_row_by_hand() -> None:
    def run(hit1: float, hit5: float, gap: float) -> dict[str, Any]:
        return {"metrics": {"Hit@1": {"mean": hit1}, "Hit@5": {"mean": hit5}}, "gap": gap}

    def difference(metric: str, mean: float, low: float, high: float, p: float) -> dict[str, Any]:
        return {"metric": metric, "change": {"mean": mean, "low": low, "high": high}, "p": p}

    def stage(name: str, seconds: float, items: int = 7) -> dict[str, Any]:
        return {"name": name, "seconds": seconds, "items": items}

    changes = [difference("Hit@1", 0.05, 0.01, 0.09, 0.0321), difference("Hit@5", -0.01, -0.04, 0.02, 0.5)]
    found = {
        "set": "tiny", "documents": 1234, "labelled": 200,
        "runs": [run(0.5, 0.75, 0.2), run(0.55, 0.74, 0.0), run(0.4, 0.6, 0.0)],
        "pairs": [{"differences": changes}],
        "profile": {"stages": [stage("encode", 1.5), stage("load", 100), stage("bm25", 2), stage("tokenise", 0.5),
                               stage("rerank", 40, 19_400)]},
    }  # fmt: skip
    assert bench_quality.table_row(found, 100) == (
        "| tiny | 1,234 | 200 | 100 | 0.5000 -> 0.5500 | +5.0 (+1.0 to +9.0) | 0.032 | 0.7500 -> 0.7400 | "
        "-1.0 (-4.0 to +2.0) | 0.500 | 0.9500 | 0.4000 | 4 + 40 | 19,400 |"
    )
    assert bench_quality.mean_gain([found, found], "Hit@1") == pytest.approx(5.0)


def test_the_benchmark_runs_with_the_packages_of_the_search_but_for_three() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))

    search, bench = pins("requirements-common.txt"), pins("requirements-bench.txt")
    differing = {name for name, version in search.items() if bench.get(name) != version}
    assert differing == {"transformers", "tokenizers", "huggingface_hub"}
