"""Faults, one per run, each on a data folder of its own, and what must hold after every one of them."""

import csv
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .bench import STEPS, Ended, Process

STOP_WITHIN = 5.0
_FIX = re.compile(r"Run: python scripts/(\w+)\.py(.*)$")


class BrokenPromiseError(Exception):
    """Something that must hold does not."""


def promise(held: object, what: str) -> None:
    """Raise where ``held`` is false."""
    if not held:
        raise BrokenPromiseError(what)


@dataclass
class Reference:
    """The undisturbed run: the data folder after each step, its submission, and the seconds that each step took."""

    after: list[Path]
    submission: bytes
    seconds: list[float]


@dataclass
class Outcome:
    """What happened in one run."""

    fault: str
    happened: str
    recovery: str = ""
    lost: int = 0
    made_up: int = 0
    broken: str | None = None


@dataclass
class Case:
    """One data folder, and the commands over it.

    Attributes:
        folder: the data folder.
        notes: what recovery said of itself.
    """

    root: Path
    folder: Path
    reference: Reference
    chance: random.Random
    notes: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def submission(self) -> Path:
        """Where the submission goes."""
        return self.folder.with_name(self.folder.name + ".csv")

    def begin_after(self, steps: int) -> None:
        """Take over what the undisturbed run had after so many steps."""
        shutil.copytree(self.reference.after[steps], self.folder, dirs_exist_ok=True)

    def start(self, step: int, *flags: str, limit: int | None = None, if_stale: bool = True) -> Process:
        """Start a step as the one command does; without ``if_stale`` as a user does who is told to."""
        arguments = ["--data-dir", str(self.folder), *flags]
        if step == 2:
            arguments += ["--output", str(self.submission)]
        elif if_stale:
            arguments.append("--if-stale")
        self.runs += 1
        log = self.root / "logs" / f"{self.folder.name}-{self.runs}.log"
        return Process(self.root, STEPS[step], arguments, log, limit)

    def complete(self, *flags: str) -> None:
        """The one command: all steps; each must end well."""
        for step in range(3):
            ended = self.start(step, *flags).wait()
            promise(ended.code == 0, f"{STEPS[step]} ended with {ended.code}: {ended.output[-600:]}")
            self.note(ended)

    def note(self, ended: Ended) -> None:
        """Keep what a step said about reused work."""
        for pattern in (r"[\d,]+ of [\d,]+ reused", r"[\d,]+ scored, [\d,]+ kept", r"Removed \d+ half-written"):
            self.notes += [found for found in re.findall(pattern, ended.output) if not found.endswith(" 0 kept")]

    def check_result(self, outcome: Outcome) -> None:
        """The submission is that of the undisturbed run, and nothing half-written lies about."""
        expected, found = _rows(self.reference.submission), _rows(self.submission.read_bytes())
        outcome.lost = len(expected - found)
        outcome.made_up = len(found - expected)
        promise(self.submission.read_bytes() == self.reference.submission, "the submission differs")
        left = [str(path) for path in self.folder.rglob("*.tmp-*")] + [str(p) for p in self.folder.rglob("*.parts")]
        promise(not left, f"left behind: {left}")
        outcome.recovery = "; ".join(dict.fromkeys(self.notes)) or "same bytes"

    def check_in_between(self) -> None:
        """A submission on disk is whole at any moment."""
        if self.submission.exists():
            promise(self.submission.read_bytes() == self.reference.submission, "a submission that is not whole")


def _rows(submission: bytes) -> set[tuple[str, ...]]:
    return {tuple(row) for row in csv.reader(submission.decode("utf-8").splitlines())}


def one_clear_line(ended: Ended) -> str:
    """The error of a step that ended with exit code 2."""
    promise(ended.code == 2, f"exit code {ended.code}: {ended.output[-600:]}")
    promise("Traceback" not in ended.output, f"a traceback: {ended.output[-600:]}")
    promise(ended.last_line.startswith("ERROR: "), f"no error line: {ended.last_line}")
    return ended.last_line


def kill(case: Case, step: int) -> Outcome:
    """SIGKILL at a random moment of a step, once or a few times; then the same command."""
    case.begin_after(step)
    moments = []
    for _ in range(case.chance.choice((1, 1, 2, 3))):
        moment = case.chance.uniform(0.02, 0.98) * case.reference.seconds[step]
        process = case.start(step)
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        ended = process.wait()
        case.check_in_between()
        case.note(ended)
        moments.append(f"{moment:.1f} s" + ("" if ended.code == -signal.SIGKILL else " (had ended)"))
    return Outcome(f"SIGKILL in {STEPS[step][:2]}", f"killed after {', '.join(moments)}")


def stop(case: Case, step: int) -> Outcome:
    """SIGTERM or Ctrl-C at a random moment of a step."""
    case.begin_after(step)
    number = case.chance.choice((signal.SIGTERM, signal.SIGINT))
    process = case.start(step)
    time.sleep(case.chance.uniform(0.1, 0.8) * case.reference.seconds[step])
    asked = time.monotonic()
    os.kill(process.pid, number)
    ended = process.wait()
    took = time.monotonic() - asked
    case.check_in_between()
    if ended.code != 0:
        promise(took <= STOP_WITHIN, f"it took {took:.1f} s to stop")
        promise(ended.code == 128 + number, f"exit code {ended.code}: {ended.output[-600:]}")
        promise("give the same command again" in ended.last_line, f"no word on how to go on: {ended.last_line}")
    return Outcome(f"{number.name} in {STEPS[step][:2]}", f"exit code {ended.code} within {took:.1f} s")


