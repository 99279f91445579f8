"""``python -m tests.faults --runs 30 --seed 0``: faults, recoveries, and one summary line."""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from .bench import STEPS, import_libraries, make_project
from .harness import ROUND, Case, Outcome, Reference, run_case

SIZES = {"small": (60, 12), "large": (150, 60)}  # documents, questions


def _undisturbed(root: Path) -> Reference:
    reference = Reference([root / "after-0"], b"", [])
    shutil.copytree(root / "raw", root / "after-0" / "raw")
    case = Case(root, root / "undisturbed", reference, random.Random(0))
    case.begin_after(0)
    for step in range(3):
        ended = case.start(step).wait()
        if ended.code != 0:
            sys.exit(f"the undisturbed run failed in {STEPS[step]}: {ended.output[-2000:]}")
        reference.seconds.append(ended.seconds)
        reference.after.append(root / f"after-{step + 1}")
        shutil.copytree(case.folder, reference.after[-1])
    reference.submission = case.submission.read_bytes()
    return reference


def _line(number: int, outcome: Outcome) -> str:
    result = f"BROKEN: {outcome.broken}" if outcome.broken else outcome.recovery
    return f"{number:>3}  {outcome.fault:<14}  {outcome.happened:<96}  {result}"


def main() -> int:
    """Run the faults; the exit code is 0 where every promise held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, metavar="N", help="faults to try (default: 30)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of moments and places (default: 0)")
    parser.add_argument("--size", choices=SIZES, default="large", help="of the corpus (default: large)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of broken runs (default: off)")
    flags = parser.parse_args()
    import_libraries()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    (root / "logs").mkdir()
    outcomes = []
    try:
        make_project(root, *SIZES[flags.size], flags.seed)
        reference = _undisturbed(root)
        seconds = ", ".join(f"{step[:2]} {s:.1f} s" for step, s in zip(STEPS, reference.seconds, strict=True))
        print(f"Undisturbed run: {seconds}. Folder: {root}", flush=True)  # noqa: T201
        for number in range(1, flags.runs + 1):
            fault, step = ROUND[(number - 1) % len(ROUND)]
            case = Case(root, root / f"run-{number}", reference, random.Random(f"{flags.seed}-{number}"))
            outcomes.append(run_case(case, fault, step))
            print(_line(number, outcomes[-1]), flush=True)  # noqa: T201
            if not outcomes[-1].broken or not flags.keep:
                shutil.rmtree(case.folder, ignore_errors=True)
    finally:
        if not flags.keep:
            shutil.rmtree(root, ignore_errors=True)
    broken = sum(outcome.broken is not None for outcome in outcomes)
    lost, made_up = sum(o.lost for o in outcomes), sum(o.made_up for o in outcomes)
    print(  # noqa: T201
        f"{len(outcomes)} runs, {len(outcomes) - broken} recovered, {lost} rows lost, {made_up} rows made up"
    )
    return 1 if broken or lost or made_up else 0


if __name__ == "__main__":
    sys.exit(main())
