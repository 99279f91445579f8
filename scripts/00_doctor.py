"""Step 0, whenever something looks wrong: what this machine has, what would run, what is stale, how long it takes."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

from _cli import add_data_flags, log_error, main, set_up_threads

from _doctor import PARTS, Part, Patient, examine
from _doctor_time import time_needed
from config import Settings
from src.insight.doctor import Finding

EXIT_WOULD_FAIL = 1
TIME: Part = ("Time of ./run_cross_encoder_search.sh", time_needed)

log = logging.getLogger("search")


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Examine and print; exit code 1 where the run would fail."""
    parser = argparse.ArgumentParser(prog="00_doctor.py", description=__doc__)
    add_data_flags(parser, settings)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON alone (default: as text)")
    flags = parser.parse_args(arguments)
    set_up_threads(settings.cpu_threads)
    # What the models' search says on the way comes as a finding.
    level = log.level
    logging.disable(logging.WARNING)
    try:
        parts = list(examine(Patient(settings, flags), (*PARTS, TIME)))
    finally:
        logging.disable(logging.NOTSET)
        log.setLevel(level)
    if flags.json:
        _print_json(parts)
    for title, found in parts:
        if flags.json or not found:
            continue
        log.info("%s", title)
        for finding in found:
            log.info("  %s", finding)
    failed = sum(finding.level == "FAIL" for _, found in parts for finding in found)
    if not flags.json:
        log.info("%s", f"The run would fail: {failed} reason(s), marked FAIL." if failed else "The run should work.")
    if failed:
        sys.exit(EXIT_WOULD_FAIL)


def _print_json(parts: Sequence[tuple[str, Sequence[Finding]]]) -> None:
    sys.stdout.write(json.dumps({title: [asdict(f) for f in found] for title, found in parts}, ensure_ascii=False))
    sys.stdout.write("\n")


def tell_error(message: str) -> None:
    """An error that kept the examination from starting, in the form that was asked for."""
    if "--json" in sys.argv:
        _print_json([("Configuration", [Finding("FAIL", "settings", message)])])
    else:
        log_error(message)


if __name__ == "__main__":
    main(run, error_code=EXIT_WOULD_FAIL, tell_error=tell_error)
