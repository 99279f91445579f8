import asyncio
import json
from pathlib import Path

import pytest
from conftest import LABELS, QUESTIONS, write_csv
from test_run import Project, starting

from config import Settings
from src.core.errors import UserError
from src.insight.label_app import LabelApp


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    (bank / "raw" / "qrels.csv").unlink()
    found = Project(bank, settings, caplog)
    found.prepare()
    return found


def label(monkeypatch: pytest.MonkeyPatch, keep_right: bool = True) -> list[LabelApp]:
    """Let a script that asks get the right answers (or "none of these"), without a terminal."""
    apps: list[LabelApp] = []

    async def drive(app: LabelApp) -> None:
        async with app.run_test() as pilot:
            for task in app.tasks:
                right = LABELS[task.query_id][0]
                number = [page.doc_id for page in task.pages].index(right) + 1
                for key in (str(number), "enter") if keep_right else ("n",):
                    await pilot.press(key)
            await pilot.press("q")

    def fake(app: LabelApp) -> None:
        apps.append(app)
        asyncio.run(drive(app))

    monkeypatch.setattr("src.insight.label_app.run_in_terminal", fake)
    return apps


def test_from_no_labels_to_a_measured_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("03_run_search")
    project.run("03_run_search", "--no-rerank")
    apps = label(monkeypatch)
    first = project.run("06_label", "--count", "3", "--depth", "7")
    assert "rerank-off, rerank-on; the first 7 pages of each" in starting(first, "Runs: ")
    assert starting(first, "Labelled: ").startswith("Labelled: 3 questions, 3 relevant pages; none of these: 0")
    assert "Hit@5 of rerank-on: " in starting(first, "Labelled: ")
    assert starting(first, "Labels: ").endswith(f"03_run_search.py --data-dir {project.data}")
    second = project.run("06_label", "--depth", "7")
    assert starting(second, "Labelled: ").startswith("Labelled: 4 questions")
    asked = [[task.query_id for task in app.tasks] for app in apps]
    assert [len(ids) for ids in asked] == [3, 1]
    assert sorted(query_id for ids in asked for query_id in ids) == list(QUESTIONS)
    rows = (project.data / "raw" / "qrels.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "q_id,web_id"
    assert sorted(rows[1:]) == [f"{query_id},{docs[0]}" for query_id, docs in LABELS.items()]
    assert "All 4 questions have an answer" in project.run("06_label")[-1]
    assert len(apps) == 2
    assert "4 labelled questions" in starting(project.run("03_run_search"), "Hit@5: ")


def test_none_of_these_is_not_asked_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("03_run_search", "--no-rerank")
    label(monkeypatch, keep_right=False)
    lines = project.run("06_label", "rerank-off", "--order", "random", "--count", "4", "--depth", "7")
    assert "none of these: 4 (not measured). Hit@5 of rerank-off: nothing" in starting(lines, "Labelled: ")
    assert "All 4 questions have an answer" in project.run("06_label")[-1]
    assert not (project.data / "raw" / "qrels.csv").exists()


def test_other_questions_get_labels_that_a_flag_must_name(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = write_csv(tmp_path / "q.csv", "q_id,query", [f'q1,"{QUESTIONS["q1"]}"'])
    project.run("03_run_search", "--no-rerank", "--questions", str(questions))
    label(monkeypatch)
    lines = project.run("06_label", "--questions", str(questions), "--depth", "7")
    path = project.data / "raw" / "qrels.csv"
    assert starting(lines, "Labels: ").endswith(f" --labels {path}")


def test_what_cannot_be_labelled(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs: no run over .*\. Run: python scripts/03_run_search\.py --data-dir"):
        project.run("06_label")
    project.run("03_run_search", "--no-rerank")
    with pytest.raises(UserError, match=r"absent\.parquet: no such run\. There are: .*rerank-off"):
        project.run("06_label", "absent")
    with pytest.raises(UserError, match="made over the questions"):
        project.run("06_label", "rerank-off", "--limit", "2")
    with pytest.raises(UserError, match=r"Run: python scripts/03_run_search\.py .* --limit 2"):
        project.run("06_label", "--limit", "2")
    labels = write_csv(tmp_path / "l.csv", "q_id,web_id", ["q1,9"])
    with pytest.raises(UserError, match=r"l\.csv: answers are kept in .*qrels\.csv"):
        project.run("06_label", "--labels", str(labels))


def test_runs_of_another_corpus_are_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("03_run_search", "--no-rerank")
    manifest = project.data / "runs" / "fused.manifest.json"
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values["inputs"]["corpus"] = "0123456789abcdef"
    manifest.write_text(json.dumps(values), encoding="utf-8")
    label(monkeypatch)
    lines = project.run("06_label", "--depth", "7")
    assert "fused.parquet: made over the corpus 0123456789abcdef" in starting(lines, "Left out: ")
    assert "fused" not in starting(lines, "Runs: ")
