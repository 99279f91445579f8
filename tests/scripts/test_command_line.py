"""The scripts as they are typed: exit codes, one clear line, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FLAGS = ["--corpus", "--questions", "--labels", "--data-dir", "--output", "--limit", "--top-k", "--rerank"]


def typed(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VIRTUAL_ENV": sys.prefix}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_script_from_another_folder_fails_with_one_line(tmp_path: Path) -> None:
    script = str(PROJECT / "scripts" / "01_preprocess.py")
    done = typed(sys.executable, script, "--corpus", "nowhere.csv", "--data-dir", "d", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "ERROR: --corpus nowhere.csv: no such file. Give the path of an existing CSV file.\n"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "d").exists()


def test_the_one_command_shows_the_flags_of_the_search(tmp_path: Path) -> None:
    done = typed(str(PROJECT / "run_cross_encoder_search.sh"), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in [*FLAGS, "--enable-profiling", "default: TOP_K = 5"])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--labels", "no.csv", "--data-dir", "d"], "ERROR: --labels no.csv: no such file"),
        (["--top-k", "0"], "'0' is not a whole number of at least 1"),
        (["--limmit", "3"], "unrecognized arguments: --limmit 3"),
    ],
)
def test_the_one_command_passes_on_the_exit_code_and_logs_it(tmp_path: Path, flags: list[str], complaint: str) -> None:
    log = PROJECT / "search_cross_encoder.log"
    before = log.read_bytes() if log.exists() else None
    try:
        done = typed(str(PROJECT / "run_cross_encoder_search.sh"), *flags, cwd=tmp_path)
        assert done.returncode == 2
        assert complaint in done.stdout
        assert log.read_text(encoding="utf-8") == done.stdout
        assert "Traceback" not in done.stdout
    finally:
        if before is not None:
            log.write_bytes(before)
