"""Speed of the cross-encoder: this project's engines and its peers on the same model and the same pairs.

Rounds are interleaved: each one runs every configuration once, so that a slow moment of the machine meets them all. A
short round that is not timed comes first. The scores of at most 2,000 pairs are compared with those of float32 torch.
Everything runs on one card unless --device cuda:all asks for more.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _cli import PROJECT_ROOT, main, positive_integer, set_up_threads

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer

import _bench
from _bench_peers import HALF_LOOP, OPENVINO_BACKEND, peers
from config import Settings
from src.core.artifacts import fingerprint, write_json
from src.core.errors import UserError
from src.engine.peak import ModelShape, last_layer_is_short, measured_peak
from src.insight.comparison import save_png
from src.insight.progress import progress_bar
from src.models.embedded_reranker import load_base_classifier
from src.models.resolve import EMBEDDED, ModelResolver

LENGTHS = ("mixed", "ru512", "short")
LOOP, REFERENCE = "loop", "torch, sorted"
PAIRS, PAIRS_ON_A_CARD = 2_000, 50_000

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
    add(
        "--pairs", type=positive_integer, metavar="N",
        help=f"(default: {PAIRS}; on a GPU {PAIRS_ON_A_CARD}, as fewer are over before a clock can tell)",
    )  # fmt: skip
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--lengths", choices=LENGTHS, default="mixed", help="of the passages (default: mixed)")
    lengths.add_argument(
        "--tokens", type=positive_integer, metavar="N", help="of each pair, about; in place of --lengths (default: off)"
    )
    add("--rounds", type=positive_integer, default=3, metavar="N", help="(default: 3)")
    add(
        "--device", default="auto",
        help="cuda is one card, cuda:1 another one; with cuda:all our engines use every card, the peers one "
        "(default: auto)",
    )  # fmt: skip
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


def _chosen(runs: Mapping[str, _bench.Ranker], only: Sequence[str] | None) -> dict[str, _bench.Ranker]:
    """The configurations that are asked for, and the loop.

    Raises:
        UserError: where one of them is unknown.
    """
    unknown = sorted(set(only or ()) - set(runs))
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such configuration. There are: {', '.join(runs)}.")
    return {label: score for label, score in runs.items() if only is None or label in {LOOP, *only}}


def _rounds(
    runs: Mapping[str, _bench.Ranker], work: _bench.Work, rounds: int
) -> tuple[dict[str, list[float]], dict[str, _bench.Floats]]:
    """Seconds of every round by configuration, and the scores of the last one."""
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    scores: dict[str, _bench.Floats] = {}
    few, _ = _bench.sample_of(work, _bench.WARM_UP_PAIRS)
    with progress_bar("Rounds", (rounds + 1) * len(runs)) as progress:
        # What is compiled, allocated or tuned at the first sight of a shape is no part of the speed.
        for score in runs.values():
            score(few)
            progress(1)
        for _ in range(rounds):
            for label, score in runs.items():
                took, scores[label] = _bench.timed(score, work)
                seconds[label].append(took)
                progress(1)
    return seconds, scores


def _operations(
    directory: Path, shape: ModelShape, lengths: npt.NDArray[np.int64], scorers: Mapping[str, Any]
) -> dict[str, float]:
    """Floating-point operations that each of our configurations computes; under ``loop`` those of the whole model."""
    tokens, squares = float(lengths.sum()), float((lengths**2).sum())
    found = {LOOP: shape.flops(tokens, squares)}
    for label, scorer in scorers.items():
        texts = len(lengths) if last_layer_is_short(directory, scorer.backend_name) else None
        found[label] = shape.flops(tokens, squares, texts)
    return found


def _arithmetic(scorers: Mapping[str, Any], device: str) -> dict[str, str]:
    """What each configuration multiplies in, where that is not float32."""
    peer = {OPENVINO_BACKEND: scorers["fast"].arithmetic} if device == "cpu" else {HALF_LOOP: "float16"}
    return peer | {label: scorer.arithmetic for label, scorer in scorers.items()}


def _show(results: Mapping[str, Mapping[str, Any]]) -> None:
    log.info("%-28s %7s %14s %8s %7s %6s %9s %9s %6s", "configuration", "ratio", "range", "pairs/s", "GFLOPS", "peak",
             "max error", "Spearman", "top 5")  # fmt: skip
    for label, one in results.items():
        log.info(
            "%-28s %7.2f %6.2f - %5.2f %8.1f %7.0f %5.0f%% %9.2g %9.5f %5.1f%%",
            label, one["ratio_to_loop"], one["range"][0], one["range"][1], one["pairs_per_second"], one["gflops"],
            100 * one["share_of_peak"], one["max_error"], one["spearman"], 100 * one["top5_agreement"],
        )  # fmt: skip


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Time every configuration, compare its scores with fp32 torch, print and save."""
    flags = _parser().parse_args(arguments)
    set_up_threads(settings.cpu_threads)
    device, peer_device = _bench.pick_devices(flags.device)
    threads = torch.get_num_threads()
    models = PROJECT_ROOT / "data" / "models"
    directory, model_fingerprint, name = _model(flags, ModelResolver(models, PROJECT_ROOT, "fail"))
    shape = ModelShape.of(directory)
    if shape is None:
        raise UserError(f"--model {name}: its config.json does not name its sizes, so its work cannot be counted.")
    scorers = _bench.our_scorers(directory, model_fingerprint, device, models / "openvino", threads)
    plain = scorers[REFERENCE]
    if flags.tokens is not None and flags.tokens > plain.max_length:
        raise UserError(f"--tokens {flags.tokens}: this model reads at most {plain.max_length} of a pair. Give fewer.")
    data = PROJECT_ROOT / "data"
    pairs = flags.pairs or (PAIRS if device == "cpu" else PAIRS_ON_A_CARD)
    work = _bench.make_work(data / "sample", plain.tokenizer, pairs, flags.lengths, tokens=flags.tokens)
    runs, missing = peers(directory, peer_device, plain.max_length, work)
    runs |= {label: _bench.run_scorer(scorer) for label, scorer in scorers.items()}
    chosen = _chosen(runs, flags.only)
    lengths = plain.pair_lengths(*(plain.tokenize(texts) for texts in (work.questions, work.passages)), work.pairs)
    which = flags.lengths if flags.tokens is None else f"{flags.tokens} tokens a pair"
    log.info(
        "%s, %d layers, %s pairs (%s), %.0f tokens each, device %s",
        name, shape.layers, f"{len(work.pairs):,}", which, lengths.mean(), device,
    )  # fmt: skip
    for label, reason in missing.items():
        log.info("left out: %s: %s", label, reason)
    sample, rows = _bench.sample_of(work, _bench.REFERENCE_PAIRS)
    reference = runs[REFERENCE](sample)
    seconds, scores = _rounds(chosen, work, flags.rounds)
    # Known at the end alone: a scorer whose values leave the range of float16 goes over to bfloat16.
    operations, arithmetic = _operations(directory, shape, lengths, scorers), _arithmetic(scorers, peer_device)
    kinds = {arithmetic.get(label, "float32") for label in chosen}
    peaks = {kind: measured_peak(peer_device, kind, threads) for kind in sorted(kinds, reverse=True)}
    log.info("peak: %s", ", ".join(f"{kind} {value / 1e9:,.0f} GFLOPS" for kind, value in peaks.items()))
    results: dict[str, dict[str, Any]] = {}
    for label, times in seconds.items():
        median, low, high = _bench.ratios(times, seconds[LOOP])
        kind, cards = arithmetic.get(label, "float32"), _bench.cards_of(scorers.get(label))
        speed = operations.get(label, operations[LOOP]) / float(np.median(times))
        results[label] = {
            "ratio_to_loop": median,
            "range": [low, high],
            "pairs_per_second": len(work.pairs) / float(np.median(times)),
            "gflops": speed / 1e9,
            "share_of_peak": speed / (peaks[kind] * cards),
            "arithmetic": kind,
            "cards": cards,
            **_bench.agreement(scores[label][rows], reference, work.candidates),
        }
    stem = flags.name or f"{datetime.now(UTC):%Y-%m-%d}-bench-rerank"
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _bench.commit(PROJECT_ROOT),
        "machine": {**_bench.machine(device), "peak_flops": peaks},
        "model": name, "layers": shape.layers, "lengths": which, "pairs": len(work.pairs),
        "tokens_per_pair": float(lengths.mean()), "rounds": flags.rounds, "left_out": missing,
        "reference": {
            "made_by": f"{REFERENCE}, float32", "pairs": len(rows), "questions": len(rows) // work.candidates,
            "drawn": "whole questions at random; max_error, spearman and top5_agreement are over these",
        },
    }  # fmt: skip
    write_json(data / "results" / f"{stem}.json", {**record, **results})
    _plot(data / "results" / f"{stem}.png", results, f"{name}, {shape.layers} layers, {which}, {device}")
    _show(results)
    log.info("Saved: %s", data / "results" / f"{stem}.json")


if __name__ == "__main__":
    main(run)
