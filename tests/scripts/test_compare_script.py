import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import LABELS
from test_run import Project

from config import RerankerSettings, Settings
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
    assert "profile" not in found  # it would be the time of reading
    # The submission lists three: what looks deeper is no loss of its order.
    assert any("because submission lists no more than 3 documents per question: Hit@5, " in line for line in lines)
    assert any(line.startswith("| Hit@1 |") for line in lines)
    assert not any(line.startswith(("| Hit@5 |", "| Recall@100 |")) for line in lines)
    folder = project.data / "results" / "here"
    names = {"metrics.png", "hit-at-k.png", "moves-rerank-on.png", "moves-submission.png", "compare.md", "compare.json"}
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (folder / "compare.md").read_text(encoding="utf-8").startswith("# Comparison of runs\n")


def test_lists_of_one_depth_keep_the_metrics_up_to_it(project: Project) -> None:
    project.run("03_run_search", "--no-rerank")
    project.run("03_run_search")
    _, lines = result(project, "rerank-off", "rerank-on")
    assert [line.split("|")[1].strip() for line in lines if line.startswith(("| Hit@", "| Recall@"))][:3] == [
        "Hit@1", "Hit@5", "Recall@5",
    ]  # fmt: skip


def test_a_sweep_scores_no_pair_twice(project: Project) -> None:
    lines = project.run("05_compare", "--candidates", "2", "4", "--weights", "0", "1", "--name", "sweep")
    scored = [line for line in lines if line.startswith("Pairs: ")]
    assert scored == ["Pairs: 16 scored, 0 kept from earlier runs", "Pairs: 0 scored, 8 kept from earlier runs"]
    again = project.run("05_compare", "--candidates", "3", "--weights", "0.5", "--name", "again")
    assert [line for line in again if line.startswith("Pairs: ")] == ["Pairs: 0 scored, 12 kept from earlier runs"]
    found = json.loads((project.data / "results" / "sweep" / "compare.json").read_text(encoding="utf-8"))
    assert [stage["items"] for stage in found["profile"]["stages"] if stage["name"] == "rerank"] == [16]
    names = [run["name"] for run in found["runs"]]
    assert names[0] == "off"
    assert [name.split(" ", 1)[1] for name in names[1:]] == ["K=2 w=0", "K=2 w=1", "K=4 w=0", "K=4 w=1"]
    # Weight 0 is stage one's own order.
    assert found["runs"][3]["metrics"]["Hit@1"] == found["runs"][0]["metrics"]["Hit@1"]


def test_the_rerankers_of_the_settings_score_together(
    project: Project, cross_encoder: Path, xlmr_cross_encoder: Path
) -> None:
    pair = [
        RerankerSettings(model=str(cross_encoder), weight=1.0),
        RerankerSettings(model=str(xlmr_cross_encoder), weight=3.0),
    ]
    project.settings = project.settings.model_copy(update={"rerankers": pair})
    searched = {}
    for depth in (4, 5):
        project.run("03_run_search", settings=project.settings.model_copy(update={"reranker_candidate_k": depth}))
        rows = pq.read_table(project.data / "runs" / "rerank-on.parquet").to_pylist()
        ranks = {row["q_id"]: row["rank"] for row in rows if row["web_id"] in LABELS[row["q_id"]]}
        searched[depth] = [ranks.get(query_id, 0) for query_id in LABELS]
    lines = project.run("05_compare", "--candidates", "4", "5", "--name", "here")
    assert not any(line.startswith("Pairs: ") and not line.startswith("Pairs: 0 scored") for line in lines)
    found = json.loads((project.data / "results" / "here" / "compare.json").read_text(encoding="utf-8"))
    together = f"{cross_encoder.name} + {xlmr_cross_encoder.name}"
    assert [run["name"] for run in found["runs"]] == ["off", f"{together} K=4 w=0.5", f"{together} K=5 w=0.5"]
    # As the search has it, at either depth.
    assert {depth: found["ranks"][f"{together} K={depth} w=0.5"] for depth in (4, 5)} == searched


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


def test_a_run_over_the_first_questions_names_the_limit(project: Project) -> None:
    project.run("03_run_search", "--no-rerank", "--limit", "2")
    with pytest.raises(UserError, match=r"made over the first 2 of these \d+ questions .* Add --limit 2"):
        project.run("05_compare", "rerank-off", "fused")


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
