import json
import logging
import os
import runpy
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _cli

import numpy as np
import pytest
from conftest import PROJECT, QUESTIONS, lay_out_hub_cache, load_script, write_csv
from httpx2 import Request, Response
from huggingface_hub.errors import HfHubHTTPError

import _doctor_time
from config import Settings
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.engine.encoder import SentenceEncoder
from src.engine.pair_scorer import CrossEncoderScorer
from src.insight import doctor
from src.insight.doctor import Finding, Speed, duration, measure, space_findings
from src.models.resolve import hub_answers

TIME = "Time of ./run_cross_encoder_search.sh"
UNKNOWN = "not known until it is downloaded"


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor_time, "MEASURED_SECONDS", 0.1)


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache, and a hub that answers: it has the models of ``someone``."""

    def model_info(_: object, name: str, **__: object) -> None:
        if not name.startswith("someone/"):
            raise HfHubHTTPError("404 Client Error", response=Response(404, request=Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("src.models.resolve._hub_is_away", threading.Event())
    hub_answers.cache_clear()
    yield hub_cache
    hub_answers.cache_clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the measurement sees; it stands still until somebody moves it."""
    now = [0.0]
    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def prepare(data: Path, settings: Settings) -> None:
    for script in ("01_preprocess", "02_build_indices"):
        load_script(script).run(settings, ["--data-dir", str(data)])


def expected_time(parts: dict[str, list[Finding]]) -> str:
    (finding,) = parts[TIME]
    assert finding.what == "time"
    return finding.detail


def examine(data: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[Finding]]]:
    code = 0
    capsys.readouterr()
    try:
        load_script("00_doctor").run(settings, ["--data-dir", str(data), "--json"])
    except SystemExit as stop:
        code = int(str(stop.code))
    parts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return code, {title: [Finding(**finding) for finding in found] for title, found in parts.items()}


def lines(found: list[Finding], what: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.detail) for finding in found if finding.what == what]


