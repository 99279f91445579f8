"""A search with query variants, from file to submission."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import QUESTIONS
from test_run import Project, starting

from config import Settings
from src.core import spool
from src.core.errors import UserError


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    found = Project(bank, settings, caplog)
    found.prepare()
    return found


def write(path: Path, rows: dict[str, list[str]], **changes: str) -> Path:
    width = max(map(len, rows.values()))
    frame = pd.DataFrame(
        [
            [q, changes.get(q, QUESTIONS.get(q, "")), *texts, *[None] * (width - len(texts))]
            for q, texts in rows.items()
        ],
        columns=["q_id", "original_query", *(f"variant_{n + 1}" for n in range(width))],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def runs(project: Project) -> dict[str, list[dict[str, object]]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((project.data / "runs").glob("*.parquet"))}


@pytest.mark.parametrize("method", ["convex", "rrf"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_variants_equal_to_the_question_change_nothing(project: Project, method: str, suffix: str) -> None:
    settings = project.settings.model_copy(update={"fusion_method": method})
    off = project.run("03_run_search", "--no-rerank", settings=settings)
    assert starting(off, "Query variants: ") == "Query variants: off (no query_variants.parquet or .csv in processed)."
    before, submission = runs(project), project.output.read_bytes()
    same = {q: [text, ""] for q, text in QUESTIONS.items()}
    write(project.data / "processed" / f"query_variants{suffix}", same)
    lines = project.run("03_run_search", "--no-rerank", settings=settings)
    line = starting(lines, "Query variants: ")
    assert "0 variants of 0 of 4 questions; left out: 4 empty cells, 4 repeated variants. Weight 0.7" in line
    assert runs(project) == before
    assert project.output.read_bytes() == submission


def test_variants_are_searched_fused_and_recorded(project: Project) -> None:
    project.run("03_run_search", "--no-rerank")
    before = runs(project)
    path = project.data / "processed" / "query_variants.parquet"
    write(path, {"q4": ["вклад", "ставка вклада"], "q9": ["x"], "q1": []})
    lines = project.run("03_run_search", "--no-rerank")
    line = starting(lines, "Query variants: 2 variants of 1 of 4 questions; left out: 1 rows of questions")
    assert line.endswith(f"Weight 0.7 against 1 for the question. The reranker reads the question. File: {path}")
    assert lines.index(line) < lines.index(starting(lines, "Corpus: "))
    after = runs(project)
    # "airport lounge" alone finds one page by its words; its variants bring the page about deposits.
    found = {run: [row["web_id"] for row in rows["bm25-document"] if row["q_id"] == "q4"] for run, rows in
             (("before", before), ("after", after))}  # fmt: skip
    assert found["before"] == ["15"]
    assert set(found["after"]) == {"15", "11"}
    others = [[r for r in rows["bm25-chunk"] if r["q_id"] != "q4"] for rows in (before, after)]
    assert others[0] == others[1]
    manifest = json.loads((project.data / "runs" / "rerank-off.manifest.json").read_text(encoding="utf-8"))
    kept = manifest["extra"]["query_variants"]
    assert (kept["file"], kept["counts"]["variants"], kept["counts"]["left_out_unknown"]) == (path.name, 2, 1)
    assert len(kept["fingerprint"]) == 16
    assert kept["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    lines = project.run("03_run_search", "--no-rerank", "--limit", "2")
    assert starting(lines, "Query variants: 0 variants of 0 of 2 questions; left out: 1 rows of questions")
    off = project.settings.model_copy(update={"query_variants": None})
    lines = project.run("03_run_search", "--no-rerank", settings=off)
    assert starting(lines, "Query variants: ") == "Query variants: off (QUERY_VARIANTS = None)."
    assert runs(project) == before


@pytest.mark.parametrize("choice", ["original", "max", "mean"])
def test_blocks_of_questions_change_nothing(project: Project, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = project.settings.model_copy(update={"reranker_query": choice})
    path = project.data / "processed" / "query_variants.parquet"
    write(path, {"q2": ["карта"], "q4": ["вклад", "ставка вклада"], "q3": ["deposit", "лимит", "вклад"]})
    project.run("03_run_search", settings=settings)
    whole, submission = runs(project), project.output.read_bytes()
    for block in (1, 2, 3):
        monkeypatch.setattr(spool, "BLOCK", block)
        monkeypatch.setattr(spool.Spool, "smallest_file", 1)
        project.run("03_run_search", "--fresh", settings=settings)
        assert project.output.read_bytes() == submission
        for name, rows in runs(project).items():
            assert [(row["q_id"], row["web_id"]) for row in rows] == [
                (row["q_id"], row["web_id"]) for row in whole[name]
            ]


@pytest.mark.parametrize(("choice", "questions"), [("original", 4), ("max", 5), ("mean", 5)])
def test_what_the_reranker_reads(project: Project, tmp_path: Path, choice: str, questions: int) -> None:
    path = write(tmp_path / "elsewhere" / "v.csv", {"q2": ["процент по вкладу"]})
    settings = project.settings.model_copy(update={"query_variants": str(path), "reranker_query": choice})
    lines = project.run("03_run_search", settings=settings)
    assert starting(lines, "Pairs: ") == f"Pairs: {5 * questions} scored, 0 kept from earlier runs"
    assert len(project.rows()) == 5
    lines = project.run("05_compare", "--name", "x", settings=settings)
    assert starting(lines, "Pairs: ") == f"Pairs: 0 scored, {5 * questions} kept from earlier runs"


@pytest.mark.parametrize(
    ("rows", "changes", "setting", "complaint"),
    [
        ({"q1": ["x"]}, {}, "absent.parquet", r"QUERY_VARIANTS = 'absent\.parquet': no such file"),
        ({"1": ["x"]}, {}, "auto", r"query_variants\.csv: belongs to other questions: not one of its ids"),
        ({"q1": ["x"], "q2": ["y"]}, {"q1": "a", "q2": "b"}, "auto", "2 of 2 shared ids have another original_query"),
    ],
)
def test_files_that_cannot_be_used(
    project: Project, rows: dict[str, list[str]], changes: dict[str, str], setting: str, complaint: str
) -> None:
    write(project.data / "processed" / "query_variants.csv", rows, **changes)
    with pytest.raises(UserError, match=complaint):
        project.run("03_run_search", settings=project.settings.model_copy(update={"query_variants": setting}))
    assert not project.output.exists()


def test_a_path_in_the_home_folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write(tmp_path / "home" / "my" / "v.parquet", {"q4": ["вклад"]})
    named = project.settings.model_copy(update={"query_variants": "~/my/v.parquet"})
    lines = project.run("03_run_search", "--no-rerank", settings=named)
    assert starting(lines, "Query variants: 1 variants of 1 of 4").endswith(f"File: {path}")
    for absent in ("~/absent.csv", "~no-such-user/v.csv"):
        named = project.settings.model_copy(update={"query_variants": absent})
        with pytest.raises(UserError, match=f"QUERY_VARIANTS = '{absent}': no such file"):
            project.run("03_run_search", "--no-rerank", settings=named)


def test_two_files_at_once(project: Project) -> None:
    for suffix in (".csv", ".parquet"):
        write(project.data / "processed" / f"query_variants{suffix}", {"q1": ["x"]})
    with pytest.raises(UserError, match=r"query_variants\.parquet and query_variants\.csv are both there"):
        project.run("03_run_search", "--no-rerank")
