"""Step 3: search, rerank, evaluate and write the submission."""

import argparse
import logging
from collections.abc import Sequence

from _cli import PROJECT_ROOT, add_data_flags, add_safety_flags, add_search_flags, main, set_up_threads
from _inputs import Inputs, choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import encoder_plans, index_plan, plan_lines, search_plan
from config import Settings
from src.core.artifacts import full_check, write_json
from src.core.atomic import remove_dead_temporaries
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Queries
from src.engine.devices import pick_device
from src.indexing import IndexPlan
from src.insight.profile import Profiler
from src.insight.progress import progress_bar
from src.insight.report import fusion_line, hit_lines
from src.models.language_guard import choose_reranker
from src.models.resolve import ModelResolver
from src.pipeline import search
from src.retrieval import SearchPlan

log = logging.getLogger("search")


def _record(settings: Settings, indices: IndexPlan, plan: SearchPlan, queries: Queries) -> dict[str, object]:
    models = [encoder.model.record() for encoder in indices.encoders]
    if plan.reranker is not None:
        models.append(plan.reranker.record())
    return {"settings": settings.snapshot(), "models": models, "questions": queries.fingerprint, "top_k": plan.top_k}


def _load(
    inputs: Inputs, settings: Settings, flags: argparse.Namespace, corpus: Corpus
) -> tuple[Queries, Qrels | None]:
    queries, qrels = load_queries(inputs, settings, corpus)
    return queries.head(flags.limit), qrels


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
    set_up_threads(settings.cpu_threads)
    remove_dead_temporaries(flags.output)
    with data_lock(flags.data_dir.resolve(), flags.wait), full_check(flags.verify):
        _run(settings, flags)


def _run(settings: Settings, flags: argparse.Namespace) -> None:
    profiler = Profiler()
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    resolver = ModelResolver(PROJECT_ROOT / "data" / "models", PROJECT_ROOT, settings.when_model_unavailable)
    with profiler.stage("load"):
        encoders = encoder_plans(settings, resolver)
        corpus, chunks = prepared_corpus(inputs, settings, encoders)
        queries, qrels = _load(inputs, settings, flags, corpus)
        reranker = None
        if flags.rerank:
            reranker = choose_reranker(
                resolver, settings.cross_encoder_model, settings.cross_encoder_model_multilingual, corpus
            )
    if flags.fit_blend and (qrels is None or not flags.rerank):
        why = f"there are no labels at {inputs.no_labels}" if qrels is None else "reranking is off"
        raise UserError(f"--fit-blend fits the blend on labels, but {why}. Leave it out, or mend that.")
    if flags.fit_fusion and qrels is None:
        raise UserError(f"--fit-fusion needs labels, but there are none at {inputs.no_labels}. Leave it out, or label.")
    indices = index_plan(settings, encoders, pick_device(settings.device))
    plan = search_plan(settings, flags, reranker)
    labels = f"{len(qrels)} labelled questions" if qrels is not None else f"none ({inputs.no_labels})"
    for line in plan_lines(corpus, chunks, queries, indices, plan, labels):
        log.info("%s", line)
    warnings = [model.warning for model in (*(e.model for e in encoders), reranker) if model and model.warning]
    result = search(
        inputs.data, corpus, chunks, queries, qrels, indices, plan, flags.output, profiler, progress_bar,
        _record(settings, indices, plan, queries), list(dict.fromkeys(warnings)),
    )  # fmt: skip
    if flags.enable_profiling:
        path = inputs.data.runs / f"{result.final.name}.profile.json"
        write_json(path, profiler.record())
        for line in profiler.table():
            log.info("%s", line)
        log.info("Profile: %s", path)
    log.info("Submission: %s (%d questions, top %d), checked", flags.output, len(queries), plan.top_k)
    if result.fusion_fit is not None:
        log.info(
            "%s", fusion_line(result.fusion_fit, [e.name for e in encoders] + [f"bm25-{u}" for u in indices.bm25_units])
        )
    no_labels = inputs.no_labels if qrels is None else "any of these questions"
    for line in hit_lines(result.before, result.after, result.reranked, result.warnings, no_labels, result.fit):
        log.info("%s", line)
    log.info("Done in %.1f s.", profiler.total_seconds)


if __name__ == "__main__":
    main(run, keep_log=True)
