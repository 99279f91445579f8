"""The numbered scripts, one after another, with tiny models: what a user sees and finds on disk."""

import csv
import json
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, PAGES, PROJECT, QUESTIONS, load_script, write_csv

from config import EncoderSettings, RerankerSettings, Settings
from src.core.errors import StaleArtifactError, UserError
from src.models.resolve import ModelResolver


class Project:
    """Runs scripts over one data folder and keeps what they log."""

    def __init__(self, data: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
        self.data = data
        self.settings = settings
        self.caplog = caplog
        self.output = data / "submission.csv"

    def run(self, script: str, *flags: str, settings: Settings | None = None) -> list[str]:
        self.caplog.clear()
        arguments = ["--data-dir", str(self.data), *flags]
        if script == "03_run_search":
            arguments += ["--output", str(self.output)]
        load_script(script).run(settings or self.settings, arguments)
        return [record.getMessage() for record in self.caplog.records]

    def prepare(self, *flags: str) -> None:
        self.run("01_preprocess", *flags)
        self.run("02_build_indices", *flags)

    def rows(self) -> list[list[str]]:
        with self.output.open(encoding="utf-8", newline="") as handle:
            return list(csv.reader(handle))


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    return Project(bank, settings, caplog)


def starting(lines: Sequence[str], start: str) -> str:
    found = [line for line in lines if line.startswith(start)]
    assert len(found) == 1, lines
    return found[0]


def test_from_csv_files_to_a_submission(project: Project) -> None:
    project.prepare()
    lines = project.run("03_run_search", "--enable-profiling")
    rows = project.rows()
    assert rows[0] == ["q_id", "web_list"]
    assert [row[0] for row in rows[1:]] == list(QUESTIONS)
    for row in rows[1:]:
        ids = [str(i) for i in json.loads(row[1])]
        assert len(ids) == len(set(ids)) == 3
        assert set(ids) <= set(PAGES)
    assert starting(lines, "✓ Cross-encoder loaded successfully")
    hits = sum(LABELS[row[0]][0] in map(str, json.loads(row[1])) for row in rows[1:])
    line = starting(lines, "Hit@5: ")
    # The lists hold 5 candidates, the submission 3 of them: Hit@5 counts the final run, so it can only be higher.
    assert float(line.split()[1]) >= hits / 4
    assert "before reranking" in line
    assert "Recall@100" in line
    profile = json.loads((project.data / "runs" / "rerank-on.profile.json").read_text(encoding="utf-8"))
    names = ["load", "encode", "dense search", "BM25", "fusion", "late interaction", "tokenise", "rerank", "write"]
    assert [stage["name"] for stage in profile["stages"]] == names


def test_both_runs_stay_on_disk(project: Project) -> None:
    project.prepare()
    project.run("03_run_search")
    lines = project.run("03_run_search", "--no-rerank")
    assert "reranking off" in starting(lines, "Hit@5: ")
    assert starting(lines, "  differs: ENABLE_CROSS_ENCODER_RERANKING") == (
        "  differs: ENABLE_CROSS_ENCODER_RERANKING = False (preset: True)"
    )
    assert not [line for line in lines if "Cross-encoder loaded" in line]
    for name in ("rerank-on", "rerank-off", "fused", "bm25-document", "bm25-chunk"):
        table = pq.read_table(project.data / "runs" / f"{name}.parquet")
        assert table.column_names == ["q_id", "web_id", "rank", "score"]
        manifest = json.loads((project.data / "runs" / f"{name}.manifest.json").read_text(encoding="utf-8"))
        assert manifest["extra"]["settings"]["RERANKER_CANDIDATE_K"] == 5
        # What both have made is that of the second search.
        assert manifest["extra"]["settings"]["ENABLE_CROSS_ENCODER_RERANKING"] == (name == "rerank-on")
    off = pq.read_table(project.data / "runs" / "rerank-off.parquet").to_pylist()
    fused = pq.read_table(project.data / "runs" / "fused.parquet").to_pylist()
    assert off == fused
    lines = project.run("05_compare", "rerank-off", "rerank-on")
    assert any("rerank-on" in line for line in lines)
    assert not [line for line in lines if "different settings" in line]


def test_late_interaction_with_and_without_kept_token_vectors(project: Project) -> None:
    project.prepare()
    project.run("03_run_search", "--no-rerank")
    kept = pq.read_table(project.data / "runs" / "rerank-off.parquet")
    small = project.settings.model_copy(update={"late_interaction_gb": 1e-6})
    shutil.rmtree(next(project.data.rglob("*-tokens")))
    lines = project.run("02_build_indices", settings=small)
    assert starting(lines, "WARNING: the token vectors of 7 chunks would take 0.0 GB, LATE_INTERACTION_GB allows 0.0")
    lines = project.run("03_run_search", "--no-rerank", settings=small)
    assert starting(lines, "Token vectors were too large to be kept")
    assert pq.read_table(project.data / "runs" / "rerank-off.parquet").to_pylist() == kept.to_pylist()


def test_late_interaction_of_an_encoder_with_a_dense_layer(project: Project, narrowing_encoder: Path) -> None:
    entries = [EncoderSettings(model=str(narrowing_encoder), unit="chunk", weight=1.0)]
    project.settings = project.settings.model_copy(update={"encoders": entries})
    project.prepare()
    assert np.load(next(project.data.rglob("*-tokens")) / "tokens.npy").shape[1] == 16
    assert np.load(next((project.data / "embeddings").glob("*/vectors.npy"))).shape == (7, 8)
    project.run("03_run_search", "--no-rerank")
    assert len(project.rows()) == 5


def test_late_interaction_off(project: Project) -> None:
    off = project.settings.model_copy(update={"late_interaction_weight": 0.0})
    project.prepare()
    project.run("03_run_search", "--no-rerank", settings=off)
    without = pq.read_table(project.data / "runs" / "fused.parquet").to_pylist()
    project.run("03_run_search", "--no-rerank")
    assert pq.read_table(project.data / "runs" / "fused.parquet").to_pylist() != without
    shutil.rmtree(next(project.data.rglob("*-tokens")))
    project.run("03_run_search", "--no-rerank", settings=off)
    with pytest.raises(StaleArtifactError, match=r"-tokens.* Run: python scripts/02_build_indices\.py"):
        project.run("03_run_search", "--no-rerank")


def test_the_setting_turns_reranking_off(project: Project) -> None:
    project.prepare()
    off = project.settings.model_copy(update={"enable_cross_encoder_reranking": False})
    assert "reranking off" in starting(project.run("03_run_search", settings=off), "Hit@5: ")


def test_without_labels_nothing_is_measured(project: Project) -> None:
    (project.data / "raw" / "qrels.csv").unlink()
    project.prepare()
    lines = project.run("03_run_search", "--no-rerank")
    assert starting(lines, "Hit@5: ").startswith("Hit@5: not measured (no labels at ")
    assert len(project.rows()) == 5


def test_labels_of_other_questions_measure_nothing(project: Project) -> None:
    write_csv(project.data / "raw" / "qrels.csv", "q_id,web_id", ["q4,15"])
    project.prepare()
    lines = project.run("03_run_search", "--no-rerank", "--limit", "2")
    assert starting(lines, "Hit@5: ") == "Hit@5: not measured (no labels at any of these questions)"


def twice_the_questions(project: Project) -> None:
    more = [f'q{i},"{text}"' for i, text in enumerate(list(QUESTIONS.values()) * 2, start=1)]
    write_csv(project.data / "raw" / "questions_clean.csv", "q_id,query", more)
    rows = [f"q{i},{docs[0]}" for i, docs in enumerate(list(LABELS.values()) * 2, start=1)]
    write_csv(project.data / "raw" / "qrels.csv", "q_id,web_id", rows)


def test_a_fitted_blend_is_reported_on_questions_that_did_not_choose_it(project: Project) -> None:
    twice_the_questions(project)
    project.prepare()
    lines = project.run("03_run_search", "--fit-blend")
    line = next(line for line in lines if "Blend weight fitted: " in line)
    assert "did not choose their weight" in line
    manifest = json.loads((project.data / "runs" / "rerank-on.manifest.json").read_text(encoding="utf-8"))
    fit = manifest["extra"]["blend_fit"]
    assert fit["weight"] == float(line.split("fitted: ")[1].split()[0])
    assert len(fit["fold_weights"]) == 5
    assert any("blend weight to be fitted" in line for line in lines)
    assert ("The configured weight stays in force" in line) == (not fit["in_force"])
    # The saved run is the one that was measured.
    columns = pq.read_table(project.data / "runs" / "rerank-on.parquet").to_pydict()
    rows = zip(columns["q_id"], columns["web_id"], columns["rank"], strict=True)
    labels = {f"q{i}": docs[0] for i, docs in enumerate(list(LABELS.values()) * 2, start=1)}
    hits = sum(labels[q_id] == doc_id and rank <= 5 for q_id, doc_id, rank in rows)
    assert manifest["extra"]["metrics"]["after"]["Hit@5"] == hits / 8


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [(["--no-rerank"], "but reranking is off"), ([], "4 questions of this run are labelled, at least 5 are needed")],
)
def test_a_blend_that_cannot_be_fitted(project: Project, flags: list[str], complaint: str) -> None:
    project.prepare()
    with pytest.raises(UserError, match=complaint):
        project.run("03_run_search", "--fit-blend", *flags)
    assert not project.output.exists()


