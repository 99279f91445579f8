import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.core.data_lock import LOCK_NAME, data_lock
from src.core.errors import DataFolderInUseError

HOLDER = """
import sys, time
from pathlib import Path
from src.core.data_lock import data_lock
with data_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_a_dead_holder_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = holder(tmp_path)
    since = json.loads((tmp_path / LOCK_NAME).read_text())["since"]
    try:
        with pytest.raises(DataFolderInUseError) as caught, data_lock(tmp_path):
            pass
        assert f"{tmp_path}: in use by -c, pid {first.pid} on " in str(caught.value)
        assert f"since {since}. Let it end, wait for it with --wait, or take another" in str(caught.value)
        with data_lock(tmp_path / "another"):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.parquet.tmp-1-x").write_text("half")
    results = tmp_path / "results" / "rerank-on"
    results.mkdir(parents=True)
    (results / f"report.html.tmp-{first.pid}-x").write_text("half")
    # A benchmark that is running writes there without holding the folder.
    (results / f"bench.json.tmp-{os.getpid()}-x").write_text("half")
    with data_lock(tmp_path):
        assert f"(-c, pid {first.pid} on " in caplog.text
        assert "ended without a word; its finished work is kept." in caplog.text
        assert "Removed 2 half-written file(s)" in caplog.text
        assert [path.name for path in results.iterdir()] == [f"bench.json.tmp-{os.getpid()}-x"]
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
        assert not list((tmp_path / "runs").iterdir())
    assert (tmp_path / LOCK_NAME).read_text() == ""
    caplog.clear()
    with data_lock(tmp_path):
        assert not caplog.text


def test_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = holder(tmp_path)
    threading.Timer(0.3, first.terminate).start()
    start = time.monotonic()
    with data_lock(tmp_path, wait=True):
        assert time.monotonic() - start >= 0.2
    assert f"pid {first.pid} on" in caplog.text
    assert "; waiting ..." in caplog.text
    first.wait()


def test_an_error_frees_it_and_a_folder_made_for_nothing_goes(tmp_path: Path) -> None:
    folder = tmp_path / "typo" / "data"
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), data_lock(folder):
            raise ValueError("x")
        assert not folder.parent.exists()
    with data_lock(folder):
        (folder / "kept").write_text("")
    assert sorted(path.name for path in folder.iterdir()) == [LOCK_NAME, "kept"]
