"""The result of a run, in the words that users grep for."""

from collections.abc import Iterator, Sequence

from src.quality.evaluate import Evaluation


def hit_lines(
    before: Evaluation | None, after: Evaluation | None, reranked: bool, warnings: Sequence[str], no_labels: str
) -> Iterator[str]:
    """``Hit@5: 0.3456 (...)``, other metrics on further lines, and every warning beside them.

    Args:
        before: metrics of stage one.
        after: metrics of the final run.
        reranked: whether a cross-encoder had a say.
        warnings: model swaps.
        no_labels: why nothing could be measured, where that is so.
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
    for warning in warnings:
        yield f"  WARNING: {warning}"


def _hit_line(before: Evaluation, after: Evaluation, reranked: bool) -> str:
    hit, base = after.metrics["Hit@5"], before.metrics["Hit@5"]
    recall = f"Recall@100 {before.metrics['Recall@100']:.4f}"
    if before.depth < 100:
        recall += f" (of {before.depth} candidates)"
    questions = f"{after.questions:,} labelled questions"
    if not reranked:
        return f"Hit@5: {hit:.4f} (reranking off; {recall}; {questions})"
    return f"Hit@5: {hit:.4f} (before reranking {base:.4f}, {100 * (hit - base):+.2f} points; {recall}; {questions})"
