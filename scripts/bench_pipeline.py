"""How the cost of a run grows: every stage but the two models, over made-up corpora of several sizes.

The models' own time is added from their measured speed on this machine, so that the table says which share of a run is
spent outside them.
"""

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _cli import PROJECT_ROOT, main, positive_integer, set_up_threads

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer

from _pipeline_bench import BATCH_SIZE, MAX_LENGTH, Sizes, make_files, run_stages
from config import Settings
from src.core.artifacts import write_json
from src.engine.devices import CpuEngine, pick_device
from src.engine.encoder import SentenceEncoder
from src.engine.pair_scorer import make_scorer
from src.insight.comparison import save_png
from src.insight.doctor import measure
from src.insight.profile import Profiler
from src.models.resolve import EMBEDDED, ModelResolver, ResolvedModel

LEGEND = (
    "Late interaction compares made-up vectors of as many tokens as the texts have. Where the vectors of all chunks "
    "exceed LATE_INTERACTION_GB, a run also makes those of its candidates: work of the bi-encoder, not in this table."
)
MEASURED_SECONDS = 4.0
_SAMPLE = 256

log = logging.getLogger("search")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_pipeline.py", description=__doc__)
    add = parser.add_argument
    add(
        "--questions",
        nargs="+",
        type=positive_integer,
        default=[1000, 10000],
        metavar="N",
        help="(default: 1000 10000)",
    )
    add(
        "--documents",
        nargs="+",
        type=positive_integer,
        default=[1000, 10000],
        metavar="N",
        help="(default: 1000 10000)",
    )
    add("--device", default="auto", help="of the models (default: auto)")
    add("--name", help="of the result under data/results (default: <date>-bench-pipeline)")
    return parser


def _model_speed(bi_encoder: ResolvedModel, reranker: ResolvedModel, folder: Path, device: str) -> dict[str, float]:
    """Tokens per second of the bi-encoder, pairs per second of the cross-encoder, on the made-up texts."""
    import pandas as pd

    cpu = CpuEngine("auto", PROJECT_ROOT / "data" / "models" / "openvino", torch.get_num_threads())
    texts = pd.read_csv(folder / "pages.csv", dtype=str, keep_default_na=False)["text"].str[:400].tolist()[:_SAMPLE]
    asked = pd.read_csv(folder / "questions.csv", dtype=str)["query"].tolist()[:_SAMPLE]
    encoder = SentenceEncoder(bi_encoder.directory, device, None, None, 512, cpu, bi_encoder.fingerprint)
    counts = encoder.token_counts(texts, "document").tolist()

    def encode(rows: npt.NDArray[np.int64]) -> None:
        encoder.encode([texts[row] for row in rows.tolist()], "document", 16)

    tokens = measure(encode, counts, 64, MEASURED_SECONDS).units_per_second
    scorer = make_scorer(
        reranker.directory, reranker.fingerprint, device, BATCH_SIZE, MAX_LENGTH, "fast", cpu
    )  # fmt: skip
    tables = scorer.tokenize(asked), scorer.tokenize(texts)
    pairs = np.stack([np.arange(_SAMPLE) % len(asked), np.arange(_SAMPLE) % len(texts)], axis=1).astype(np.int32)

    def score(rows: npt.NDArray[np.int64]) -> None:
        scorer.score(*tables, pairs[rows])

    return {
        "tokens_per_second": tokens,
        "pairs_per_second": measure(score, [1] * _SAMPLE, 64, MEASURED_SECONDS).units_per_second,
    }


def _plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    names = list(rows[0]["seconds"])
    labels = [f"{row['questions']:,} q\n{row['documents']:,} d" for row in rows]
    bottom = np.zeros(len(rows))
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
    for name in names:
        values = np.array([row["seconds"][name] for row in rows])
        axes.bar(labels, values, bottom=bottom, label=name)
        bottom += values
    axes.set_ylabel("seconds outside the models")
    axes.legend(fontsize=8)
    save_png(figure, path)


def _row(sizes: Sizes, profiler: Profiler, speed: dict[str, float]) -> dict[str, Any]:
    outside = sum(stage.seconds for stage in profiler.stages)
    models = sizes.tokens_encoded / speed["tokens_per_second"] + sizes.pairs / speed["pairs_per_second"]
    return {
        **asdict(sizes),
        "seconds": {stage.name: round(stage.seconds, 3) for stage in profiler.stages},
        "outside_seconds": outside,
        "model_seconds": models,
        "share_outside": outside / (outside + models),
        "peak_mib": max(stage.peak_mib for stage in profiler.stages),
    }


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Run every size, print a table, save JSON and a plot."""
    flags = _parser().parse_args(arguments)
    set_up_threads(settings.cpu_threads)
    device = pick_device(flags.device)
    models = PROJECT_ROOT / "data" / "models"
    resolver = ModelResolver(models, PROJECT_ROOT, "fail")
    bi_encoder = resolver.resolve(EMBEDDED["bi-encoder"], "bi-encoder")
    reranker = resolver.resolve(EMBEDDED["cross-encoder"], "cross-encoder")
    tokenizer = AutoTokenizer.from_pretrained(bi_encoder.directory, local_files_only=True)
    sample = PROJECT_ROOT / "data" / "sample"
    rows: list[dict[str, Any]] = []
    speed: dict[str, float] = {}
    for documents in flags.documents:
        for questions in flags.questions:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                make_files(sample, folder, documents, questions)
                speed = speed or _model_speed(bi_encoder, reranker, folder, device)
                profiler = Profiler()
                sizes = run_stages(folder, reranker.directory, tokenizer, profiler)
            row = _row(sizes, profiler, speed)
            rows.append(row)
            log.info(
                "%s questions, %s documents (%s chunks): %.1f s outside the models (%s), models about %.0f s, "
                "share outside %.2f %%, peak %.0f MiB",
                f"{questions:,}", f"{documents:,}", f"{sizes.chunks:,}", row["outside_seconds"],
                ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["seconds"].items()),
                row["model_seconds"], 100 * row["share_outside"], row["peak_mib"],
            )  # fmt: skip
    folder = PROJECT_ROOT / "data" / "results"
    stem = flags.name or f"{datetime.now(UTC):%Y-%m-%d}-bench-pipeline"
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(), "device": device, **speed,
        "legend": LEGEND,
    }  # fmt: skip
    write_json(folder / f"{stem}.json", {**record, "rows": rows})
    _plot(folder / f"{stem}.png", rows)
    log.info("%s", LEGEND)
    log.info("Saved: %s", folder / f"{stem}.json")


if __name__ == "__main__":
    main(run)
