"""The result of a run, in the words that users grep for."""

from collections.abc import Iterator, Sequence

from src.quality.evaluate import Evaluation
from src.quality.fit import BlendFit, FusionFit
from src.quality.statistics import Interval


def hit_lines(
    before: Evaluation | None,
    after: Evaluation | None,
    reranked: bool,
    warnings: Sequence[str],
    no_labels: str,
    fit: BlendFit | None = None,
) -> Iterator[str]:
    """``Hit@5: 0.3456 (...)``, other metrics on further lines, and every warning beside them.

    Args:
        before: metrics of stage one.
        after: metrics of the final run.
        reranked: whether a cross-encoder had a say.
        warnings: model swaps.
        no_labels: why nothing could be measured, where that is so.
        fit: the fitted blend, where one was asked for.
    """
    if before is None or after is None:
        yield f"Hit@5: not measured (no labels at {no_labels})"
    else:
        yield _hit_line(before, after, reranked)
        names = ("Hit@1", "Hit@10", "MRR@10", "nDCG@10")
        if reranked:
            yield "  " + "  ".join(f"{n} {before.metrics[n]:.4f} -> {after.metrics[n]:.4f}" for n in names)
        else:
            yield "  " + "  ".join(f"{n} {after.metrics[n]:.4f}" for n in names)
    if fit is not None:
        folds = ", ".join(f"{weight:g}" for weight in fit.fold_weights)
        yield (
            f"  Blend weight fitted: {fit.weight:g} (without each fold: {folds}). Hit@5 on questions that did not "
            f"choose their weight, over the configured {fit.configured:g}: {fit.before:.4f} -> {fit.after:.4f}, "
            f"{_gain(fit.gain)}. " + _in_force(fit)
        )
    for warning in warnings:
        yield f"  WARNING: {warning}"


def fusion_line(fit: FusionFit, names: Sequence[str]) -> str:
    """The fitted fusion in one line; ``names`` are those of its runs."""
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, fit.weights, strict=True))
    return (
        f"Fusion fitted: {fit.method}, {weights}. Hit@5 of stage one on questions that did not choose its weights "
        f"{fit.before:.4f} -> {fit.after:.4f}, {_gain(fit.gain)}"
        + ("" if fit.in_force else ". The configured fusion stays in force")
    )


def _in_force(fit: BlendFit) -> str:
    if not fit.in_force:
        return "The configured weight stays in force"
    return "Each labelled question is answered with the weight fitted without it, also in the submission"


def _gain(gain: Interval) -> str:
    shown = "shown" if gain.shown else "not shown: the interval includes 0"
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.mean:+.2f} points, 95 % interval [{low:+.2f}, {high:+.2f}]: {shown}"


def _hit_line(before: Evaluation, after: Evaluation, reranked: bool) -> str:
    hit, base = after.metrics["Hit@5"], before.metrics["Hit@5"]
    recall = f"Recall@100 {before.metrics['Recall@100']:.4f}"
    if before.depth < 100:
        recall += f" (of {before.depth} candidates)"
    questions = f"{after.questions:,} labelled question{'' if after.questions == 1 else 's'}"
    if not reranked:
        return f"Hit@5: {hit:.4f} (reranking off; {recall}; {questions})"
    return f"Hit@5: {hit:.4f} (before reranking {base:.4f}, {100 * (hit - base):+.2f} points; {recall}; {questions})"
