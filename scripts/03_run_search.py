"""Step 3: search, rerank, evaluate and write the submission."""

import argparse
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from _cli import (
    PROJECT_ROOT,
    add_data_flags,
    add_safety_flags,
    add_search_flags,
    main,
    require_writable,
    set_up_threads,
)

from _inputs import Inputs, choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import (
    cpu_engine,
    encoder_plans,
    index_plan,
    model_resolver,
    plan_lines,
    preset_lines,
    reranker_plans,
    run_warnings,
    search_plan,
    with_flags,
)
from _variants import load_variants
from config import Settings
from src.core.artifacts import full_check, write_json
from src.core.atomic import remove_dead_temporaries
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.core.types import Chunks, Corpus, Qrels, Queries
from src.engine.devices import every_device, pick_device
from src.engine.peak import measured_peak
from src.indexing import BUILD_COMMAND, IndexPlan
from src.insight.html_report import RunRecord, write_report
from src.insight.profile import Profiler
from src.insight.progress import progress_bar
from src.insight.report import fusion_line, hit_lines
from src.pipeline import SearchResult, search
from src.retrieval import SearchPlan
from src.stages.variants import QueryVariants

log = logging.getLogger("search")


def _record(
    settings: Settings,
    flags: argparse.Namespace,
    indices: IndexPlan,
    plan: SearchPlan,
    queries: Queries,
    variants: QueryVariants,
) -> dict[str, Any]:
    models: list[dict[str, Any]] = [
        {**encoder.model.record(), "unit": encoder.unit, "weight": encoder.weight} for encoder in indices.encoders
    ]
    models += [{**model.record(), "weight": weight} for model, weight in plan.rerankers]
    return {
        "settings": settings.snapshot(),
        "models": models,
        "questions": queries.fingerprint,
        "limit": flags.limit,
        "top_k": plan.top_k,
        "query_variants": variants.record(plan.variant_weight, plan.reranker_query),
    }


def _load(
    inputs: Inputs, settings: Settings, flags: argparse.Namespace, corpus: Corpus
) -> tuple[Queries, Qrels | None, QueryVariants]:
    every_query, qrels = load_queries(inputs, settings, corpus)
    queries = every_query.head(flags.limit)
    return queries, qrels, load_variants(settings, inputs.data, every_query, queries)


def _report(
    result: SearchResult,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    qrels: Qrels | None,
    plan: SearchPlan,
    lines: Sequence[str],
    notes: Sequence[str],
    no_labels: str,
    record: dict[str, Any],
    profiler: Profiler,
) -> RunRecord:
    found = result.found
    return RunRecord(
        name=result.final.name,
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        corpus=corpus,
        chunks=chunks,
        queries=queries,
        qrels=qrels,
        no_labels=no_labels,
        indices=found.runs,
        fused=found.late[0] if found.late is not None else found.fused,
        before=found.fused.cut(plan.candidate_k),
        after=result.final,
        passages=found.passages,
        metrics_before=None if result.before is None else result.before.metrics,
        metrics_after=None if result.after is None else result.after.metrics,
        reranked=result.reranked,
        lines=lines,
        notes=notes,
        warnings=result.warnings,
        models=record["models"],
        settings=record["settings"],
        profile=profiler.record(),
    )


def _peak(device: str, arithmetic: str, settings: Settings) -> float:
    devices = every_device(device)
    return len(devices) * measured_peak(devices[0], arithmetic, cpu_engine(settings).threads)


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Search with what 01 and 02 have prepared."""
    parser = argparse.ArgumentParser(prog="03_run_search.py", description=__doc__)
    add_data_flags(parser, settings)
    add_search_flags(parser, settings)
    add_safety_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.output.is_dir():
        raise UserError(
            f"--output {flags.output}: a folder; the path of a file is needed, such as {settings.output_file}."
        )
    require_writable(flags.output)
    set_up_threads(settings.cpu_threads)
    remove_dead_temporaries(flags.output)
    with data_lock(flags.data_dir.resolve(), flags.wait), full_check(flags.verify):
        _run(settings, flags)


def _run(settings: Settings, flags: argparse.Namespace) -> None:
    profiler = Profiler()
    settings = with_flags(settings, flags)
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    configuration = list(preset_lines(settings))
    for line in configuration:
        log.info("%s", line)
    resolver = model_resolver(settings)
    with profiler.stage("load"):
        encoders = encoder_plans(settings, resolver)
        corpus, chunks = prepared_corpus(inputs, settings, encoders)
        queries, qrels, variants = _load(inputs, settings, flags, corpus)
        rerankers = reranker_plans(settings, resolver, corpus) if flags.rerank else ()
    if flags.fit_blend and (qrels is None or not flags.rerank):
        why = f"there are no labels at {inputs.no_labels}" if qrels is None else "reranking is off"
        raise UserError(f"--fit-blend fits the blend on labels, but {why}. Leave it out, or mend that.")
    if flags.fit_fusion and qrels is None:
        raise UserError(f"--fit-fusion needs labels, but there are none at {inputs.no_labels}. Leave it out, or label.")
    indices = index_plan(settings, encoders, pick_device(settings.device))
    plan = search_plan(settings, flags, rerankers, BUILD_COMMAND + inputs.command)
    labels = f"none ({inputs.no_labels})"
    if qrels is not None:
        labelled = len(qrels.relevant.keys() & set(queries.query_ids))
        labels = f"{labelled} labelled question{'' if labelled == 1 else 's'}"
    lines = list(plan_lines(corpus, chunks, queries, indices, plan, labels))
    for line in lines:
        log.info("%s", line)
    lines = [*configuration, *lines]
    if len(variants):
        lines.append(f"Query variants: {variants.source}: {variants.describe(len(queries))}")
    record = _record(settings, flags, indices, plan, queries, variants)
    warnings = run_warnings(settings, encoders, rerankers)
    result = search(
        inputs.data, corpus, chunks, queries, qrels, indices, plan, flags.output, profiler, progress_bar,
        record, warnings, variants,
    )  # fmt: skip
    if flags.enable_profiling:
        path = inputs.data.runs / f"{result.final.name}.profile.json"
        write_json(path, profiler.record())
        for line in (*profiler.table(), *profiler.peak_lines(lambda kind: _peak(indices.device, kind, settings))):
            log.info("%s", line)
        log.info("Profile: %s", path)
    log.info("Submission: %s (%d questions, top %d), checked", flags.output, len(queries), plan.top_k)
    notes = []
    if result.fusion_fit is not None:
        names = [e.name for e in encoders] + [f"bm25-{u}" for u in indices.bm25_units]
        notes.append(fusion_line(result.fusion_fit, names))
    no_labels = inputs.no_labels if qrels is None else "any of these questions"
    hits = list(hit_lines(result.before, result.after, result.reranked, result.warnings, no_labels, result.fit))
    for line in (*notes, *hits):
        log.info("%s", line)
    notes += [line.strip() for line in hits if line.startswith("  Blend weight fitted")]
    facts = _report(result, corpus, chunks, queries, qrels, plan, lines, notes, no_labels, record, profiler)
    log.info("Report: %s", write_report(inputs.data.root / "results" / result.final.name, facts))
    log.info("Done in %.1f s.", profiler.total_seconds)


if __name__ == "__main__":
    main(run, keep_log=True)
