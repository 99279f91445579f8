"""The log of the one command: a run never touches the log of another one that is still at work."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import _cli

import pytest
from conftest import PROJECT

from config import Settings, load_settings

# Stands in for the interpreter: each step says its flags, then waits until "go" is there.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1" in
    -c) if [[ "$2" == *flock* ]]; then exec "$REAL_PYTHON" "$@"; fi; cat >/dev/null; echo same ;;
    *)  echo "$(basename "$1") ${*:2}"
        until [[ -e "$GO" || $SECONDS -gt 60 ]]; do sleep 0.05; done ;;
esac
"""
TOOLS = ("bash", "env", "cat", "basename", "dirname", "sleep", "tee", "python3")
ANOTHER = "Another run is writing search_cross_encoder.log; the log of this one is search_cross_encoder-2.log.\n"


class Command:
    """The one command in a project of its own, whose steps do nothing but wait."""

    def __init__(self, folder: Path, with_flock: bool) -> None:
        self.project = folder / "project"
        (self.project / "scripts").mkdir(parents=True)
        for name in ("run_cross_encoder_search.sh", "scripts/environment.sh"):
            shutil.copy(PROJECT / name, self.project / name)
        for name in ("requirements.txt", "requirements-common.txt"):
            (self.project / name).write_text("")
        binaries = folder / "venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "python").write_text(FAKE_PYTHON)
        (binaries / "python").chmod(0o755)
        (folder / "venv" / ".installed-requirements.txt.sha256").write_text("same\n")
        self.go = folder / "go"
        real = sys.executable
        self.environment = {**os.environ, "VIRTUAL_ENV": str(folder / "venv"), "GO": str(self.go), "REAL_PYTHON": real}
        if not with_flock:
            tools = folder / "tools"
            tools.mkdir()
            for tool in TOOLS:
                # A python3 on the path may be a script that needs the rest of the path.
                (tools / tool).symlink_to(sys.executable if tool == "python3" else str(shutil.which(tool)))
            self.environment["PATH"] = str(tools)

    def start(self, *flags: str) -> "subprocess.Popen[str]":
        command = ["bash", str(self.project / "run_cross_encoder_search.sh"), *flags]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=self.environment
        )  # fmt: skip

    def log(self, number: str = "") -> str:
        return (self.project / f"search_cross_encoder{number}.log").read_text(encoding="utf-8")


def first_line(folder: str) -> str:
    return f"01_preprocess.py --if-stale --data-dir {folder}\n"


def all_lines(folder: str) -> str:
    rest = f"02_build_indices.py --if-stale --data-dir {folder}\n03_run_search.py --data-dir {folder}\n"
    return first_line(folder) + rest


@pytest.mark.parametrize("with_flock", [True, False])
def test_a_second_start_leaves_the_log_of_the_first_one(tmp_path: Path, with_flock: bool) -> None:
    command = Command(tmp_path, with_flock)
    (command.project / "search_cross_encoder.log").write_text("an earlier run\n")
    first = command.start("--data-dir", "a")
    assert first.stdout is not None
    assert first.stdout.readline() == first_line("a")
    second = command.start("--data-dir", "b")
    assert second.stdout is not None
    assert second.stdout.readline() == ANOTHER
    assert second.stdout.readline() == first_line("b")
    second.send_signal(signal.SIGTERM)
    second.wait(20)
    assert command.log() == first_line("a")
    assert command.log("-2") == f"{ANOTHER}{first_line('b')}{second.stdout.read()}"
    command.go.touch()
    assert first.wait(20) == 0
    assert command.log() == all_lines("a")
    # Nobody is at work: the usual name again.
    third = command.start("--data-dir", "c")
    assert third.communicate(timeout=20)[0] == all_lines("c")
    assert command.log() == all_lines("c")
    assert sorted(path.name for path in command.project.glob("*.log")) == [
        "search_cross_encoder-2.log", "search_cross_encoder.log",
    ]  # fmt: skip


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_leaves_the_log_of_the_last_run(tmp_path: Path, flag: str) -> None:
    command = Command(tmp_path, with_flock=True)
    log = command.project / "search_cross_encoder.log"
    log.write_text("an earlier run\n")
    command.go.touch()
    help_shown = command.start("--limit", "3", flag)
    assert help_shown.communicate(timeout=20)[0] == "03_run_search.py --help\n"
    assert help_shown.returncode == 0
    assert [path.name for path in command.project.glob("*.log*")] == [log.name]
    assert command.log() == "an earlier run\n"


def test_a_killed_command_does_not_hold_its_log(tmp_path: Path) -> None:
    command = Command(tmp_path, with_flock=True)
    first = command.start("--data-dir", "a")
    assert first.stdout is not None
    first.stdout.readline()
    command.go.touch()
    first.kill()
    first.wait(20)
    assert first.stdout.read()  # until the last process that holds the log has ended
    assert command.start("--data-dir", "b").communicate(timeout=20)[0] == all_lines("b")


def test_the_search_alone_does_not_take_the_name_of_a_log_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(settings: Settings, arguments: Sequence[str]) -> None:
        _cli.log.info("Hit@5: 0.5")

    path = tmp_path / "search_cross_encoder.log"
    monkeypatch.setattr("sys.argv", ["03_run_search.py"])
    with path.open("w") as handle:
        handle.write("at work\n")
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
        _cli._run_logged(run, load_settings(), path)
        assert path.read_text() == "at work\n"
    assert (tmp_path / "search_cross_encoder-2.log").read_text() == "Hit@5: 0.5\n"
    assert capsys.readouterr().out == f"Hit@5: 0.5\n{ANOTHER}"
    _cli._run_logged(run, load_settings(), path)
    assert path.read_text() == "Hit@5: 0.5\n"