def test_before_and_after_preparation(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    assert lines(parts["Data"], "corpus")[0][1].startswith("7 documents (raw: ")
    assert lines(parts["Data"], "labels") == [("ok", "4 labelled questions")]
    assert "not prepared yet" in lines(parts["Artefacts"], "processed")[0][1]
    assert len(lines(parts["Artefacts"], "embeddings")) == 3
    prepare(bank, settings)
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    assert lines(parts["Artefacts"], "processed") == [("ok", "fresh, 7 chunks")]
    assert {level for level, _ in lines(parts["Artefacts"], "indices")} == {"ok"}
    assert lines(parts["Artefacts"], "what to do") == []
    # 4 questions and 5 candidates of one passage.
    assert "reranking 20 pairs" in expected_time(parts)
    stale = settings.model_copy(update={"bm25_k1": 1.7})
    code, parts = examine(bank, stale, capsys)
    found = [detail for level, detail in lines(parts["Artefacts"], "indices") if level == "note"]
    assert len(found) == 2
    assert "k1 is 1.2 there, but this run needs 1.7" in found[0]
    assert any("BM25_K1 = 1.7 (preset: 1.2)" in detail for _, detail in lines(parts["Configuration"], "  differs"))


def test_what_would_make_the_run_fail(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(bank / "raw" / "qrels.csv", "q_id,web_id", ["q1,nowhere"])
    code, parts = examine(bank, settings, capsys)
    assert code == 1
    assert [finding.level for finding in parts["Data"]][-1] == "FAIL"
    assert "label names document 'nowhere'" in parts["Data"][-1].detail
    # One error does not hide the rest.
    assert parts["Models"]
    (bank / "raw" / "qrels.csv").unlink()
    code, parts = examine(bank, settings.model_copy(update={"top_k": 8, "reranker_candidate_k": 8}), capsys)
    assert code == 1
    assert "TOP_K = 8, but the corpus has only 7 documents" in parts["Data"][-1].detail
    code, parts = examine(bank, settings.model_copy(update={"cross_encoder_model": "./nowhere"}), capsys)
    assert code == 1
    assert "no directory" in lines(parts["Models"], "cross-encoder")[0][1]


def test_variants_and_a_held_folder(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    _, parts = examine(bank, settings, capsys)
    assert lines(parts["Data"], "variants") == [("ok", "none")]
    path = bank / "processed" / "query_variants.csv"
    path.parent.mkdir(exist_ok=True)
    write_csv(path, "q_id,original_query,variant_1", [f"other{i},nothing of this,x" for i in range(4)])
    code, parts = examine(bank, settings, capsys)
    assert code == 1
    assert lines(parts["Data"], "variants")[0][0] == "FAIL"
    path.unlink()
    with data_lock(bank):
        code, parts = examine(bank, settings, capsys)
    assert code == 1
    assert f"pid {os.getpid()}" in lines(parts["Data"], "in use")[0][1]
    assert lines(examine(bank, settings, capsys)[1]["Data"], "in use") == []


def test_what_could_not_be_written(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    code, parts = examine(bank, settings.model_copy(update={"output_file": "/proc/submission.csv"}), capsys)
    assert code == 1
    ((level, detail),) = lines(parts["Data"], "output")
    assert level == "FAIL"
    assert detail.startswith("/proc/submission.csv: no file can be written in /proc: ")
    code, parts = examine(bank, settings.model_copy(update={"output_file": "data"}), capsys)
    assert code == 1
    assert lines(parts["Data"], "output")[0][1].endswith("data is a folder; the path of a file is needed")


@pytest.mark.parametrize(
    ("disk", "memory", "levels"), [(0, 0, "ok ok"), (1 << 60, 0, "FAIL ok"), (0, 1 << 60, "ok FAIL")]
)
def test_space(tmp_path: Path, disk: int, memory: int, levels: str) -> None:
    found = list(space_findings(tmp_path / "not" / "there", disk, memory))
    assert [finding.what for finding in found] == ["disk", "memory"]
    assert " ".join(finding.level for finding in found) == levels


@pytest.mark.parametrize(
    ("folder", "files", "free"),
    [
        ("", {"memory.max": "3000", "memory.current": "2500", "memory.stat": "anon 1\ninactive_file 400\n"}, 900),
        ("", {"memory.max": "max", "memory.current": "2500", "memory.stat": ""}, 10_000),
        ("memory", {"memory.limit_in_bytes": "3000", "memory.usage_in_bytes": "2500", "memory.stat": ""}, 500),
        ("", {}, 10_000),
    ],
)
def test_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, files: dict[str, str], free: int
) -> None:
    for name, text in files.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    assert doctor.free_memory() == free


def test_a_large_corpus_is_cut_in_part(
    bank: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{number},,,page {number},{'word ' * 50}{number}" for number in range(100, 200)]
    write_csv(bank / "raw" / "websites_updated.csv", "web_id,url,kind,title,text", rows)
    (bank / "raw" / "qrels.csv").unlink()
    monkeypatch.setattr("_doctor._MOST_CHARACTERS", 2000)
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    # All texts are of one length and three chunks: 8 of them stand for 100.
    assert "encoding 100 documents" in expected_time(parts)
    assert "encoding 300 chunks" in expected_time(parts)


def test_token_vectors_that_are_made_in_every_search_take_time(
    bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    small = settings.model_copy(update={"late_interaction_gb": 1e-9})
    prepare(bank, small)
    told = "encoding 7 chunks at most, anew in every search, for late interaction "
    assert told in expected_time(examine(bank, small, capsys)[1])
    prepare(bank, settings)
    assert "late interaction" not in expected_time(examine(bank, settings, capsys)[1])


def test_a_model_that_the_hub_has_not(
    bank: Path, settings: Settings, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"cross_encoder_model": "some/typo", "when_model_unavailable": "fail"}
    code, parts = examine(bank, settings.model_copy(update=changes), capsys)
    assert code == 1
    assert lines(parts["Models"], "cross-encoder")[0][0] == "FAIL"


def test_a_wrong_prefix_is_a_note(
    bank: Path, settings: Settings, hub: Path, bi_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out_hub_cache(hub, "someone/e5-small", bi_encoder)
    entry = settings.encoders[0].model_copy(update={"model": "someone/e5-small", "query_prefix": "x: "})
    _, parts = examine(bank, settings.model_copy(update={"encoders": [entry]}), capsys)
    ((level, detail),) = lines(parts["Models"], "prefix")
    assert level == "note"
    assert detail.startswith("ENCODERS: query_prefix 'x: ' of someone/e5-small is not the one")


def test_a_truncated_index_is_seen(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(bank, settings)
    index = next((bank / "indices").glob("dense-chunk-*")) / "index.faiss"
    index.write_bytes(index.read_bytes()[:-1])
    shutil.rmtree(next((bank / "embeddings").glob("dense-document-*")))
    _, parts = examine(bank, settings, capsys)
    assert "damaged or half-copied" in next(d for level, d in lines(parts["Artefacts"], "indices") if level == "note")
    assert "not prepared yet" in next(d for level, d in lines(parts["Artefacts"], "embeddings") if level == "note")


def test_a_rate_is_counted_in_units() -> None:
    seen: list[int] = []
    speed = measure(lambda rows: seen.extend(rows.tolist()), [10, 10, 10, 10], batch=2, seconds=0.0)
    # One to warm up, and one.
    assert len(seen) == 2
    assert speed.units_per_second * speed.seconds == pytest.approx(10)


@pytest.mark.parametrize(("seconds", "calls"), [(5.0, [1]), (0.1, [1, 2, 4, 8, 16]), (0.01, [1, 2, 4, 8, 16, 32] * 2)])
def test_no_call_begins_when_the_time_is_over(seconds: float, calls: list[int], clock: list[float]) -> None:
    begun: list[tuple[float, int]] = []

    def work(rows: np.ndarray) -> None:
        begun.append((clock[0], len(rows)))
        clock[0] += seconds * len(rows)

    speed = measure(work, [10] * 100, batch=32, seconds=2.0, warm_up=False)
    assert max(start for start, _ in begun) < 2.0
    assert [items for _, items in begun[: len(calls)]][:6] == calls[:6]
    assert max(items for _, items in begun) == calls[-1]
    assert speed.units_per_second == pytest.approx(10 / seconds)


def test_slow_models_are_measured_on_one_item_each(
    bank: Path,
    settings: Settings,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budgets: list[float] = []
    done: list[int] = []
    score = CrossEncoderScorer.score

    def slow_encode(self: Any, texts: list[str], *_: Any) -> None:
        done.append(len(texts))
        clock[0] += 5.0 * len(texts)

    def slow_score(self: Any, questions: Any, passages: Any, pairs: Any) -> Any:
        done.append(len(pairs))
        clock[0] += 5.0 * len(pairs)
        return score(self, questions, passages, pairs)

    def budgeted(work: Any, sizes: Any, batch: int, seconds: float, **how: Any) -> Speed:
        budgets.append(seconds)
        return measure(work, sizes, batch, seconds, **how)

    monkeypatch.setattr(SentenceEncoder, "encode", slow_encode)
    monkeypatch.setattr(CrossEncoderScorer, "score", slow_score)
    monkeypatch.setattr(doctor, "measure", budgeted)
    monkeypatch.setattr(_doctor_time, "MEASURED_SECONDS", 2.0)
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    assert done == [1, 1]
    # One model encodes documents and chunks.
    assert budgets == [pytest.approx(1.0)] * 2
    assert "(0.2 pairs/s)" in expected_time(parts)


def test_variants_and_kept_scores_count(
    bank: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(bank, settings)
    load_script("03_run_search").run(settings, ["--data-dir", str(bank), "--output", str(tmp_path / "submission.csv")])
    detail = expected_time(examine(bank, settings, capsys)[1])
    assert "encoding 4 questions " in detail
    assert "documents" not in detail
    assert "reranking 20 pairs" in detail
    assert "reranking 20 pairs, 20 of them kept from earlier runs, 0 s (" in detail
    rows = [f'{q},"{QUESTIONS[q]}","{QUESTIONS[q]} today"' for q in ("q1", "q2")]
    write_csv(bank / "processed" / "query_variants.csv", "q_id,original_query,variant_1", rows)
    detail = expected_time(examine(bank, settings, capsys)[1])
    assert "encoding 6 questions and variants" in detail
    assert "reranking 20 pairs" in detail
    detail = expected_time(examine(bank, settings.model_copy(update={"reranker_query": "max"}), capsys)[1])
    assert "encoding 6 questions and variants" in detail
    assert "reranking 30 pairs" in detail


@pytest.mark.parametrize("mode", [pytest.param("embedded", marks=pytest.mark.slow), "fail"])
def test_nothing_is_judged_by_what_stands_in_for_a_model_to_be_downloaded(
    mode: str, bank: Path, settings: Settings, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(bank, settings)
    encoders = [settings.encoders[0], settings.encoders[1].model_copy(update={"model": "someone/large"})]
    changes = {"encoders": encoders, "cross_encoder_model": "someone/reranker", "when_model_unavailable": mode}
    code, parts = examine(bank, settings.model_copy(update=changes), capsys)
    assert code == 0
    assert [level for level, _ in lines(parts["Models"], "bi-encoder")] == ["ok", "note"]
    assert lines(parts["Artefacts"], "processed") == [("ok", "fresh, 7 chunks")]
    assert lines(parts["Artefacts"], "embeddings")[0] == ("note", f"someone/large over chunks: {UNKNOWN}")
    assert {level for level, _ in lines(parts["Artefacts"], "embeddings")[1:]} == {"ok"}
    assert lines(parts["Artefacts"], "what to do") == []
    assert [detail for _, detail in lines(parts["Space"], "not counted")] == [
        f"someone/large: {UNKNOWN}", f"someone/reranker: {UNKNOWN}"
    ]  # fmt: skip
    detail = expected_time(parts)
    assert f"someone/large: {UNKNOWN}, someone/reranker: {UNKNOWN}" in detail
    assert "without what is not known" in detail
    assert "reranking" not in detail
    assert "e5-small" not in json.dumps([str(finding) for found in list(parts.values())[3:] for finding in found])


@pytest.mark.parametrize("mode", [pytest.param("embedded", marks=pytest.mark.slow), "fail"])
def test_chunks_that_an_absent_tokenizer_cut_are_not_called_stale(
    mode: str, bank: Path, settings: Settings, bi_encoder: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out_hub_cache(hub, "someone/large", bi_encoder)
    encoders = [entry.model_copy(update={"model": "someone/large"}) for entry in settings.encoders]
    settings = settings.model_copy(update={"encoders": encoders, "when_model_unavailable": mode})
    prepare(bank, settings)
    assert lines(examine(bank, settings, capsys)[1]["Artefacts"], "processed") == [("ok", "fresh, 7 chunks")]
    shutil.rmtree(hub / "models--someone--large")
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    unsure = f"7 chunks, fresh, as far as it is known: someone/large, which measures chunks, is {UNKNOWN}"
    assert lines(parts["Artefacts"], "processed") == [("note", unsure)]
    assert {level for level, _ in lines(parts["Artefacts"], "indices")} == {"ok"}
    assert lines(parts["Artefacts"], "what to do") == []
    assert "reranking 20 pairs" in expected_time(parts)
    shutil.rmtree(bank / "processed")
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    assert "not prepared yet" in lines(parts["Artefacts"], "processed")[0][1]
    assert expected_time(parts) == f"someone/large: {UNKNOWN}"


def test_a_multilingual_model_that_would_be_downloaded(
    bank: Path, settings: Settings, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("src.models.language_guard.MAX_RATIO", 0.0)
    changes = {"cross_encoder_model_multilingual": "someone/multilingual"}
    code, parts = examine(bank, settings.model_copy(update=changes), capsys)
    assert code == 0
    assert "the run would download it" in lines(parts["Models"], "language")[0][1]
    detail = expected_time(parts)
    assert f"someone/multilingual: {UNKNOWN}" in detail
    assert "reranking" not in detail


def test_without_chunks_their_encoders_are_not_looked_for(
    bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    encoders = [settings.encoders[0], settings.encoders[1].model_copy(update={"model": "./nowhere"})]
    changes = {"encoders": encoders, "enable_chunks": False, "enable_cross_encoder_reranking": False}
    code, parts = examine(bank, settings.model_copy(update=changes), capsys)
    assert code == 0
    assert [level for level, _ in lines(parts["Models"], "bi-encoder")] == ["ok"]
    assert "encoding 7 documents" in expected_time(parts)


def test_every_question_is_measured(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"q{number},{'word ' * (40 if number == 28 else 1)}{number}" for number in range(300)]
    write_csv(bank / "raw" / "questions_clean.csv", "q_id,query", rows)
    code, parts = examine(bank, settings, capsys)
    assert code == 1
    level, detail = lines(parts["Models"], "cross-encoder")[-1]
    assert level == "FAIL"
    assert detail.startswith("question 'q28' has 162 tokens; the cross-encoder reads at most ")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "ERROR: TOP_K = '5' is not valid\n"),
        (
            ["--json"],
            '{"Configuration": [{"level": "FAIL", "what": "settings", "detail": "TOP_K = \'5\' is not valid"}]}\n',
        ),
    ],
)
def test_settings_that_cannot_be_read_are_a_run_that_would_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    def unreadable() -> Settings:
        raise UserError("TOP_K = '5' is not valid")

    monkeypatch.setattr(_cli, "load_settings", unreadable)
    monkeypatch.setattr(_cli, "stop_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["00_doctor.py", *flags])
    handlers = logging.root.handlers[:]
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PROJECT / "scripts" / "00_doctor.py"), run_name="__main__")
    finally:
        logging.root.handlers[:] = handlers
    assert end.value.code == 1
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (361, "6 min"), (7500, "2 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
