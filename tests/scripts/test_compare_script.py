import json
import shutil
from pathlib import Path

import pytest
from test_run import Project

from config import Settings
from src.core.errors import UserError


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    found = Project(bank, settings, caplog)
    found.prepare()
    return found


def result(project: Project, *flags: str) -> tuple[dict[str, object], list[str]]:
    lines = project.run("05_compare", *flags, "--name", "here")
    return json.loads((project.data / "results" / "here" / "compare.json").read_text(encoding="utf-8")), lines


def test_runs_on_disk_and_a_submission(project: Project) -> None:
    project.run("03_run_search", "--no-rerank")
    project.run("03_run_search")
    found, lines = result(project, "rerank-off", "rerank-on", str(project.output))
    assert [run["name"] for run in found["runs"]] == ["rerank-off", "rerank-on", "submission"]  # type: ignore[attr-defined,union-attr]
    assert [run["depth"] for run in found["runs"]] == [5, 5, 3]  # type: ignore[attr-defined,union-attr]
    assert found["labelled"] == 4
    assert any(line.startswith("| Hit@5 |") for line in lines)
    folder = project.data / "results" / "here"
    names = {"metrics.png", "hit-at-k.png", "moves-rerank-on.png", "moves-submission.png", "compare.md", "compare.json"}
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (folder / "compare.md").read_text(encoding="utf-8").startswith("# Comparison of runs\n")


def test_a_sweep_scores_no_pair_twice(project: Project) -> None:
    lines = project.run("05_compare", "--candidates", "2", "4", "--weights", "0", "1", "--name", "sweep")
    scored = [line for line in lines if line.startswith("Pairs: ")]
    assert scored == ["Pairs: 16 scored, 0 kept from earlier runs"]
    again = project.run("05_compare", "--candidates", "3", "--weights", "0.5", "--name", "again")
    assert [line for line in again if line.startswith("Pairs: ")] == ["Pairs: 0 scored, 12 kept from earlier runs"]
    found = json.loads((project.data / "results" / "sweep" / "compare.json").read_text(encoding="utf-8"))
    names = [run["name"] for run in found["runs"]]
    assert names[0] == "off"
    assert [name.split(" ", 1)[1] for name in names[1:]] == ["K=2 w=0", "K=2 w=1", "K=4 w=0", "K=4 w=1"]
    # Weight 0 is stage one's own order.
    assert found["runs"][3]["metrics"]["Hit@1"] == found["runs"][0]["metrics"]["Hit@1"]


def test_passages_are_an_arm_of_their_own(project: Project) -> None:
    lines = project.run("05_compare", "--passages", "1", "2", "first:1", "--weights", "1", "--name", "arms")
    found = json.loads((project.data / "results" / "arms" / "compare.json").read_text(encoding="utf-8"))
    names = [run["name"].split(" ", 1)[1] for run in found["runs"][1:]]
    assert names == ["best 1 K=5 w=1", "best 2 K=5 w=1", "first 1 K=5 w=1"]
    # The second arm reads what the first one read: those pairs are not scored again.
    assert sum("kept from earlier runs" in line and " 0 kept" not in line for line in lines) >= 1


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["rerank-off", "absent"], r"absent\.parquet: no such run\. There are: .*rerank-off"),
        (["rerank-off"], "1 run given, at least 2 are needed"),
        (["rerank-off", "rerank-off"], "two runs have the name 'rerank-off'"),
        (["rerank-off", "nowhere.csv"], r"nowhere\.csv: no such submission file"),
        (["rerank-off", "fused", "--passages", "2"], "--passages makes runs, but runs on disk are named too"),
        (["rerank-off", "fused", "--weights", "0.5"], "--weights makes runs, but runs on disk are named too"),
        (["rerank-off", "fused", "--limit", "2"], "made over the questions .* Only runs over the same corpus"),
    ],
)
def test_what_cannot_be_compared(project: Project, flags: list[str], complaint: str) -> None:
    project.run("03_run_search", "--no-rerank")
    with pytest.raises(UserError, match=complaint):
        project.run("05_compare", *flags)
    assert [path.name for path in (project.data / "results").iterdir()] == ["rerank-off"]


def test_a_submission_over_other_data(project: Project, tmp_path: Path) -> None:
    project.run("03_run_search", "--no-rerank")
    other = tmp_path / "other.csv"
    shutil.copy(project.output, other)
    other.write_text(other.read_text(encoding="utf-8").replace("q2,", "q9,"), encoding="utf-8")
    with pytest.raises(UserError, match=r"other\.csv, row 2: names question 'q9'"):
        project.run("05_compare", "rerank-off", str(other))


def test_without_labels(project: Project) -> None:
    (project.data / "raw" / "qrels.csv").unlink()
    with pytest.raises(UserError, match=r"no labels at .*nothing can be compared"):
        project.run("05_compare")
