"""The short form of ``python -m tests.faults``: a kill while embedding, one while reranking, one corrupted byte."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_three_faults() -> None:
    command = [sys.executable, "-m", "tests.faults", "--runs", "3", "--seed", "1", "--size", "small"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=250)
    assert done.stdout.splitlines()[-1] == "3 runs, 3 recovered, 0 rows lost, 0 rows made up", done.stdout + done.stderr
    assert done.returncode == 0
