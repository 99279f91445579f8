"""Explain one question: ranks and scores in every stage, the passages that were read, where the right page was lost."""

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from _cli import PROJECT_ROOT, add_data_flags, main, positive_integer, set_up_threads

from _inputs import choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import encoder_plans, index_plan, model_resolver, reranker_plans, run_warnings, search_plan
from _variants import load_variants
from config import Settings
from src.core.artifacts import write_json
from src.core.errors import UserError
from src.core.spool import Spool
from src.core.storage import DataFolder
from src.core.text import normalize
from src.core.types import Chunks, Corpus, Progress, Queries, Run
from src.engine.devices import pick_device
from src.indexing import BUILD_COMMAND, IndexPlan
from src.insight.explain import Trace, explain, missing_from_an_index
from src.insight.explain_text import make_console, show
from src.insight.profile import Profiler
from src.pipeline import candidate_scores, scorer_of
from src.retrieval import SearchPlan, retrieve
from src.stages.rerank import blend, unchanged
from src.stages.variants import QueryVariants

STANDARD_OUTPUT = "-"

log = logging.getLogger("search")


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="08_explain.py", description=__doc__)
    add_data_flags(parser, settings)
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--q-id", metavar="ID", help="a question of the questions file")
    question.add_argument("--query", metavar="TEXT", help="any question")
    add = parser.add_argument
    add(
        "--page", nargs="+", metavar="ID", default=[],
        help="pages that should have been found, in place of the labels (default: the labels)",
    )  # fmt: skip
    add("--top", type=positive_integer, metavar="N", default=10, help="pages of each stage to show (default: 10)")
    add("--json", metavar="FILE", help=f"the same as JSON; {STANDARD_OUTPUT}: on standard output, and nothing else")
    add(
        "--rerank", action=argparse.BooleanOptionalAction, default=settings.enable_cross_encoder_reranking,
        help=f"(default: ENABLE_CROSS_ENCODER_RERANKING = {settings.enable_cross_encoder_reranking})",
    )  # fmt: skip
    return parser


def _no_bar(_description: str, _total: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _count: None)


def _log_to_standard_error() -> None:
    """Standard output is for the JSON alone."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


def _choose(query_id: str, queries: Queries) -> Queries:
    if query_id in queries.query_ids:
        return Queries((query_id,), (queries.texts[queries.query_ids.index(query_id)],))
    nearest = difflib.get_close_matches(query_id, queries.query_ids, n=3, cutoff=0.0)
    raise UserError(
        f"--q-id {query_id}: none of the {len(queries):,} questions has this id. The nearest are: {', '.join(nearest)}."
    )


def _deep(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    indices: IndexPlan,
    plan: SearchPlan,
    variants: QueryVariants,
) -> tuple[Run, ...]:
    """The run of each index, down to its last page."""
    deepest = max(len(corpus), len(chunks))
    deep = replace(plan, depth_documents=deepest, depth_bm25=deepest, depth_chunks=deepest, late_weight=0.0)
    return retrieve(
        data, corpus, chunks, queries, indices, deep, Profiler(), _no_bar, variants=variants, spool=Spool()
    ).runs


def _trace(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    query_id: str | None,
    queries: Queries,
    indices: IndexPlan,
    plan: SearchPlan,
    variants: QueryVariants,
    followed: Collection[int],
    warnings: Sequence[str],
) -> Trace:
    """The question through every stage, by the functions that the search uses; kept pair scores are used again.

    Args:
        followed: rows of pages whose rank is wanted however low it is.
    """
    found = retrieve(
        data, corpus, chunks, queries, indices, plan, Profiler(), _no_bar, variants=variants, spool=Spool()
    )
    candidates = found.fused.cut(plan.candidate_k)
    scores, final = None, unchanged(candidates)
    if plan.rerankers:
        scores = candidate_scores(
            data, corpus, chunks, queries, found, plan, indices.device, Profiler(), _no_bar,
            load_first=False, read_only=True,
        )  # fmt: skip
        final = blend(candidates, scores, plan.blend_weight, "rerank-on")
    deep: tuple[Run, ...] = ()
    if missing_from_an_index(found.runs, followed):
        deep = _deep(data, corpus, chunks, queries, indices, plan, variants)
    fused, late = found.late or (found.fused, None)
    return Trace(
        query_id, queries.texts[0], found.runs, deep, fused, late, candidates, found.passages,
        scores, final, plan.top_k, tuple(dict.fromkeys(warnings)), variants.texts,
    )  # fmt: skip


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Search for one question and show every stage."""
    flags = _parser(settings).parse_args(arguments)
    if flags.json == STANDARD_OUTPUT:
        _log_to_standard_error()
    typed = None if flags.query is None else normalize(flags.query)
    if typed == "":
        raise UserError("--query is empty. Give a question.")
    set_up_threads(settings.cpu_threads)
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    resolver = model_resolver(settings)
    encoders = encoder_plans(settings, resolver)
    corpus, chunks = prepared_corpus(inputs, settings, encoders)
    right, variants = frozenset(flags.page), QueryVariants()
    if typed is None:
        every_query, qrels = load_queries(inputs, settings, corpus)
        queries = _choose(flags.q_id, every_query)
        every_variant = load_variants(settings, inputs.data, every_query, every_query)
        variants = every_variant.of(every_query.query_ids.index(flags.q_id))
        if not right and qrels is not None:
            right = qrels.relevant.get(flags.q_id, frozenset())
    else:
        queries = Queries(("typed",), (typed,))
    rerankers = reranker_plans(settings, resolver, corpus) if flags.rerank else ()
    indices = index_plan(settings, encoders, pick_device(settings.device))
    plan = search_plan(settings, argparse.Namespace(top_k=settings.top_k), rerankers, BUILD_COMMAND + inputs.command)
    warnings = run_warnings(settings, encoders, rerankers)
    followed = [corpus.row_of[doc_id] for doc_id in right if doc_id in corpus.row_of]
    trace = _trace(inputs.data, corpus, chunks, flags.q_id, queries, indices, plan, variants, followed, warnings)
    characters_read: Callable[[str], int] = len
    if rerankers:
        characters_read = partial(scorer_of(rerankers[0][0], plan, indices.device).characters_read, trace.question)
    explanation = explain(trace, corpus, chunks, right, flags.top, characters_read)
    if flags.json == STANDARD_OUTPUT:
        sys.stdout.write(json.dumps(asdict(explanation), ensure_ascii=False, indent=2) + "\n")
        return
    show(explanation, make_console())
    if flags.json is not None:
        write_json(Path(flags.json), asdict(explanation))
        log.info("Saved: %s", flags.json)


if __name__ == "__main__":
    main(run)
