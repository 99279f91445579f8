"""Speed of the cross-encoder: this project's engines and its peers on the same model and the same pairs.

Rounds are interleaved: each one runs every configuration once, so that a slow moment of the machine meets them all.
"""

import argparse
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _cli import PROJECT_ROOT, main, positive_integer, set_up_threads

import numpy as np
import torch
from transformers import AutoTokenizer

import _bench
from _bench_peers import OPENVINO_BACKEND, peers
from config import Settings
from src.core.artifacts import fingerprint, write_json
from src.core.errors import UserError
from src.engine.devices import pick_device
from src.engine.peak import ModelShape, measured_peak
from src.insight.comparison import save_png
from src.insight.progress import progress_bar
from src.models.embedded_reranker import load_base_classifier
from src.models.resolve import EMBEDDED, ModelResolver

LENGTHS = ("mixed", "ru512", "short")
LOOP = "loop"

log = logging.getLogger("search")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_rerank.py", description=__doc__)
    add = parser.add_argument
    add("--model", default=EMBEDDED["cross-encoder"], help=f"(default: {EMBEDDED['cross-encoder']})")
    add(
        "--layers", type=positive_integer, metavar="N",
        help="instead of --model: the lowest N layers of the embedded bi-encoder with an untrained head, for speed "
        "alone; its scores are too close together for a meaningful top 5",
    )  # fmt: skip
    add("--pairs", type=positive_integer, default=2000, metavar="N", help="(default: 2000)")
    add("--lengths", choices=LENGTHS, default="mixed", help="of the passages (default: mixed)")
    add("--rounds", type=positive_integer, default=3, metavar="N", help="(default: 3)")
    add("--device", default="auto", help="(default: auto)")
    add("--only", nargs="+", metavar="NAME", help="configurations beside the loop (default: all)")
    add("--name", help="of the result under data/results (default: <date>-bench-rerank)")
    return parser


def _model(flags: argparse.Namespace, resolver: ModelResolver) -> tuple[Path, str, str]:
    """Directory, fingerprint and name of the model."""
    if flags.layers is None:
        model = resolver.resolve(flags.model, "cross-encoder")
        return model.directory, model.fingerprint, model.used
    base = resolver.resolve(EMBEDDED["bi-encoder"], "bi-encoder")
    folder = PROJECT_ROOT / "data" / "models" / f"bench-{flags.layers}-layers"
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        load_base_classifier(base.directory, range(flags.layers)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base.directory, local_files_only=True).save_pretrained(folder)
    return folder, fingerprint(["bench", base.fingerprint, flags.layers]), folder.name


