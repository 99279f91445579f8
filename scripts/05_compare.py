"""Compare runs: those on disk, submission CSVs, or new ones over models, K and blend weights; needs labels."""

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _cli import PROJECT_ROOT, add_data_flags, add_wait_flag, main, positive_integer, set_up_threads

from _inputs import Inputs, choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import encoder_plans, index_plan, model_resolver, reranker_plans, run_warnings, search_plan
from _runs import differing_settings, find_run, read_run
from _variants import load_variants
from config import Settings
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.core.types import Chunks, Corpus, Floats, Queries, Run
from src.engine.devices import pick_device
from src.indexing import BUILD_COMMAND, EncoderPlan
from src.insight.comparison import markdown, save
from src.insight.profile import Profiler
from src.insight.progress import progress_bar
from src.models.language_guard import choose_reranker
from src.models.resolve import ModelResolver, ResolvedModel
from src.pipeline import SEARCH_COMMAND, candidate_scores, try_int8
from src.quality.compare import compare
from src.retrieval import at_depth, retrieve
from src.stages.rerank import blend
from src.stages.retrieve import PassageChoice, choose_passages
from src.stages.submit import read_submission
from src.stages.variants import QueryVariants

Rerankers = tuple[tuple[ResolvedModel, float], ...]

log = logging.getLogger("search")


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="05_compare.py", description=__doc__)
    add_data_flags(parser, settings)
    add_wait_flag(parser)
    add = parser.add_argument
    add(
        "runs", nargs="*", metavar="RUN",
        help="name of a run in <data folder>/runs (rerank-off), its .parquet, or a submission .csv; the first is "
        "'before' (default: make them, rerank off first)",
    )  # fmt: skip
    add("--models", nargs="+", metavar="MODEL", help="cross-encoders, a run each (default: those of the settings)")
    add("--candidates", nargs="+", type=positive_integer, metavar="K", help="(default: RERANKER_CANDIDATE_K)")
    add("--weights", nargs="+", type=_share, metavar="W", help="blend weights (default: RERANKER_BLEND_WEIGHT)")
    add(
        "--passages", nargs="+", type=_passages, metavar="[first:]M",
        help="chunks of a candidate that the cross-encoder reads: the best M, or with first: the first M "
        "(default: RERANKER_PASSAGE_CHOICE, RERANKER_PASSAGES_PER_DOCUMENT)",
    )  # fmt: skip
    add("--limit", type=positive_integer, metavar="N", help="only the first N questions (default: all)")
    add("--name", help="folder of the result under <data folder>/results (default: <date>-compare)")
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _passages(text: str) -> tuple[PassageChoice, int]:
    first, _, count = text.rpartition(":")
    if first not in {"", "first", "best"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of passages, such as 2 or first:2")
    return "first" if first == "first" else "best", positive_integer(count)


def _read(text: str, inputs: Inputs, corpus: Corpus, queries: Queries, command: str) -> tuple[Run, Mapping[str, Any]]:
    """A run on disk, and the record of how it was made; a submission has none."""
    path = Path(text)
    if path.suffix == ".csv":
        if not path.is_file():
            raise UserError(f"{path}: no such submission file.")
        return read_submission(path, path.stem, queries, corpus), {}
    command += " --no-rerank" if text == "rerank-off" else ""
    return read_run(find_run(text, inputs.data.runs, command), corpus, queries, command)


def _make(
    flags: argparse.Namespace,
    settings: Settings,
    inputs: Inputs,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    encoders: tuple[EncoderPlan, ...],
    resolver: ModelResolver,
    variants: QueryVariants,
    profiler: Profiler,
) -> tuple[list[Run], list[str]]:
    """Stage one once, then every model over the deepest list; K and weights cost no model call."""
    device = pick_device(settings.device)
    indices = index_plan(settings, encoders, device)
    depths = sorted(set(flags.candidates or [settings.reranker_candidate_k]))
    weights = flags.weights or [settings.reranker_blend_weight]
    arms = flags.passages or [(settings.reranker_passage_choice, settings.reranker_passages_per_document)]
    base = search_plan(settings, argparse.Namespace(top_k=settings.top_k), (), BUILD_COMMAND + inputs.command)
    plan = replace(base, candidate_k=max(depths))
    found = retrieve(inputs.data, corpus, chunks, queries, indices, plan, profiler, progress_bar, None, variants)
    runs, warnings = [replace(found.fused, name="off")], run_warnings(settings, encoders, ())
    for rerankers in _rerankers(flags, settings, resolver, corpus):
        warnings += [model.warning for model, _ in rerankers if model.warning]
        name = " + ".join(model.used.rsplit("/", 1)[-1].removeprefix("embedded:") for model, _ in rerankers)
        deepest = replace(plan, rerankers=rerankers)
        if plan.precision == "int8":
            try_int8(inputs.data, corpus, chunks, queries, found, deepest, device, progress_bar, weights)
        for choice, count in arms:
            arm = f" {choice} {count}" if flags.passages else ""
            # The deepest first: it holds every pair of the others, which then cost no model call.
            made: dict[int, tuple[Run, Floats]] = {}
            for depth in reversed(depths):
                fused = at_depth(found, depth, plan.late_weight)
                passages = choose_passages(fused, chunks, found.nearest, choice, count)
                read = replace(found, fused=fused, passages=passages)
                shallow = replace(deepest, candidate_k=depth)
                made[depth] = fused, candidate_scores(
                    inputs.data, corpus, chunks, queries, read, shallow, device, profiler, progress_bar,
                    load_first=False,
                )  # fmt: skip
            for depth in depths:
                fused, scores = made[depth]
                for weight in weights:
                    label = f"{name}{arm} K={depth} w={weight:g}"
                    runs.append(blend(fused, scores, weight, label))
    return runs, warnings


def _rerankers(
    flags: argparse.Namespace, settings: Settings, resolver: ModelResolver, corpus: Corpus
) -> Iterator[Rerankers]:
    """The cross-encoders of each run: one by one those of ``--models``, else those of the settings together."""
    if not flags.models:
        yield reranker_plans(settings, resolver, corpus)
    for name in flags.models or ():
        yield ((choose_reranker(resolver, name, settings.cross_encoder_model_multilingual, corpus), 1.0),)


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Read or make the runs, compare, print and save."""
    flags = _parser(settings).parse_args(arguments)
    making = [name for name in ("models", "candidates", "weights", "passages") if getattr(flags, name)]
    if flags.runs and making:
        raise UserError(f"--{making[0]} makes runs, but runs on disk are named too. Give one or the other.")
    set_up_threads(settings.cpu_threads)
    with nullcontext() if flags.runs else data_lock(flags.data_dir.resolve(), flags.wait):
        _run(settings, flags)


def _run(settings: Settings, flags: argparse.Namespace) -> None:
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    resolver = model_resolver(settings)
    encoders = encoder_plans(settings, resolver)
    corpus, chunks = prepared_corpus(inputs, settings, encoders)
    every_query, qrels = load_queries(inputs, settings, corpus)
    queries = every_query.head(flags.limit)
    if qrels is None:
        raise UserError(f"no labels at {inputs.no_labels}: nothing can be compared. Give --labels FILE.")
    warnings: list[str] = []
    profiler = Profiler()
    if flags.runs:
        command = SEARCH_COMMAND + inputs.command + (f" --limit {flags.limit}" if flags.limit else "")
        read = [_read(text, inputs, corpus, queries, command) for text in flags.runs]
        runs = [found for found, _ in read]
        warnings = [warning for _, record in read for warning in record.get("warnings", [])]
        made_with = [(found.name, record["settings"]) for found, record in read if "settings" in record]
        if len(made_with) > 1:
            warnings += differing_settings(made_with)
    else:
        variants = load_variants(settings, inputs.data, every_query, queries)
        runs, warnings = _make(flags, settings, inputs, corpus, chunks, queries, encoders, resolver, variants, profiler)
    comparison = compare(runs, corpus, queries, qrels)
    notes = [f"WARNING: {warning}" for warning in dict.fromkeys(warnings)]
    for line in markdown(comparison, corpus, notes).splitlines():
        log.info("%s", line)
    now = datetime.now(UTC)
    folder = inputs.data.root / "results" / (flags.name or f"{now:%Y-%m-%d-%H%M%S}-compare")
    record = {
        "created": now.isoformat(timespec="seconds"),
        "settings": settings.snapshot(),
        "corpus": corpus.fingerprint,
        "questions": queries.fingerprint,
        **({} if flags.runs else {"profile": profiler.record()}),
    }
    for path in save(comparison, corpus, folder, record, notes):
        log.info("Saved: %s", path)


if __name__ == "__main__":
    main(run)
