"""Which corpus, questions and labels a command takes: never those of another corpus."""

import json
import shlex
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

from _cli import add_data_flags

import pytest
from conftest import PROJECT, load_script, write_csv
from test_run import Project

from _inputs import choose_inputs
from config import Settings
from src.core.errors import StaleArtifactError, UserError


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    return Project(bank, settings, caplog)


def flags(data: Path, **given: Path) -> Namespace:
    return Namespace(**{"corpus": None, "questions": None, "labels": None, "data_dir": data, **given})


def test_a_misnamed_questions_file_is_not_replaced_by_what_is_prepared(project: Project) -> None:
    project.prepare()
    raw = project.data / "raw"
    (raw / "questions_clean.csv").rename(raw / "questions.csv")
    write_csv(raw / "websites_updated.csv", "web_id,url,kind,title,text", ['a,,,"Another","corpus"'])
    before = {path: path.read_bytes() for path in (project.data / "processed").rglob("*.*") if path.is_file()}
    for script in ("01_preprocess", "02_build_indices", "03_run_search"):
        with pytest.raises(UserError, match=r"raw/questions_clean\.csv: no such file\. Put the questions there"):
            project.run(script)
    assert {path: path.read_bytes() for path in before} == before


def test_a_corpus_by_flag_does_not_take_the_questions_prepared_for_another(project: Project, tmp_path: Path) -> None:
    project.prepare()
    other = shutil.copy(project.data / "raw" / "websites_updated.csv", tmp_path / "c2.csv")
    shutil.rmtree(project.data / "raw")
    with pytest.raises(UserError, match=r"questions_clean\.csv: no such file\. .*--questions FILE"):
        project.run("03_run_search", "--corpus", str(other))
    assert not project.output.exists()


def test_prepared_questions_must_belong_to_the_prepared_corpus(project: Project) -> None:
    project.prepare()
    shutil.rmtree(project.data / "raw")
    project.run("03_run_search", "--no-rerank")
    manifest = project.data / "processed" / "questions" / "manifest.json"
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values["inputs"]["corpus"] = "feedfeedfeedfeed"
    manifest.write_text(json.dumps(values), encoding="utf-8")
    before = project.output.read_bytes()
    with pytest.raises(StaleArtifactError, match=r'corpus is "feedfeedfeedfeed" there.*--questions FILE \(or copy'):
        project.run("03_run_search", "--no-rerank")
    assert project.output.read_bytes() == before


def test_own_questions_are_not_left_out_for_those_of_the_sample(tmp_path: Path, settings: Settings) -> None:
    assert choose_inputs(flags(tmp_path), settings, tmp_path).origin == "sample"
    write_csv(tmp_path / "raw" / "questions_clean.csv", "q_id,query", ["q1,what"])
    with pytest.raises(UserError, match=r"raw/websites_updated\.csv: no such file, but .*raw/questions_clean\.csv"):
        choose_inputs(flags(tmp_path), settings, tmp_path)


def test_the_sample_is_part_of_the_project_wherever_the_data_folder_is(tmp_path: Path, settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"data_dir": "elsewhere"})
    found = choose_inputs(flags(tmp_path), elsewhere, PROJECT)
    sample = PROJECT / "data" / "sample"
    assert (found.corpus, found.questions, found.labels) == (
        sample / "websites_updated.csv", sample / "questions_clean.csv", sample / "qrels.csv",
    )  # fmt: skip
    assert all(path is not None and path.is_file() for path in (found.corpus, found.questions, found.labels))
    parser = ArgumentParser()
    add_data_flags(parser, elsewhere)
    text = " ".join(parser.format_help().split())
    assert text.count("else data/sample") == 3
    assert "elsewhere/sample" not in text
    assert "data folder of this corpus (default: elsewhere)" in text


