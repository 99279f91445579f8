"""SIGTERM and Ctrl-C: within 5 s, also while native code is busy; the shell script passes them on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
BUSY = {
    # Python code: the handler runs at once.
    "python": "import time\n    for _ in range(6000): time.sleep(0.01)",
    # A native call that holds up the handler for as long as it lasts, as a batch of a large model does.
    "native": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 1_000_000_000)",
}
SCRIPT = """
import sys
sys.path.insert(0, {scripts!r})
import logging
from _cli import main
def run(settings, arguments):
    logging.getLogger("search").info("at work")
    {busy}
main(run)
"""


def heed_interrupts() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: "subprocess.Popen[str]", number: int) -> tuple[int, float, str]:
    assert process.stdout is not None
    start = time.monotonic()
    process.send_signal(number)
    code = process.wait(30)
    return code, time.monotonic() - start, process.stdout.read()


@pytest.mark.parametrize(
    ("busy", "number", "code"),
    [("python", signal.SIGTERM, 143), ("python", signal.SIGINT, 130), ("native", signal.SIGTERM, 143)],
)
def test_a_script_stops_within_five_seconds(busy: str, number: int, code: int) -> None:
    text = SCRIPT.format(scripts=str(PROJECT / "scripts"), busy=BUSY[busy])
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, cwd=PROJECT, preexec_fn=heed_interrupts
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.5)  # it is in the middle of it
    found, seconds, rest = ended(process, number)
    assert (found, seconds < 5.0) == (code, True)
    assert rest == (
        "Stopped. Finished work is kept and nothing was half-written: give the same command again to go on.\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_script_that_still_imports_stops_at_once(number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "scripts" / "03_run_search.py"), "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    while not _catches_sigterm(process.pid):
        time.sleep(0.005)
    found, seconds, rest = ended(process, number)
    assert (found, seconds < 5.0) == (code, True)
    assert rest == (
        "Stopped. Finished work is kept and nothing was half-written: give the same command again to go on.\n"
    )


def _catches_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


FAKE_PYTHON = """#!{python}
# Stands in for the interpreter of the one command: says what it got, and ends as a script of this project does.
import os, signal, sys, time
from pathlib import Path

def stop(number, frame):
    print("got", signal.Signals(number).name.removeprefix("SIG"), flush=True)
    time.sleep(0.3)
    print("Stopped.", flush=True)
    os._exit(128 + number)

if sys.argv[1] == "-c":
    sys.stdin.read()
    sys.stdout.write(Path(os.environ["STAMP"]).read_text())
else:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print("running", Path(sys.argv[1]).name, flush=True)
    time.sleep(15)
"""


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "TERM", 143), (signal.SIGINT, "INT", 130)])
def test_the_one_command_passes_signals_on(tmp_path: Path, number: int, name: str, code: int) -> None:
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    for path in ("run_cross_encoder_search.sh", "scripts/environment.sh"):
        (project / path).write_bytes((PROJECT / path).read_bytes())
        (project / path).chmod(0o755)
    for path in ("requirements.txt", "requirements-common.txt"):
        (project / path).write_text("")
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(FAKE_PYTHON.format(python=sys.executable))
    (environment / "bin" / "python").chmod(0o755)
    stamp = environment / ".installed-requirements.txt.sha256"
    stamp.write_text("same\n")
    process = subprocess.Popen(
        [str(project / "run_cross_encoder_search.sh")], stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heed_interrupts,
        env={**os.environ, "VIRTUAL_ENV": str(environment), "STAMP": str(stamp)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running 01_preprocess.py\n"
    found, seconds, rest = ended(process, number)
    assert found == code
    assert seconds < 5.0
    # The last lines reach screen and log before the command ends, and no further step is started.
    assert rest == f"got {name}\nStopped.\n"
    assert (project / "search_cross_encoder.log").read_text() == f"running 01_preprocess.py\n{rest}"