def test_a_fitted_fusion(project: Project) -> None:
    project.prepare()
    with pytest.raises(UserError, match="--fit-fusion: 4 questions of this run are labelled"):
        project.run("03_run_search", "--fit-fusion")
    twice_the_questions(project)
    project.prepare()
    lines = project.run("03_run_search", "--fit-fusion", "--no-rerank")
    assert starting(lines, "Fusion fitted: ")
    manifest = json.loads((project.data / "runs" / "rerank-off.manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["extra"]["fusion_fit"]["fold_choices"]) == 5


def test_a_fusion_cannot_be_fitted_without_labels(project: Project) -> None:
    (project.data / "raw" / "qrels.csv").unlink()
    project.prepare()
    with pytest.raises(UserError, match="--fit-fusion needs labels, but there are none at"):
        project.run("03_run_search", "--fit-fusion")


def test_limit_and_top_k(project: Project) -> None:
    project.prepare()
    project.run("03_run_search", "--no-rerank", "--limit", "2", "--top-k", "1")
    assert [row[0] for row in project.rows()[1:]] == ["q1", "q2"]
    assert all(len(json.loads(row[1])) == 1 for row in project.rows()[1:])
    lines = project.run("03_run_search", "--no-rerank", "--limit", "1", "--top-k", "6")
    assert starting(lines, "Corpus: ").endswith("Questions: 1. Labels: 1 labelled question.")
    record = json.loads((project.data / "runs" / "rerank-off.manifest.json").read_text(encoding="utf-8"))["extra"]
    assert record["limit"] == 1
    assert [record["settings"][name] for name in ("TOP_K", "RERANKER_CANDIDATE_K")] == [6, 6]


def test_the_order_of_the_input_rows_changes_nothing(
    project: Project, tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    project.prepare()
    project.run("03_run_search")
    shuffled = tmp_path / "shuffled"
    shutil.copytree(project.data / "raw", shuffled / "raw")
    path = shuffled / "raw" / "websites_updated.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n", encoding="utf-8")
    other = Project(shuffled, settings, caplog)
    other.prepare()
    other.run("03_run_search")
    assert other.output.read_bytes() == project.output.read_bytes()


def test_each_script_names_the_one_that_must_come_first(project: Project) -> None:
    with pytest.raises(StaleArtifactError, match=r"not prepared yet .*Run: python scripts/01_preprocess\.py"):
        project.run("02_build_indices")
    project.run("01_preprocess")
    with pytest.raises(StaleArtifactError, match=r"Run: python scripts/02_build_indices\.py"):
        project.run("03_run_search")
    assert not project.output.exists()


def test_a_copied_folder_works_without_the_raw_files(
    project: Project, tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    project.prepare()
    project.run("03_run_search")
    copy = tmp_path / "elsewhere"
    for name in ("processed", "embeddings", "indices"):
        shutil.copytree(project.data / name, copy / name)
    other = Project(copy, settings, caplog)
    lines = other.run("03_run_search")
    assert any("uses the corpus prepared in" in line for line in lines)
    assert other.output.read_bytes() == project.output.read_bytes()
    assert "up to date" in other.run("02_build_indices")[-1]


def test_one_encoder_is_copied_alone_whatever_the_path_of_its_model(
    project: Project, tmp_path: Path, settings: Settings, bi_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project.prepare()
    elsewhere = Path(shutil.copytree(bi_encoder, tmp_path / "other" / bi_encoder.name))
    moved = [entry.model_copy(update={"model": str(elsewhere)}) for entry in settings.encoders]
    other = Project(tmp_path / "elsewhere", settings.model_copy(update={"encoders": moved}), caplog)
    shutil.copytree(project.data / "raw", other.data / "raw")
    other.run("01_preprocess")
    (chunks,) = (project.data / "embeddings").glob("dense-chunk-*[0-9a-f]")
    for folder in project.data.glob(f"*/{chunks.name}*"):  # vectors, token vectors, index
        shutil.copytree(folder, other.data / folder.relative_to(project.data))
    copied = {path: path.stat().st_mtime_ns for path in other.data.rglob(f"{chunks.name}*/*") if path.is_file()}
    assert len({path.parent for path in copied}) == 3
    other.run("02_build_indices")
    assert {path: path.stat().st_mtime_ns for path in copied} == copied
    assert sorted(path.name for path in (other.data / "embeddings").iterdir()) == sorted(
        path.name for path in (project.data / "embeddings").iterdir()
    )


def test_up_to_date_work_is_not_done_again(project: Project) -> None:
    project.prepare()

    def times() -> dict[Path, int]:
        files = (path for path in project.data.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    assert "up to date" in project.run("01_preprocess", "--if-stale")[-1]
    assert "up to date" in project.run("02_build_indices", "--if-stale")[-1]
    assert times() == before


def test_fresh_makes_everything_anew(project: Project) -> None:
    project.prepare()
    project.run("03_run_search")
    first = project.output.read_bytes()
    assert any(line.startswith("Pairs: 0 scored") for line in project.run("03_run_search"))
    before = {path: path.stat().st_mtime_ns for path in project.data.rglob("manifest.json")}
    project.run("01_preprocess", "--if-stale", "--fresh")
    assert "Indices: done." in project.run("02_build_indices", "--if-stale", "--fresh")
    assert all(path.stat().st_mtime_ns > made for path, made in before.items())
    assert any(line.startswith("Pairs: 20 scored, 0 kept") for line in project.run("03_run_search", "--fresh"))
    assert project.output.read_bytes() == first


def test_verify_finds_a_flipped_byte_and_the_named_command_mends_it(project: Project) -> None:
    project.prepare()
    project.run("03_run_search")
    first = project.output.read_bytes()
    path = next(project.data.rglob("index.faiss"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StaleArtifactError, match=r"Run: python scripts/02_build_indices\.py --data-dir \S+ --verify$"):
        project.run("03_run_search", "--verify")
    assert project.output.read_bytes() == first
    assert "up to date" in project.run("02_build_indices")[-1]
    assert "Indices: done." in project.run("02_build_indices", "--verify")
    project.run("03_run_search", "--verify")
    assert project.output.read_bytes() == first
    assert path.read_bytes() != bytes(data)


def test_artefacts_of_another_library_version_are_used_with_a_warning(project: Project) -> None:
    project.prepare()
    path = next(project.data.glob("embeddings/dense-chunk*[0-9a-f]/manifest.json"))
    values = json.loads(path.read_text(encoding="utf-8"))
    values["libraries"].update({"transformers": "3.0.2", "numpy": "0.1"})
    path.write_text(json.dumps(values), encoding="utf-8")
    lines = project.run("03_run_search", "--no-rerank")
    found = [line for line in lines if line.startswith("WARNING") and "was made with" in line]
    assert len(found) == 1
    assert "was made with transformers 3.0.2, here is " in found[0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"chunk_tokens": 40}, "CHUNK_TOKENS is 96 there, but this run needs 40"),
        ({"bm25_k1": 1.7}, "k1 is 1.2 there, but this run needs 1.7"),
        ({"bm25_backend": "rank_bm25"}, 'backend is "bm25s" there, but this run needs "rank_bm25"'),
        ({"encoder_max_tokens": 64}, "max_tokens is 128 there, but this run needs 64"),
    ],
)
def test_artefacts_of_other_settings(project: Project, change: dict[str, object], complaint: str) -> None:
    project.prepare()
    with pytest.raises(StaleArtifactError, match=complaint):
        project.run("03_run_search", settings=project.settings.model_copy(update=change))


def test_artefacts_of_another_corpus(project: Project) -> None:
    project.prepare()
    raw = project.data / "raw" / "websites_updated.csv"
    raw.write_text(raw.read_text(encoding="utf-8").replace("120 дней", "55 дней"), encoding="utf-8")
    with pytest.raises(StaleArtifactError, match="corpus_file is"):
        project.run("03_run_search")
    project.run("01_preprocess")
    with pytest.raises(StaleArtifactError, match=r"02_build_indices\.py"):
        project.run("03_run_search")


def test_artefacts_of_another_encoder(project: Project, tmp_path: Path) -> None:
    project.prepare()
    first = project.settings.encoders[0]
    other = tmp_path / "other-encoder"
    shutil.copytree(first.model, other)
    config = other / "config.json"
    config.write_text(config.read_text().replace("{", '{"changed": true, ', 1))
    encoders = [entry.model_copy(update={"model": str(other)}) for entry in project.settings.encoders]
    with pytest.raises(StaleArtifactError, match="tokenizer is"):
        project.run("03_run_search", settings=project.settings.model_copy(update={"encoders": encoders}))


@pytest.mark.parametrize("name", ["vectors.npy", "tokens.npy", "index.faiss", "corpus.parquet", "data.csc.index.npy"])
def test_a_truncated_artefact(project: Project, name: str) -> None:
    project.prepare()
    project.run("03_run_search", "--no-rerank")
    before = project.output.read_bytes()
    for path in project.data.rglob(name):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StaleArtifactError, match=rf"{name}: damaged or half-copied"):
        project.run("03_run_search", "--no-rerank")
    assert project.output.read_bytes() == before


def test_a_bad_label_leaves_the_preparation_as_it_was(project: Project) -> None:
    project.prepare()
    before = {path: path.read_bytes() for path in (project.data / "processed").rglob("*") if path.is_file()}
    write_csv(project.data / "raw" / "qrels.csv", "q_id,web_id", ["q1,9", "q2,777"])
    with pytest.raises(UserError, match=r"qrels\.csv, row 2: label names document '777'"):
        project.run("01_preprocess")
    assert {path: path.read_bytes() for path in (project.data / "processed").rglob("*") if path.is_file()} == before


def test_more_answers_than_documents(project: Project) -> None:
    project.prepare()
    with pytest.raises(UserError, match="TOP_K = 8, but the corpus has only 7 documents"):
        project.run("03_run_search", "--top-k", "8")


def test_pages_without_title_and_text_are_no_answers(project: Project) -> None:
    raw = project.data / "raw" / "websites_updated.csv"
    rows = raw.read_text(encoding="utf-8").splitlines()
    raw.write_text("\n".join([*rows[:-2], "14,u,f,,", "15,u,f,,nan", ""]), encoding="utf-8")
    project.prepare()
    with pytest.raises(UserError, match=r"TOP_K = 6, but only 5 of the 7 documents .* have a title or text\. Lower"):
        project.run("03_run_search", "--top-k", "6")
    project.run("03_run_search", "--top-k", "5")
    assert all(len(json.loads(row[1])) == 5 for row in project.rows()[1:])


BM25_ALONE = {"encoders": [], "enable_chunks": False}
ONE_CHUNK = {"search_depth_chunks": 1, "bm25_document_weight": 0.0, "bm25_chunk_weight": 0.0}


@pytest.mark.parametrize(
    ("change", "advice"),
    [(BM25_ALONE, "only by a word of the question. Add an encoder"), (ONE_CHUNK, "Raise SEARCH_DEPTH_CHUNKS, or add")],
)
def test_too_few_candidates_are_noticed_before_any_pair_is_scored(
    project: Project, change: dict[str, object], advice: str
) -> None:
    if change is ONE_CHUNK:
        change = change | {"encoders": project.settings.encoders[1:]}
    project.settings = project.settings.model_copy(update=change)
    project.prepare()
    with pytest.raises(UserError, match=rf"stage one found \d documents, TOP_K = 3 are needed .*{advice}"):
        project.run("03_run_search")
    said = [record.getMessage() for record in project.caplog.records]
    assert not [line for line in said if "Cross-encoder loaded" in line or line.startswith("Pairs: ")]


def test_flags_pick_other_files(project: Project, tmp_path: Path) -> None:
    questions = write_csv(tmp_path / "q.csv", "q_id,query", ['a,"ставка"'])
    project.prepare()
    lines = project.run("03_run_search", "--no-rerank", "--questions", str(questions))
    assert starting(lines, "Hit@5: ") == "Hit@5: not measured (no labels at --questions was given without --labels)"
    assert [row[0] for row in project.rows()[1:]] == ["a"]
    labels = write_csv(tmp_path / "l.csv", "q_id,web_id", ["a,11"])
    lines = project.run("03_run_search", "--no-rerank", "--questions", str(questions), "--labels", str(labels))
    assert "1 labelled question)" in starting(lines, "Hit@5: ")


def test_the_stand_in_is_repeated_beside_the_figure(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    script = load_script("03_run_search")
    plans = script.reranker_plans

    def swapped(*arguments: object) -> object:
        warning = "cross-encoder 'a' could not be had; 'b' stands in for it"
        return tuple((replace(model, warning=warning), weight) for model, weight in plans(*arguments))

    project.prepare()
    monkeypatch.setattr(script, "reranker_plans", swapped)
    project.caplog.clear()
    script.run(project.settings, ["--data-dir", str(project.data), "--output", str(project.output)])
    lines = [record.getMessage() for record in project.caplog.records]
    after = lines[lines.index(starting(lines, "Hit@5: ")) :]
    assert any("'b' stands in for it" in line for line in after)
    manifest = json.loads((project.data / "runs" / "rerank-on.manifest.json").read_text(encoding="utf-8"))
    assert "'b' stands in for it" in manifest["extra"]["warnings"][0]


def test_without_chunks(project: Project) -> None:
    whole = project.settings.model_copy(update={"enable_chunks": False})
    project.run("01_preprocess", settings=whole)
    project.run("02_build_indices", settings=whole)
    lines = project.run("03_run_search", settings=whole)
    assert "ENABLE_CHUNKS = False" in starting(lines, "WARNING: ENABLE_CHUNKS")
    hits = [i for i, line in enumerate(lines) if line.startswith("Hit@5: ")]
    assert any("ENABLE_CHUNKS = False" in line for line in lines[hits[0] :])
    manifest = json.loads((project.data / "runs" / "rerank-on.manifest.json").read_text(encoding="utf-8"))
    assert [w for w in manifest["extra"]["warnings"] if w.startswith("ENABLE_CHUNKS = False")]
    assert not [path for path in (project.data / "indices").iterdir() if "chunk" in path.name]
    assert len(project.rows()) == 5
    with pytest.raises(StaleArtifactError, match="CHUNK_OVERLAP_TOKENS is null there, but this run needs 20"):
        project.run("03_run_search")


def test_two_encoders_of_one_model_stay_apart(project: Project, bi_encoder: Path) -> None:
    entries = [
        EncoderSettings(model=str(bi_encoder), unit="document", weight=1.0),
        EncoderSettings(model=str(bi_encoder), unit="document", weight=1.0, pooling="cls"),
    ]
    project.prepare()
    both = project.settings.model_copy(update={"encoders": [entries[0], project.settings.encoders[1], entries[1]]})
    lines = project.run("02_build_indices", settings=both)
    # Only the new one is computed.
    assert len([line for line in lines if line.startswith("Embeddings ") and line.endswith("up to date, kept")]) == 2
    project.run("03_run_search", "--no-rerank", settings=both)
    names = [path.stem for path in (project.data / "runs").glob("dense-document-*.parquet")]
    assert len(names) == 2
    vectors = [np.load(path) for path in sorted((project.data / "embeddings").glob("dense-document-*/vectors.npy"))]
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    tables = [pq.read_table(project.data / "runs" / f"{name}.parquet").to_pylist() for name in names]
    assert tables[0] != tables[1]


def test_assumed_pooling_is_part_of_what_embeddings_are_made_with(
    project: Project, bi_encoder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(bi_encoder, bare)
    (bare / "modules.json").unlink()
    one = [EncoderSettings(model=str(bare), unit="document", weight=1.0)]
    settings = project.settings.model_copy(update={"encoders": one})
    models = ModelResolver(PROJECT / "data" / "models", PROJECT, "fail")
    (plan,) = load_script("_plans").encoder_plans(settings, models)
    assert plan.pooling == "mean"
    one[0] = one[0].model_copy(update={"pooling": "cls"})
    (plan,) = load_script("_plans").encoder_plans(settings, models)
    assert plan.pooling == "cls"


def test_one_stand_in_for_several_models_is_searched_once(
    project: Project, bi_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    entries = [
        EncoderSettings(model="nobody/encoder-one", unit="document", weight=2.5, query_prefix="x: "),
        EncoderSettings(model="nobody/encoder-two", unit="document", weight=1.5, pooling="max"),
    ]
    four = project.settings.model_copy(update={"encoders": entries})
    plans = load_script("_plans").encoder_plans(four, ModelResolver(PROJECT / "data" / "models", PROJECT, "embedded"))
    assert [(p.model.used, p.weight, p.query_prefix, p.pooling) for p in plans] == [
        ("embedded:multilingual-e5-small", 4.0, "query: ", None)
    ]


def test_two_rerankers(project: Project, cross_encoder: Path, xlmr_cross_encoder: Path) -> None:
    project.prepare()
    entries = [
        RerankerSettings(model=str(cross_encoder), weight=3.0),
        RerankerSettings(model=str(xlmr_cross_encoder), weight=1.0),
    ]
    both = project.settings.model_copy(update={"rerankers": entries})
    lines = project.run("03_run_search", settings=both)
    assert len([line for line in lines if line.startswith("✓ Cross-encoder loaded successfully")]) == 2
    assert " weight 3, " in starting(lines, "Reranking: ")
    manifest = json.loads((project.data / "runs" / "rerank-on.manifest.json").read_text(encoding="utf-8"))
    weights = [model["weight"] for model in manifest["extra"]["models"] if model["role"] == "cross-encoder"]
    assert weights == [3.0, 1.0]
    # One model twice is one model: the order of its scores alone.
    twice = [entries[0], RerankerSettings(model=str(cross_encoder.parent / "." / cross_encoder.name) + "/")]
    lines = project.run("03_run_search", settings=project.settings.model_copy(update={"rerankers": twice}))
    assert "it is asked once" in starting(lines, "WARNING: ")
    same = pq.read_table(project.data / "runs" / "rerank-on.parquet").to_pylist()
    project.run("03_run_search")
    assert pq.read_table(project.data / "runs" / "rerank-on.parquet").to_pylist() == same


def test_every_swap_is_told_where_one_model_stands_for_two(
    project: Project, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.prepare()
    import _plans

    stand_in = _plans.choose_reranker

    def swapped(resolver: ModelResolver, name: str, *rest: object) -> object:
        found = stand_in(resolver, str(cross_encoder), *rest)  # type: ignore[arg-type]
        return replace(found, requested=name, warning=f"{name} could not be had")

    monkeypatch.setattr(_plans, "choose_reranker", swapped)
    entries = [RerankerSettings(model="one/model"), RerankerSettings(model="another/model")]
    lines = project.run("03_run_search", settings=project.settings.model_copy(update={"rerankers": entries}))
    hits = next(i for i, line in enumerate(lines) if line.startswith("Hit@5: "))
    after = "\n".join(lines[hits:])
    assert "one/model could not be had; another/model could not be had" in after


def test_the_first_encoder_is_gone_before_the_second_is_loaded(
    project: Project, bi_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.indexing

    alive: list[weakref.ref[Any]] = []
    make = src.indexing.SentenceEncoder

    def alone(*arguments: Any, **options: Any) -> Any:
        assert [one for one in alive if one() is not None] == []
        encoder = make(*arguments, **options)
        alive.append(weakref.ref(next(encoder.model.parameters())))
        return encoder

    monkeypatch.setattr(src.indexing, "SentenceEncoder", alone)
    entries = [
        EncoderSettings(model=str(bi_encoder), unit="document", weight=1.0),
        EncoderSettings(model=str(bi_encoder), unit="chunk", weight=1.0, query_prefix="другой: "),
    ]
    settings = project.settings.model_copy(update={"encoders": entries})
    for script in ("01_preprocess", "02_build_indices", "03_run_search"):
        project.run(script, settings=settings)
    assert len(alive) == 4
