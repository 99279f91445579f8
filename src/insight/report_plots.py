"""The pictures of a run's report: SVG images as data URIs, so that the page needs nothing beside itself."""

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

Ranks = npt.NDArray[np.int64]

UP, DOWN, SAME, LIMIT = "#0072B2", "#D55E00", "#777777", "#555555"
# More lines than this become pixels: as shapes they would make the page heavy.
MOST_SHAPES = 400
_STYLE = {
    "svg.fonttype": "path",  # no font is needed where the page is read
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.subplots()


def _data_uri(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def _depths(depth: int) -> list[int]:
    return [k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= depth]


def recall_curve(before: Ranks, after: Ranks | None, depth: int) -> str:
    """Share of the questions with a right page among the first k, and the ceiling of any reranker of the first K.

    Args:
        before, after: int64 [L], rank of the first right page; 0 where it is not in the list. ``after`` is ``None``
            where reranking is off.
        depth: K.
    """
    places = np.arange(1, depth + 1)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.4)
        if after is not None:
            axes.plot(
                places, _shares(after, places), color=UP, label="after reranking", linewidth=2, drawstyle="steps-post"
            )
        axes.plot(
            places,
            _shares(before, places),
            color=DOWN,
            label="stage one",
            linestyle="--",
            linewidth=2,
            drawstyle="steps-post",
        )
        ceiling = float((before > 0).mean())
        axes.axhline(ceiling, color=LIMIT, linestyle=":", label=f"ceiling {ceiling:.3f}")
        axes.axvline(5, color=LIMIT, linewidth=0.5)
        axes.set_xscale("log")
        axes.set_xticks(_depths(depth), [str(k) for k in _depths(depth)])
        axes.minorticks_off()
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("k: first pages that count (log scale)")
        axes.set_ylabel("questions with a right page")
        axes.grid(alpha=0.25)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9, handlelength=1.5,
            columnspacing=1.2,
        )  # fmt: skip
        return _data_uri(figure)


def _shares(ranks: Ranks, places: Ranks) -> npt.NDArray[np.float64]:
    counts = np.bincount(ranks[(ranks > 0) & (ranks <= len(places))], minlength=len(places) + 1)[1:]
    return np.cumsum(counts) / max(1, len(ranks))


def rank_moves(before: Ranks, after: Ranks, depth: int) -> str:
    """One line per question from the rank of its first right page in stage one to that after reranking.

    Args:
        before, after: int64 [L], as above; questions that have no right page in either list are left out.
    """
    drawn = (before > 0) & (after > 0)
    before, after = before[drawn], after[drawn]
    order = np.lexsort((before, np.log(after / np.maximum(before, 1))))
    before, after = before[order], after[order]
    places = np.arange(len(before))
    raster = len(before) > MOST_SHAPES
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.6)
        axes.axhspan(0.8, 5.5, color="#009E73", alpha=0.12, linewidth=0)
        for chosen, colour in ((after < before, UP), (after > before, DOWN)):
            axes.vlines(places[chosen], before[chosen], after[chosen], color=colour, linewidth=1.2, rasterized=raster)
        for chosen, colour, name in (
            (after < before, UP, "up"), (after > before, DOWN, "down"), (after == before, SAME, "as it was"),
        ):  # fmt: skip
            axes.scatter(
                places[chosen], after[chosen], s=9, color=colour, rasterized=raster, zorder=3,
                label=f"{name}: {int(chosen.sum()):,}",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(max(depth, 6) * 1.15, 0.8)
        axes.set_yticks(_depths(depth), [str(k) for k in _depths(depth)])
        axes.minorticks_off()
        axes.set_xticks([])
        axes.set_xlabel("questions, by how far they moved")
        axes.set_ylabel("rank of the first right page")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, handletextpad=0.1)
        return _data_uri(figure)


def origins(counts: dict[str, int]) -> str:
    """Where in stage one the pages of the final top stood.

    Args:
        counts: range of ranks -> number of pages.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2.8)
        # Seven labels have to stand side by side on a phone.
        short = [name.replace(" to ", "-").replace(" or more", "+") for name in counts]
        bars = axes.bar(short, list(counts.values()), color=UP)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=9)
        axes.set_xlabel("rank in stage one")
        axes.set_ylabel("pages of the final first five")
        axes.margins(y=0.12)
        return _data_uri(figure)
