"""The scripts as they are typed: exit codes, one clear line, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import _cli

import pytest
from conftest import PROJECT

from src.core.errors import UserError

FLAGS = ["--corpus", "--questions", "--labels", "--data-dir", "--output", "--limit", "--top-k", "--rerank"]


def typed(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # A step that is typed alone would write its log where the project is.
    logged = {"SEARCH_OUTPUT_IS_LOGGED": "1"}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VIRTUAL_ENV": sys.prefix, **logged}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_script_from_another_folder_fails_with_one_line(tmp_path: Path) -> None:
    script = str(PROJECT / "scripts" / "01_preprocess.py")
    done = typed(sys.executable, script, "--corpus", "nowhere.csv", "--data-dir", "d", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "ERROR: --corpus nowhere.csv: no such file. Give the path of an existing CSV file.\n"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder where the one command keeps its own log; all else is the project's."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(PROJECT / "run_cross_encoder_search.sh", folder)
    for path in (PROJECT / "scripts", *PROJECT.glob("requirements*.txt")):
        (folder / path.name).symlink_to(path)
    return folder


def test_the_one_command_shows_the_flags_of_the_search(project: Path) -> None:
    done = typed(str(project / "run_cross_encoder_search.sh"), "--help", cwd=project)
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in [*FLAGS, "--enable-profiling", "default: TOP_K = 5"])
    assert not (project / "search_cross_encoder.log").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--labels", "no.csv", "--data-dir", "d"], "ERROR: --labels no.csv: no such file"),
        (["--top-k", "0"], "'0' is not a whole number of at least 1"),
        (["--limmit", "3"], "unrecognized arguments: --limmit 3"),
    ],
)
def test_the_one_command_passes_on_the_exit_code_and_logs_it(project: Path, flags: list[str], complaint: str) -> None:
    done = typed(str(project / "run_cross_encoder_search.sh"), *flags, cwd=project)
    assert done.returncode == 2
    assert complaint in done.stdout
    assert (project / "search_cross_encoder.log").read_text(encoding="utf-8") == done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "complaint"),
    [
        pytest.param(
            "01_preprocess.py",
            ["--data-dir", "c.csv"],
            "c.csv: not a folder, and a folder is needed there. Mend that",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "01_preprocess.py",
            ["--data-dir", "c.csv/x"],
            "c.csv/x: a part of this path is not a folder. Mend that",
            marks=pytest.mark.slow,
        ),
        ("03_run_search.py", ["--output", "c.csv/o.csv"], "--output c.csv/o.csv: no file can be written in "),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_one_line(
    tmp_path: Path, script: str, flags: list[str], complaint: str
) -> None:
    (tmp_path / "c.csv").write_text("web_id\n")
    done = typed(sys.executable, str(PROJECT / "scripts" / script), "--data-dir", "d", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stdout
    assert done.stdout.startswith("ERROR: ")
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]


@pytest.mark.parametrize("output", ["o.csv", "new/folder/o.csv", "there.csv"])
def test_an_output_that_can_be_written_is_not_touched(tmp_path: Path, output: str) -> None:
    (tmp_path / "there.csv").write_text("earlier\n")
    _cli.require_writable(tmp_path / output)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("there.csv", "earlier\n")]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("c.csv/o.csv", "c.csv: Not a directory"),
        ("c.csv/new/o.csv", "c.csv: Not a directory"),
        ("gone/o.csv", "gone: No such file or directory"),
        ("o" * 250, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_before_the_work(tmp_path: Path, output: str, reason: str) -> None:
    (tmp_path / "c.csv").write_text("web_id\n")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"^--output .*{output}: no file can be written in .*{reason}\. Give another"):
        _cli.require_writable(tmp_path / output)


@pytest.mark.skipif(not os.access("/proc/self", os.F_OK), reason="no folder that root cannot write to")
def test_an_output_in_a_folder_that_takes_no_file_is_named_before_the_work() -> None:
    with pytest.raises(UserError, match=r"^--output /proc/o\.csv: no file can be written in /proc: "):
        _cli.require_writable(Path("/proc/o.csv"))


def copy_without_packages(folder: Path) -> Path:
    """A project of which 01 can be typed as far as its first import of a package."""
    shutil.copytree(PROJECT / "config", folder / "config", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "scripts").mkdir()
    for name in ("_cli.py", "_signals.py", "01_preprocess.py"):
        shutil.copy(PROJECT / "scripts" / name, folder / "scripts")
    return folder


def typed_without_packages(project: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -S: without the folder that packages are installed in.
    return typed(sys.executable, "-S", os.path.relpath(project / "scripts" / "01_preprocess.py", cwd), cwd=cwd)


def test_a_python_without_the_packages_is_told_of_the_environment(tmp_path: Path) -> None:
    project = copy_without_packages(tmp_path / "project")
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").write_text("")
    done = typed_without_packages(project, project)
    assert done.returncode == 2
    assert done.stderr == (
        f"ERROR: package 'pydantic' is not installed for {sys.executable}. Type: source .venv/bin/activate "
        "(or give the command as: .venv/bin/python scripts/01_preprocess.py)\n"
    )
    elsewhere = typed_without_packages(project, tmp_path)
    assert f"Type: source {project}/.venv/bin/activate" in elsewhere.stderr


def test_a_python_without_the_packages_is_told_of_the_one_command(tmp_path: Path) -> None:
    project = copy_without_packages(tmp_path / "project")
    done = typed_without_packages(project, project)
    assert done.returncode == 2
    assert done.stderr == (
        f"ERROR: package 'pydantic' is not installed for {sys.executable}. Run ./run_cross_encoder_search.sh once, or: "
        "pip install -r requirements.txt\n"
    )


def test_a_package_that_is_missing_later_is_told_in_the_same_way(tmp_path: Path) -> None:
    project = copy_without_packages(tmp_path / "project")
    script = project / "scripts" / "01_preprocess.py"
    script.write_text("import _cli\nimport no_such_package.part\n")
    shutil.copytree(PROJECT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__", "adapters"))
    done = typed(sys.executable, str(script), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR: package 'no_such_package' is not installed for ")
    script.write_text("import _cli\nimport src.no_such_module\n")
    done = typed(sys.executable, str(script), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
