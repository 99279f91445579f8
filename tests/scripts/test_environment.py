"""The environment of the two commands: which requirements it keeps to, and what becomes of one that was half made.

A stand-in for Python and its pip takes down what it is asked to do; nothing is installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

FAKE_PYTHON = r"""#!/usr/bin/env bash
# Outside of an environment it makes one (half of one with HALF); inside it keeps a folder per package, as pip does.
set -e
home="$(dirname "$(dirname "$0")")"
packages="$home/lib/python3.11/site-packages"
pip() {
    [[ -d "$packages/pip" ]] || { echo "error: externally-managed-environment"; exit 1; }
    case "$1" in
        install)
            echo "install ${*: -1}" | tee -a "$ASKED"
            [[ -z "${BROKEN:-}" ]] || { echo "No matching distribution found"; exit 1; }
            case "${*: -1}" in
                *-gpu.txt) mkdir -p "$packages/faiss_gpu-1.dist-info" ;;
                */requirements.txt) mkdir -p "$packages/faiss_cpu-1.dist-info" ;;
            esac ;;
        uninstall)
            echo "uninstall ${*: -2}" >>"$ASKED"
            rm -rf "$packages"/faiss_* ;;
    esac
}
make() {
    mkdir -p "$1/bin" "$1/lib/python3.11/site-packages"
    echo "version = 3.11" >"$1/pyvenv.cfg"
    cp "$0" "$1/bin/python"
    if [[ -n "${HALF:-}" ]]; then
        echo "The virtual environment was not created successfully. apt install python3.11-venv"
        exit 1
    fi
    mkdir -p "$1/lib/python3.11/site-packages/pip"
}
case "$1 $2" in
    "-m venv") make "$3" ;;
    "-m pip") pip "${@:3}" ;;
    "-m "*) echo "$2" ;;
    "-c "*) if [[ "$2" == *hashlib* ]]; then exec "$REAL_PYTHON" "$@"; fi ;;
    *) basename "$1" ;;