def test_labels_in_raw_count_beside_prepared_questions(project: Project) -> None:
    project.prepare()
    raw = project.data / "raw"
    for name in ("websites_updated.csv", "questions_clean.csv"):
        (raw / name).unlink()
    before = (raw / "qrels.csv").read_text(encoding="utf-8").splitlines()
    first = before[1].split(",")[0]
    kept = [line for line in before if line.split(",")[0] in {"q_id", first}]
    (raw / "qrels.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    lines = project.run("03_run_search", "--no-rerank")
    assert any("Labels: 1 labelled question" in line for line in lines)


def test_own_questions_by_flag_are_not_answered_from_the_sample(tmp_path: Path, settings: Settings) -> None:
    own = write_csv(tmp_path / "mine.csv", "q_id,query", ["q1,what"])
    complaint = r"--questions \S+mine\.csv: there is no corpus .*raw/websites_updated\.csv: no such file.*--corpus FILE"
    with pytest.raises(UserError, match=complaint):
        choose_inputs(flags(tmp_path, questions=own), settings, PROJECT)
    sample = PROJECT / "data" / "sample" / "questions_clean.csv"
    assert choose_inputs(flags(tmp_path, questions=sample), settings, PROJECT).origin == "sample"
    with_corpus = flags(tmp_path, questions=own, corpus=sample.with_name("websites_updated.csv"))
    assert choose_inputs(with_corpus, settings, PROJECT).origin == "flags"


def typed(error: pytest.ExceptionInfo[StaleArtifactError]) -> tuple[str, list[str]]:
    """Script and arguments of the command that an error names, as a shell takes them."""
    python, script, *arguments = shlex.split(str(error.value).rsplit(" Run: ", 1)[1])
    assert python == "python"
    assert (PROJECT / script).is_file()
    return Path(script).stem, arguments


def test_the_named_commands_work_as_typed(project: Project, tmp_path: Path) -> None:
    # Names that a shell would take apart.
    raw = (project.data / "raw").rename(tmp_path / "my files; & more")
    project.data = tmp_path / "d 2"
    given = ["--corpus", str(raw / "websites_updated.csv"), "--questions", str(raw / "questions_clean.csv")]
    project.output = tmp_path / "submission.csv"
    for expected in ("01_preprocess", "02_build_indices"):
        with pytest.raises(StaleArtifactError) as error:
            project.run("03_run_search", *given, "--no-rerank")
        script, arguments = typed(error)
        assert script == expected
        load_script(script).run(project.settings, arguments)
    project.run("03_run_search", *given, "--no-rerank")
    assert project.output.exists()


@pytest.mark.parametrize(
    "lost", ["embeddings/dense-d*[0-9a-f]", "indices/dense-c*", "indices/bm25-c*", "embeddings/*-tokens"]
)
def test_whatever_is_lost_its_command_mends_it(project: Project, lost: str) -> None:
    project.data = project.data.rename(project.data.with_name("d 2"))
    project.output = project.data / "submission.csv"
    project.prepare()
    shutil.rmtree(next(project.data.glob(lost)))
    commands = []
    for script, *more in (["03_run_search", "--no-rerank"], ["05_compare"]):
        with pytest.raises(StaleArtifactError) as error:
            project.run(script, *more)
        commands.append(typed(error))
    assert commands == [("02_build_indices", ["--data-dir", str(project.data)])] * 2
    load_script(commands[0][0]).run(project.settings, commands[0][1])
    project.run("03_run_search", "--no-rerank")
    assert project.output.exists()


@pytest.mark.parametrize("part", ["corpus", "questions"])
def test_a_damaged_copy_without_files_cannot_be_mended_by_preparing_it_again(project: Project, part: str) -> None:
    project.prepare()
    shutil.rmtree(project.data / "raw")
    manifest = project.data / "processed" / part / "manifest.json"
    if part == "questions":
        manifest.write_text("{", encoding="utf-8")
    else:
        (manifest.parent / "chunks.parquet").write_bytes(b"")
    with pytest.raises(
        StaleArtifactError, match=r"Run: python scripts/01_\S+ --data-dir \S+ --corpus FILE --questions"
    ):
        project.run("03_run_search", "--no-rerank")