def _plot(path: Path, results: Mapping[str, Any], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 * len(results) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    names = list(results)
    values = [results[name]["ratio_to_loop"] for name in names]
    spread = [
        [value - results[name]["range"][0] for name, value in zip(names, values, strict=True)],
        [results[name]["range"][1] - value for name, value in zip(names, values, strict=True)],
    ]
    axes.barh(names, values, xerr=spread, color="#4878a8", ecolor="#333333", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as one predict call per question (median and range of rounds)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    save_png(figure, path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Time every configuration, compare its scores with fp32 torch, print and save."""
    flags = _parser().parse_args(arguments)
    set_up_threads(settings.cpu_threads)
    device = pick_device(flags.device)
    models = PROJECT_ROOT / "data" / "models"
    directory, model_fingerprint, name = _model(flags, ModelResolver(models, PROJECT_ROOT, "fail"))
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    work = _bench.make_work(PROJECT_ROOT / "data" / "sample", tokenizer, flags.pairs, flags.lengths)
    scorers = _bench.our_scorers(directory, model_fingerprint, device, models / "openvino", torch.get_num_threads())
    runs, missing = peers(directory, device, scorers["exact"].max_length, work)
    runs |= {label: _bench.run_scorer(scorer, work) for label, scorer in scorers.items()}
    if flags.only:
        unknown = sorted(set(flags.only) - set(runs))
        if unknown:
            raise UserError(f"--only {unknown[0]}: no such configuration. There are: {', '.join(runs)}.")
        runs = {label: score for label, score in runs.items() if label in {LOOP, *flags.only}}
    lengths = scorers["exact"].pair_lengths(
        *(scorers["exact"].tokenize(t) for t in (work.questions, work.passages)), work.pairs
    )
    shape = ModelShape.of(directory)
    if shape is None:
        raise UserError(f"--model {name}: its config.json does not name its sizes, so its work cannot be counted.")
    flops = shape.flops(float(lengths.sum()), float((lengths**2).sum()))
    peaks = {
        kind: measured_peak(device, kind, torch.get_num_threads())
        for kind in sorted({"float32", *(scorer.arithmetic for scorer in scorers.values())}, reverse=True)
    }
    log.info(
        "%s, %d layers, %s pairs (%s), %.0f tokens each, device %s, peak %s",
        name, shape.layers, f"{len(work.pairs):,}", flags.lengths, lengths.mean(), device,
        ", ".join(f"{kind} {value / 1e9:,.0f} GFLOPS" for kind, value in peaks.items()),
    )  # fmt: skip
    for label, reason in missing.items():
        log.info("left out: %s: %s", label, reason)
    _, reference = _bench.timed(_bench.run_scorer(scorers["torch, sorted"], work))
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    scores: dict[str, Any] = {}
    with progress_bar("Rounds", flags.rounds * len(runs)) as progress:
        for _ in range(flags.rounds):
            for label, score in runs.items():
                took, scores[label] = _bench.timed(score)
                seconds[label].append(took)
                progress(1)
    arithmetic = {label: scorer.arithmetic for label, scorer in scorers.items()}
    arithmetic[OPENVINO_BACKEND] = scorers["fast"].arithmetic
    results: dict[str, dict[str, Any]] = {}
    for label, times in seconds.items():
        median, low, high = _bench.ratios(times, seconds[LOOP])
        kind = arithmetic.get(label, "float32")
        speed = flops / float(np.median(times))
        results[label] = {
            "ratio_to_loop": median,
            "range": [low, high],
            "pairs_per_second": len(work.pairs) / float(np.median(times)),
            "gflops": speed / 1e9,
            "share_of_peak": speed / peaks[kind],
            "arithmetic": kind,
            **_bench.agreement(scores[label], reference, work.candidates),
        }
    folder = PROJECT_ROOT / "data" / "results"
    stem = flags.name or f"{datetime.now(UTC):%Y-%m-%d}-bench-rerank"
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "device": device, "peak_flops": peaks},
        "model": name, "layers": shape.layers, "lengths": flags.lengths, "pairs": len(work.pairs),
        "tokens_per_pair": float(lengths.mean()), "rounds": flags.rounds, "left_out": missing,
    }  # fmt: skip
    write_json(folder / f"{stem}.json", {**record, **results})
    _plot(folder / f"{stem}.png", results, f"{name}, {shape.layers} layers, {flags.lengths}, {device}")
    log.info("%-28s %7s %14s %8s %7s %6s %9s %9s %6s", "configuration", "ratio", "range", "pairs/s", "GFLOPS", "peak",
             "max error", "Spearman", "top 5")  # fmt: skip
    for label, one in results.items():
        log.info(
            "%-28s %7.2f %6.2f - %5.2f %8.1f %7.0f %5.0f%% %9.2g %9.5f %5.1f%%",
            label, one["ratio_to_loop"], one["range"][0], one["range"][1], one["pairs_per_second"], one["gflops"],
            100 * one["share_of_peak"], one["max_error"], one["spearman"], 100 * one["top5_agreement"],
        )  # fmt: skip
    log.info("Saved: %s", folder / f"{stem}.json")


if __name__ == "__main__":
    main(run)
