"""Stage one against the reranked run on several labelled sets; one table, and all figures as JSON.

A set is a folder with websites.csv, questions.csv and qrels.csv. Each one is prepared, searched and compared by the
numbered scripts, with the settings as they are; a questions CSV with a random part of the labelled questions keeps the
work within bounds.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _cli import PROJECT_ROOT, main, positive_integer

import pandas as pd

from _bench import commit, machine
from config import Settings
from src.core.artifacts import atomic_path, library_versions, write_json
from src.core.errors import UserError
from src.engine.devices import pick_device

FILES = ("websites.csv", "questions.csv", "qrels.csv")
HEADER = (
    "| set | documents | questions | K | Hit@1 off -> on | points (95 %) | p | Hit@5 off -> on | points (95 %) | p | "
    "Recall@K | cross-encoder alone, Hit@1 | stage one + cross-encoder, s | pairs read |"
)

log = logging.getLogger("search")


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_quality.py", description=__doc__)
    add = parser.add_argument
    add("--datasets", type=Path, required=True, metavar="DIR", help="folder that holds the folders of the sets")
    add("--sets", nargs="+", metavar="NAME", help="(default: every folder with the three files)")
    add(
        "--questions", type=positive_integer, default=200, metavar="N",
        help="labelled questions drawn per set, always the same ones (default: 200)",
    )  # fmt: skip
    add(
        "--candidates", type=positive_integer, default=settings.reranker_candidate_k, metavar="K",
        help=f"(default: {settings.reranker_candidate_k})",
    )  # fmt: skip
    add("--model", default=settings.cross_encoder_model, help=f"(default: {settings.cross_encoder_model})")
    add(
        "--work-dir", type=Path, default=PROJECT_ROOT / "data" / "bench", metavar="DIR",
        help="where the sets are prepared; kept for the next time (default: data/bench)",
    )  # fmt: skip
    add("--name", help="folder of the result under data/results (default: <date>-bench-quality)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    return parser


def draw_questions(source: Path, target: Path, count: int, seed: int) -> int:
    """Write ``questions.csv`` and ``qrels.csv`` of at most ``count`` labelled questions; returns how many.

    Raises:
        UserError: where no question has a label.
    """
    questions = pd.read_csv(source / "questions.csv", dtype=str, keep_default_na=False)
    labels = pd.read_csv(source / "qrels.csv", dtype=str, keep_default_na=False)
    labelled = questions[questions["q_id"].isin(labels["q_id"])]
    if labelled.empty:
        raise UserError(f"{source}: no question has a label. Check qrels.csv.")
    drawn = labelled.sample(n=min(count, len(labelled)), random_state=seed).sort_index()
    target.mkdir(parents=True, exist_ok=True)
    for name, frame in (("questions.csv", drawn), ("qrels.csv", labels[labels["q_id"].isin(drawn["q_id"])])):
        with atomic_path(target / name) as temporary:
            frame.to_csv(temporary, index=False)
    return len(drawn)


def call(script: str, *arguments: str) -> None:
    """Run a numbered script; UserError where it fails."""
    command = [sys.executable, str(PROJECT_ROOT / "scripts" / script), *arguments]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"scripts/{script} ended with exit code {status}; its last lines say why.")


def measure(source: Path, work: Path, flags: argparse.Namespace, weight: float) -> dict[str, Any]:
    """The comparison of one set: off, blended, and the cross-encoder alone."""
    drawn = draw_questions(source, work / "drawn", flags.questions, flags.seed)
    inputs = ["--data-dir", str(work), "--corpus", str(source / "websites.csv")]
    inputs += ["--questions", str(work / "drawn" / "questions.csv"), "--labels", str(work / "drawn" / "qrels.csv")]
    log.info("%s: %d questions", source.name, drawn)
    call("01_preprocess.py", *inputs)
    call("02_build_indices.py", *inputs)
    call(
        "05_compare.py", *inputs, "--models", flags.model, "--candidates", str(flags.candidates),
        "--weights", f"{weight:g}", "1", "--name", "bench",
    )  # fmt: skip
    found: dict[str, Any] = json.loads((work / "results" / "bench" / "compare.json").read_text(encoding="utf-8"))
    return {"set": source.name, "documents": _documents(source), **found}


def _documents(source: Path) -> int:
    return len(pd.read_csv(source / "websites.csv", usecols=["web_id"], dtype=str))


def table_row(found: Mapping[str, Any], candidates: int) -> str:
    """One line of the table.

    Args:
        found: a saved comparison whose runs are: off, blended, alone.
        candidates: K.
    """
    off, on, alone = (run["metrics"] for run in found["runs"])
    differences = {difference["metric"]: difference for difference in found["pairs"][0]["differences"]}
    cells = [found["set"], f"{found['documents']:,}", f"{found['labelled']:,}", str(candidates)]
    for metric in ("Hit@1", "Hit@5"):
        change = differences[metric]["change"]
        points = [f"{100 * change[key]:+.1f}" for key in ("mean", "low", "high")]
        cells += [
            f"{off[metric]['mean']:.4f} -> {on[metric]['mean']:.4f}",
            f"{points[0]} ({points[1]} to {points[2]})",
            f"{differences[metric]['p']:.3f}",
        ]
    cells += [f"{found['runs'][0]['gap'] + off['Hit@5']['mean']:.4f}", f"{alone['Hit@1']['mean']:.4f}"]
    cells += _time_and_pairs(found["profile"]["stages"])
    return "| " + " | ".join(cells) + " |"


def _time_and_pairs(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Wall time of stage one and of the cross-encoder without its loading, and how many pairs that was."""
    seconds = {stage["name"]: stage["seconds"] for stage in stages if stage["name"] != "load"}
    second = seconds.pop("tokenise") + seconds.pop("rerank")
    pairs = next(stage["items"] for stage in stages if stage["name"] == "rerank")
    return [f"{sum(seconds.values()):.0f} + {second:.0f}", f"{pairs:,}"]