esac
"""
TOOLS = ("bash", "env", "cat", "basename", "dirname", "tee", "rm", "mkdir", "cp")
STEPS = "01_preprocess.py\n02_build_indices.py\n03_run_search.py\n"
KEPT = "The environment was made from requirements-gpu.txt, which is kept (another: REQUIREMENTS=requirements.txt).\n"
HINT = "The virtual environment was not created successfully. apt install python3.11-venv\n"


class Machine:
    """A project of its own on a machine that has nothing but the stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        for name in ("run_cross_encoder_search.sh", "scripts/environment.sh", "tests/run.sh"):
            (self.project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, self.project / name)
        for path in PROJECT.glob("requirements*.txt"):
            shutil.copy(path, self.project)
        tools = folder / "tools"
        tools.mkdir()
        for tool in TOOLS:
            (tools / tool).symlink_to(str(shutil.which(tool)))
        (tools / "python3").write_text(FAKE_PYTHON)
        (tools / "python3").chmod(0o755)
        self.asked_file = folder / "asked"
        self.environment = {"PATH": str(tools), "REAL_PYTHON": sys.executable, "ASKED": str(self.asked_file)}
        self.venv = self.project / ".venv"

    def run(self, command: str = "run_cross_encoder_search.sh", code: int = 0, **variables: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            ["bash", str(self.project / command)], env=self.environment | variables, text=True, timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def asked(self) -> list[str]:
        """What pip was asked for since the last look."""
        lines = self.asked_file.read_text().replace(f"{self.project}/", "").splitlines()
        self.asked_file.write_text("")
        return lines

    def faiss(self) -> list[str]:
        return sorted(path.name.split("-")[0] for path in self.venv.glob("lib/*/site-packages/faiss_*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_usual_requirements_are_installed_once_and_without_a_word_about_them(machine: Machine) -> None:
    assert "Installing requirements.txt (once; a few minutes) ..." in machine.run()
    assert machine.run() == STEPS
    assert machine.asked() == ["install requirements.txt"]


def test_an_environment_keeps_to_the_requirements_that_it_was_made_from(machine: Machine) -> None:
    machine.run(REQUIREMENTS="requirements-gpu.txt")
    assert machine.asked() == ["install requirements-gpu.txt"]
    assert machine.run() == f"{KEPT}{STEPS}"
    assert machine.run("tests/run.sh").startswith(KEPT)
    assert machine.asked() == ["install requirements-dev.txt", "install requirements-int8.txt"]
    assert machine.faiss() == ["faiss_gpu"]


def test_where_others_are_named_the_other_build_of_faiss_is_uninstalled_first(machine: Machine) -> None:
    machine.run()
    machine.run(REQUIREMENTS="requirements-gpu.txt")
    both = "uninstall faiss-cpu faiss-gpu"
    assert machine.asked() == ["install requirements.txt", both, "install requirements-gpu.txt"]
    assert "Uninstalling the other build of faiss ..." in machine.run(REQUIREMENTS="requirements.txt")
    assert machine.asked() == [both, "install requirements.txt"]
    assert machine.faiss() == ["faiss_cpu"]
    assert machine.run() == STEPS


@pytest.mark.parametrize("first", ["requirements.txt", "requirements-gpu.txt"])
def test_a_change_that_fails_leaves_no_environment_that_passes_for_whole(machine: Machine, first: str) -> None:
    machine.run(REQUIREMENTS=first)
    other = "requirements-gpu.txt" if first == "requirements.txt" else "requirements.txt"
    machine.run(code=1, REQUIREMENTS=other, BROKEN="1")
    assert machine.faiss() == []
    machine.asked()
    machine.run()
    assert machine.asked() == [f"install {first}"]


def test_one_build_installed_over_the_other_in_earlier_days_is_mended(machine: Machine) -> None:
    machine.run(REQUIREMENTS="requirements-gpu.txt")
    packages = machine.venv / "lib" / "python3.11" / "site-packages"
    (packages / "faiss_cpu-1.dist-info").mkdir()
    (machine.venv / ".requirements").unlink()
    shutil.copy(
        machine.venv / ".installed-requirements-gpu.txt.sha256", machine.venv / ".installed-requirements.txt.sha256"
    )
    machine.asked()
    assert machine.run().startswith(KEPT)
    assert machine.asked() == ["uninstall faiss-cpu faiss-gpu", "install requirements-gpu.txt"]
    assert machine.run() == f"{KEPT}{STEPS}"


def test_a_requirements_file_that_is_not_there_is_one_line(machine: Machine) -> None:
    machine.run()
    said = machine.run(code=2, REQUIREMENTS="requirements-gpv.txt")
    assert said == (
        f"ERROR: {machine.project}/requirements-gpv.txt: no such file. Name one that is there: "
        "REQUIREMENTS=requirements.txt\n"
    )


def test_a_half_made_environment_does_not_stay(machine: Machine) -> None:
    making = f"Making the virtual environment {machine.venv} ...\n"
    for _ in range(2):
        said = machine.run(code=2, HALF="1")
        assert said == (
            f"{making}{HINT}ERROR: {machine.venv} could not be made; the lines above say why. Mend that, then give the "
            "same command again.\n"
        )
        assert not machine.venv.exists()
    assert machine.run("tests/run.sh", code=2, HALF="1").startswith(f"{making}{HINT}ERROR: ")
    assert machine.run().endswith(STEPS)


def half_make(machine: Machine) -> None:
    machine.run(code=2, HALF="1")
    subprocess.run(
        [machine.environment["PATH"] + "/python3", "-m", "venv", machine.venv],
        env=machine.environment | {"HALF": "1"}, check=False, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert (machine.venv / "bin" / "python").exists()


def test_what_an_earlier_start_left_half_made_is_removed_or_finished(machine: Machine) -> None:
    half_make(machine)
    assert HINT in machine.run(code=2, HALF="1")
    assert not machine.venv.exists()
    half_make(machine)
    assert machine.run().endswith(STEPS)
    assert machine.run() == STEPS


def test_an_environment_with_packages_is_never_removed(machine: Machine) -> None:
    half_make(machine)
    own = machine.venv / "lib" / "python3.11" / "site-packages" / "theirs"
    own.mkdir()
    said = machine.run(code=2, HALF="1")
    assert f"{HINT}ERROR: {machine.venv} could not be mended; the lines above say why. Delete that folder" in said
    assert own.exists()


def test_help_works_before_the_environment_is_there(machine: Machine) -> None:
    done = subprocess.run(
        ["bash", str(machine.project / "run_cross_encoder_search.sh"), "--help"], env=machine.environment, text=True,
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("03_run_search.py\n")
    assert not list(machine.project.glob("*.log"))


def test_the_environment_of_the_shell_is_used_where_one_is_active(machine: Machine, tmp_path: Path) -> None:
    machine.run(REQUIREMENTS="requirements-gpu.txt")
    active = tmp_path / "active"
    machine.venv.rename(active)
    assert machine.run(VIRTUAL_ENV=os.fspath(active)) == f"{KEPT}{STEPS}"
    assert not machine.venv.exists()
