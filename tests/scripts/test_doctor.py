import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import load_script, write_csv

from config import Settings
from src.core.data_lock import data_lock
from src.insight.doctor import Finding, duration, measure


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
    for script in ("01_preprocess", "02_build_indices"):
        load_script(script).run(settings, ["--data-dir", str(bank)])
    code, parts = examine(bank, settings, capsys)
    assert code == 0
    assert lines(parts["Artefacts"], "processed") == [("ok", "fresh, 7 chunks")]
    assert {level for level, _ in lines(parts["Artefacts"], "indices")} == {"ok"}
    assert lines(parts["Artefacts"], "what to do") == []
    # 4 questions and 5 candidates of one passage.
    assert "reranking 20 pairs" in lines(parts["Time of ./run_cross_encoder_search.sh"], "time")[0][1]
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


def test_a_truncated_index_is_seen(bank: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    for script in ("01_preprocess", "02_build_indices"):
        load_script(script).run(settings, ["--data-dir", str(bank)])
    index = next((bank / "indices").glob("dense-chunk-*")) / "index.faiss"
    index.write_bytes(index.read_bytes()[:-1])
    shutil.rmtree(next((bank / "embeddings").glob("dense-document-*")))
    _, parts = examine(bank, settings, capsys)
    assert "damaged or half-copied" in next(d for level, d in lines(parts["Artefacts"], "indices") if level == "note")
    assert "not prepared yet" in next(d for level, d in lines(parts["Artefacts"], "embeddings") if level == "note")


def test_a_rate_is_counted_in_units() -> None:
    seen: list[int] = []
    speed = measure(lambda rows: seen.extend(rows.tolist()), [10, 10, 10, 10], batch=2, seconds=0.0)
    assert len(seen) == 4
    assert speed.units_per_second * speed.seconds == pytest.approx(20)


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (361, "6 min"), (7500, "2 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
