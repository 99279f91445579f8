"""A comparison as text, tables and pictures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import atomic_path, write_json
from src.core.types import Corpus
from src.quality.compare import POINTS_TO_SHOW, Comparison, Difference, Loss, PairedComparison, RunSummary
from src.quality.statistics import Interval

_FILE_NAME = re.compile(r"[^\w.-]+")
# With more runs than this the runs are the rows.
_WIDEST = 5
_RANK_BINS = (1, 2, 3, 4, 6, 11, 21, 51, 101)


def _percent(value: Interval) -> str:
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _points(value: Interval) -> str:
    return f"{100 * value.mean:+.2f} [{100 * value.low:+.2f}, {100 * value.high:+.2f}]"


def markdown(comparison: Comparison, corpus: Corpus, notes: list[str]) -> str:
    """The whole comparison as markdown: metrics, paired tests, what is left to reranking, the worst losses in full."""
    return "\n".join(_lines(comparison, corpus, notes)) + "\n"


def _lines(comparison: Comparison, corpus: Corpus, notes: list[str]) -> Iterator[str]:
    yield "# Comparison of runs"
    yield ""
    yield f"{comparison.labelled:,} labelled questions; {comparison.unlabelled:,} without labels are not measured."
    yield "Means with 95 % bootstrap intervals over questions. A labelled question that a run missed counts as 0."
    if comparison.left_out:
        shallowest = min(comparison.runs, key=lambda run: run.depth)
        yield (
            f"Left out, because {shallowest.name} lists no more than {shallowest.depth} documents per question: "
            f"{', '.join(comparison.left_out)}."
        )
    for note in notes:
        yield f"{note}"
    yield ""
    yield from _table(comparison.runs)
    for pair in comparison.pairs:
        yield from _pair_lines(pair, corpus, "Hit@5" in comparison.left_out)


def _table(runs: Sequence[RunSummary]) -> Iterator[str]:
    # Of a list of five nothing is left below the fifth place.
    gaps = [f"{run.gap:.4f}" if run.depth > 5 else "-" for run in runs]
    rows = [["metric", *(run.name for run in runs)]]
    rows += [[metric, *(_percent(run.metrics[metric]) for run in runs)] for metric in runs[0].metrics]
    rows += [["depth K", *(str(run.depth) for run in runs)], ["right page among K, missed by Hit@5", *gaps]]
    if len(runs) > _WIDEST:
        rows = [list(row) for row in zip(*rows, strict=True)]
    yield f"| {' | '.join(rows[0])} |"
    yield "|---" * len(rows[0]) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows[1:])


def gain_lines(comparison: Comparison, metrics: Sequence[str] = ("Hit@1", "Hit@5", "MRR@10")) -> Iterator[str]:
    """One line per later run and metric: before, after, points with their interval, and whether the gain is shown."""
    means = {run.name: run.metrics for run in comparison.runs}
    for pair in comparison.pairs:
        for d in pair.differences:
            if d.metric in metrics:
                before, after = means[pair.before][d.metric].mean, means[pair.after][d.metric].mean
                yield (
                    f"{pair.before} -> {pair.after}: {d.metric} {before:.4f} -> {after:.4f}, {_points(d.change)} "
                    f"points, p {d.p:.3f} ({_verdict(d)})"
                )


def _verdict(difference: Difference) -> str:
    if difference.p_adjusted >= 0.05:
        return "not shown"
    return "better" if difference.change.mean > 0 else "worse"


def _pair_lines(pair: PairedComparison, corpus: Corpus, too_shallow: bool) -> Iterator[str]:
    yield ""
    yield f"## {pair.before} -> {pair.after}"
    yield ""
    yield "| metric | change, points | wins / losses / ties | test | p | p (Holm) | |"
    yield "|---|---|---|---|---|---|---|"
    for d in pair.differences:
        yield (
            f"| {d.metric} | {_points(d.change)} | {d.wins} / {d.losses} / {d.ties} | {d.test} | {d.p:.4f} | "
            f"{d.p_adjusted:.4f} | {_verdict(d)} |"
        )
    yield ""
    if too_shallow:
        yield "How many labels a difference in Hit@5 needs cannot be told from lists shorter than that."
    elif pair.labels_needed is None:
        yield "The two runs hit the same questions at 5: how many labels a difference needs cannot be told."
    else:
        yield (
            f"To show {POINTS_TO_SHOW:g} points of Hit@5 (95 %, power 80 %) takes about {pair.labels_needed:,} "
            "labelled questions, as often as these two runs differ."
        )
    if pair.worst_losses:
        yield ""
        yield f"### The {len(pair.worst_losses)} worst losses"
        for loss in pair.worst_losses:
            yield from _loss_lines(loss, corpus)


def _loss_lines(loss: Loss, corpus: Corpus) -> Iterator[str]:
    after = str(loss.rank_after) if loss.rank_after else "not in the list"
    yield ""
    yield f"**{loss.query_id}**: {_one_line(loss.question)}"
    yield f"- rank {loss.rank_before} -> {after}"
    for title, ids in (("right", loss.right), ("now above it", loss.replaced_by)):
        for doc_id in ids:
            row = corpus.row_of[doc_id]
            text = corpus.titles[row] or corpus.texts[row]
            yield f"- {title}: {doc_id} {_one_line(text)[:120]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def save(comparison: Comparison, corpus: Corpus, folder: Path, record: dict[str, Any], notes: list[str]) -> list[Path]:
    """Write ``compare.json``, ``compare.md`` and one PNG per plot into ``folder``; returns their paths."""
    plain = asdict(comparison)
    plain["ranks"] = {name: ranks.tolist() for name, ranks in comparison.ranks.items()}
    write_json(folder / "compare.json", {**record, "notes": notes, **plain})
    with atomic_path(folder / "compare.md") as temporary:
        temporary.write_text(markdown(comparison, corpus, notes), encoding="utf-8")
    return [folder / "compare.json", folder / "compare.md", *_plots(comparison, folder)]


def _plots(comparison: Comparison, folder: Path) -> Iterator[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    # The default ten colours would come twice in a sweep.
    colours = mpl.colormaps["tab20"](range(20))
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.set_prop_cycle(color=colours)
    metrics = list(comparison.runs[0].metrics)
    width = 0.8 / len(comparison.runs)
    for i, run in enumerate(comparison.runs):
        means = np.array([run.metrics[m].mean for m in metrics])
        errors = np.array(
            [[run.metrics[m].mean - run.metrics[m].low, run.metrics[m].high - run.metrics[m].mean] for m in metrics]
        )
        places = np.arange(len(metrics)) + (i - (len(comparison.runs) - 1) / 2) * width
        axes.bar(places, means, width, yerr=errors.T, capsize=2, label=run.name)
    axes.set_xticks(np.arange(len(metrics)), metrics, rotation=30, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("mean, 95 % interval")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=8)
    yield _finish(figure, folder / "metrics.png")

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.set_prop_cycle(color=colours)
    for run in comparison.runs:
        ranks = comparison.ranks[run.name]
        depths = np.arange(1, run.depth + 1)
        axes.plot(depths, [float(((ranks > 0) & (ranks <= k)).mean()) for k in depths], label=run.name)
    axes.set_xscale("log")
    axes.set_xlabel("k (log scale)")
    axes.set_ylabel("Hit@k: questions with a right page in the first k")
    axes.grid(alpha=0.3)
    axes.legend()
    yield _finish(figure, folder / "hit-at-k.png")

    before = comparison.runs[0].name
    for pair in comparison.pairs:
        yield _finish(
            _moves(comparison.ranks[before], comparison.ranks[pair.after], pair),
            folder / f"moves-{_FILE_NAME.sub('-', pair.after)}.png",
        )


def _moves(before: np.ndarray, after: np.ndarray, pair: PairedComparison) -> Any:
    from matplotlib import pyplot

    labels = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(_RANK_BINS)]
    labels.append("none")
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (_bin(before), _bin(after)), 1)
    figure, axes = pyplot.subplots(figsize=(6, 5.5))
    axes.imshow(np.log1p(counts), cmap="Blues")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            dark = np.log1p(count) > 0.6 * np.log1p(counts.max())
            axes.text(j, i, str(count), ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=45)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel(f"rank of the first right page, {pair.after}")
    axes.set_ylabel(f"rank of the first right page, {pair.before}")
    axes.set_title("questions; left of the diagonal: better")
    return figure


def _bin(ranks: np.ndarray) -> np.ndarray:
    last = len(_RANK_BINS) - 1
    return np.where(ranks == 0, last, np.minimum(np.digitize(ranks, _RANK_BINS) - 1, last))


def _finish(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)
    return path


def save_png(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