def mean_gain(found: Sequence[Mapping[str, Any]], metric: str) -> float:
    """Mean over sets of the change in a metric, in points."""
    changes = [
        difference["change"]["mean"]
        for one in found
        for difference in one["pairs"][0]["differences"]
        if difference["metric"] == metric
    ]
    return float(100 * sum(changes) / len(changes))


def _made_from(settings: Settings, flags: argparse.Namespace) -> dict[str, Any]:
    """When, where and from what the figures came."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(PROJECT_ROOT),
        "machine": machine(pick_device(settings.device)), "model": flags.model, "candidates": flags.candidates,
        "questions": flags.questions, "seed": flags.seed, "settings": settings.snapshot(),
        "libraries": library_versions(),
    }  # fmt: skip


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Measure every set, print and save the table."""
    flags = _parser(settings).parse_args(arguments)
    names = flags.sets or sorted(
        path.name for path in flags.datasets.glob("*") if all((path / name).is_file() for name in FILES)
    )
    missing = [flags.datasets / name / file for name in names for file in FILES]
    missing = [path for path in missing if not path.is_file()]
    if missing or not names:
        raise UserError(f"{missing[0] if missing else flags.datasets}: no such set. A set holds {', '.join(FILES)}.")
    folder = PROJECT_ROOT / "data" / "results" / (flags.name or f"{datetime.now(UTC):%Y-%m-%d}-bench-quality")
    record, found = _made_from(settings, flags), []
    for name in names:
        found.append(measure(flags.datasets / name, flags.work_dir / name, flags, settings.reranker_blend_weight))
        # What is done is on disk before the next set starts.
        write_json(folder / "bench.json", {**record, "sets": [_brief(one) for one in found]})
    lines = [HEADER, "|---" * HEADER.count(" | ") + "|---|", *(table_row(one, flags.candidates) for one in found)]
    lines += ["", f"Mean change over {len(found)} sets: Hit@1 {mean_gain(found, 'Hit@1'):+.2f}, "]
    lines[-1] += f"Hit@5 {mean_gain(found, 'Hit@5'):+.2f} points. Blend weight {settings.reranker_blend_weight:g}."
    with atomic_path(folder / "bench.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines:
        log.info("%s", line)
    log.info("Saved: %s", folder)


def _brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but texts and ranks of single questions, which stay in the work folder."""
    pairs = [{key: value for key, value in pair.items() if key != "worst_losses"} for pair in found["pairs"]]
    kept = {key: value for key, value in found.items() if key not in {"ranks", "settings"}}
    return kept | {"pairs": pairs}


if __name__ == "__main__":
    main(run)
