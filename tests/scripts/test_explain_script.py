import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import PAGES, QUESTIONS, write_csv
from test_run import Project, starting

from config import Settings
from src.core.errors import UserError

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    found = Project(bank, settings, caplog)
    found.prepare()
    return found


def explained(project: Project, *flags: str) -> dict[str, object]:
    path = project.data / "explained.json"
    project.run("08_explain", *flags, "--json", str(path))
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_it_shows_what_the_search_did(project: Project) -> None:
    project.run("03_run_search")
    found = explained(project, "--q-id", "q2", "--top", "4")
    stages = {stage["name"]: stage for stage in found["stages"]}  # type: ignore[attr-defined]
    names = list(stages)
    assert names[-5:] == ["fusion", "late interaction", "stage one", "cross-encoder", "blend"]
    assert [name.split("-")[0] for name in names[:-5]] == ["dense", "dense", "bm25", "bm25"]
    for run, stage in [(name, name) for name in names[:-5]] + [("fused", "stage one"), ("rerank-on", "blend")]:
        rows = [r for r in pq.read_table(project.data / "runs" / f"{run}.parquet").to_pylist() if r["q_id"] == "q2"]
        wanted = [(row["web_id"], row["rank"]) for row in rows[:4]]
        assert [(entry["doc_id"], entry["rank"]) for entry in stages[stage]["entries"]] == wanted
        assert [e["score"] for e in stages[stage]["entries"]] == pytest.approx([r["score"] for r in rows[:4]], abs=1e-4)
    (right,) = found["right"]  # type: ignore[misc]
    assert right["doc_id"] == "11"
    assert right["page"]["places"]["cross-encoder"]["rank"] >= 1
    assert {"ставка", "по", "вкладу"} & set(right["page"]["passages"][0]["words"])


def test_variants_and_the_configuration_are_shown(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    header = "q_id,original_query,variant_1"
    row = f'q2,"{QUESTIONS["q2"]}",сколько процентов дают'
    write_csv(project.data / "processed" / "query_variants.csv", header, [row])
    assert explained(project, "--q-id", "q2")["variants"] == ["сколько процентов дают"]
    assert "  searched too: сколько процентов дают" in capsys.readouterr().out
    project.run("03_run_search")
    report = (project.data / "results" / "rerank-on" / "report.html").read_text(encoding="utf-8")
    assert "query_variants.csv: 1 variant" in report
    assert "Preset: embedded" in report


def test_kept_pair_scores_are_used_again(project: Project) -> None:
    project.run("03_run_search")
    lines = project.run("08_explain", "--q-id", "q1")
    assert starting(lines, "Pairs: ") == "Pairs: 0 scored, 5 kept from earlier runs"


def test_it_writes_no_pair_scores(project: Project) -> None:
    """Another process may hold the data folder."""
    project.run("03_run_search")
    kept = project.data / "runs" / "pair_scores"
    before = sorted(path.relative_to(kept) for path in kept.rglob("*"))
    lines = project.run("08_explain", "--query", "ставка")
    assert starting(lines, "Pairs: ") == "Pairs: 5 scored, 0 kept from earlier runs"
    assert sorted(path.relative_to(kept) for path in kept.rglob("*")) == before


def test_ranks_deeper_than_the_search_looks(project: Project) -> None:
    """With lists of three pages, most of the seven are lost before the reranker."""
    shallow = project.settings.model_copy(
        update={"reranker_candidate_k": 3, "search_depth_documents": 3, "search_depth_chunks": 3}
    )
    path = project.data / "explained.json"
    project.run(
        "08_explain", "--query", "ставка", "--page", *PAGES, "99", "--json", str(path), settings=shallow,
    )  # fmt: skip
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["query_id"] is None
    right = {page["doc_id"]: page for page in found["right"]}
    assert right["99"]["lost"] == "not in the corpus"
    assert found["stages"][0]["size"] == 3
    dense = found["stages"][0]["name"]
    ranks = sorted(page["page"]["places"][dense]["rank"] for page in right.values() if page["page"])
    assert ranks == [1, 2, 3, 4, 5, 6, 7]
    deeper = [page["page"]["places"][dense] for page in right.values() if page["page"]]
    assert sorted(place["rank"] for place in deeper if not place["listed"]) == [4, 5, 6, 7]
    assert {page["lost"] for page in right.values()} <= {"found", "fusion", "stage one", "not in the corpus"}


def test_text_for_people(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run("08_explain", "--q-id", "q2", "--no-rerank")
    text = capsys.readouterr().out
    assert text.startswith("Question q2: какая ставка по вкладу\nRight page 11 Вклад: ")
    assert "‹Ставка› ‹по› ‹вкладу›" in text
    assert "cross-encoder" not in text


def test_json_alone_on_standard_output(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.run("08_explain", "--query", f"карта {SCRIPT}", "--json", "-")
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == f"карта {SCRIPT}"
    assert found["right"] == []
    assert found["lost"] is None


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--q-id", "q22"], r"--q-id q22: none of the 4 questions has this id\. The nearest are: q2, "),
        (["--query", "  "], r"--query is empty"),
    ],
)
def test_bad_questions(project: Project, flags: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        project.run("08_explain", *flags)


@pytest.mark.parametrize("flags", [[], ["--q-id", "q1", "--query", "a"]])
def test_exactly_one_question(project: Project, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        project.run("08_explain", *flags)
    assert stop.value.code == 2


def report(project: Project, name: str) -> str:
    return (project.data / "results" / name / "report.html").read_text(encoding="utf-8")


def test_every_run_writes_its_report(project: Project) -> None:
    lines = project.run("03_run_search")
    path = project.data / "results" / "rerank-on" / "report.html"
    assert starting(lines, "Report: ") == f"Report: {path}"
    hit = starting(lines, "Hit@5: ").split()[1]
    assert f'<p class="big">{hit}</p>' in report(project, "rerank-on")
    project.run("03_run_search", "--no-rerank")
    assert "Reranking was off" in report(project, "rerank-off")


def test_reports_without_labels_and_with_scripts_in_the_data(project: Project) -> None:
    raw = project.data / "raw"
    (raw / "qrels.csv").unlink()
    pages = (raw / "websites_updated.csv").read_text(encoding="utf-8").replace("Вклад", f"Вклад {SCRIPT}")
    (raw / "websites_updated.csv").write_text(pages, encoding="utf-8")
    write_csv(raw / "questions_clean.csv", "q_id,query", [f'q1,"вклад {SCRIPT}"'])
    project.prepare()
    lines = project.run("03_run_search")
    assert starting(lines, "Hit@5: ").startswith("Hit@5: not measured")
    html = report(project, "rerank-on")
    assert '<p class="big">not measured</p>' in html
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2


def test_a_fitted_blend_is_measured_on_questions_that_did_not_choose_it(project: Project) -> None:
    rows = [f'q{i},"какая ставка по вкладу {i}"' for i in range(6)]
    write_csv(project.data / "raw" / "questions_clean.csv", "q_id,query", [*rows, 'q9,"без ответа"'])
    write_csv(project.data / "raw" / "qrels.csv", "q_id,web_id", [f"q{i},11" for i in range(6)])
    project.prepare()
    lines = project.run("03_run_search", "--fit-blend")
    html = report(project, "rerank-on")
    assert f'<p class="big">{starting(lines, "Hit@5: ").split()[1]}</p>' in html
    assert "Blend weight fitted: " in html