def fill(case: Case, step: int) -> Outcome:
    """A disk too small for the data folder, which is then made larger; files of limited size where it cannot be."""
    whole = _bytes_in(case.reference.after[3])
    before = _bytes_in(case.reference.after[step])
    size = int(before * 1.02) + 40_000 + int(case.chance.uniform(0.05, 0.6) * (whole - before))
    case.folder.mkdir()
    mounted = _mount(case.folder, size)
    try:
        case.begin_after(step)
        largest = max(path.stat().st_size for path in case.reference.after[3].rglob("*") if path.is_file())
        limit = None if mounted else int(case.chance.uniform(0.05, 0.9) * largest)
        how = f"a disk of {size:,} bytes" if mounted else f"no file beyond {limit:,} bytes"
        happened = f"{how}: it was enough"
        for number in range(step, 3):
            ended = case.start(number, limit=limit).wait()
            case.check_in_between()
            if ended.code != 0:
                line = one_clear_line(ended)
                promise(
                    re.search(r"^ERROR: /\S+: the disk is full: .*[\d,]+ bytes are needed, [\d,]+ are free", line), line
                )
                happened = f"{how}: exit code 2 in {STEPS[number][:2]}, path and bytes named"
                break
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", str(case.folder)], check=True)
        outcome = Outcome("disk full", happened)
        case.complete()
        case.check_result(outcome)
        return outcome
    finally:
        if mounted:
            subprocess.run(["umount", str(case.folder)], check=True)


def _bytes_in(folder: Path) -> int:
    # A file takes whole pages.
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _mount(folder: Path, size: int) -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def corrupt(case: Case, _: int) -> Outcome:
    """A random byte of a random artefact flipped, or the file cut short or gone; the error's own fix is applied."""
    case.begin_after(3)
    files = sorted(path for path in case.folder.rglob("*") if path.is_file() and path.stat().st_size)
    files = [path for path in files if "raw" not in path.relative_to(case.folder).parts[:1]]
    # A kind of artefact first: the indices have most of the files.
    kind = case.chance.choice(sorted({path.relative_to(case.folder).parts[0] for path in files}))
    path = case.chance.choice([path for path in files if path.relative_to(case.folder).parts[0] == kind])
    data = bytearray(path.read_bytes())
    how = case.chance.choice(("flipped", "flipped", "flipped", "cut", "gone"))
    if how == "flipped":
        place = case.chance.randrange(len(data))
        data[place] ^= 1 << case.chance.randrange(8)
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: case.chance.randrange(len(data))])
    else:
        path.unlink()
    name = path.relative_to(case.folder)
    fixes = []
    for _ in range(6):
        ended = case.start(2, "--verify").wait()
        if ended.code == 0:
            break
        line = one_clear_line(ended)
        fix = _FIX.search(line)
        promise(fix, f"no fix in {line}")
        assert fix is not None
        fixes.append(fix[1][:2])
        mended = case.start(STEPS.index(fix[1]), *shlex.split(fix[2]), if_stale=False).wait()
        promise(mended.code == 0, f"the fix failed: {mended.output[-600:]}")
    said = f"exit code 2, mended by {', '.join(fixes)}" if fixes else "not needed or made again"
    return Outcome(f"byte {how}" if how == "flipped" else f"file {how}", f"{name}: {said}")


def two_at_once(case: Case, step: int) -> Outcome:
    """A second run over the same folder while the first works; then the first is killed and its lock is taken over."""
    case.begin_after(step)
    first = case.start(step)
    while not (case.folder / ".lock").exists() or not (case.folder / ".lock").read_text():
        time.sleep(0.01)
    line = one_clear_line(case.start(step).wait())
    promise(f"pid {first.pid} on " in line and " since 20" in line, f"the holder is not named: {line}")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    return Outcome(f"two in {STEPS[step][:2]}", "the second named the first (exit code 2); the first was killed")


Fault = Callable[[Case, int], Outcome]
# One round; the first three kill in every stage.
ROUND: Sequence[tuple[Fault, int]] = (
    (kill, 1), (kill, 2), (corrupt, 0), (kill, 0), (fill, 1), (stop, 2), (corrupt, 0), (kill, 1), (stop, 1),
    (two_at_once, 2), (kill, 2), (corrupt, 0), (fill, 2), (corrupt, 0), (fill, 0),
)  # fmt: skip


def run_case(case: Case, fault: Fault, step: int) -> Outcome:
    """One fault, the recovery, and every promise checked."""
    try:
        outcome = fault(case, step)
        if fault is not fill:
            case.complete()
            case.check_result(outcome)
        return outcome
    except (BrokenPromiseError, TimeoutError) as error:
        outcome = Outcome(f"{fault.__name__} in {STEPS[step][:2]}", "", broken=str(error).replace("\n", " | "))
        if case.submission.exists():
            expected, found = _rows(case.reference.submission), _rows(case.submission.read_bytes())
            outcome.lost, outcome.made_up = len(expected - found), len(found - expected)
        return outcome
