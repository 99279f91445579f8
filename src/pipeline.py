"""The order of the stages of a run: retrieve -> fuse -> rerank -> evaluate -> submit.

Preprocessing and indexing come before it (:mod:`src.stages.preprocess`, :mod:`src.indexing`). Everything here takes
plain values and types; nothing reads settings or flags.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from src.core.artifacts import fingerprint
from src.core.errors import UserError
from src.core.memory import free_models
from src.core.pair_scores import PairScores
from src.core.spool import Spool
from src.core.storage import DataFolder, save_run
from src.core.types import Chunks, Corpus, Floats, Qrels, Queries, Run
from src.engine.devices import Precision, every_device
from src.engine.pair_scorer import PairScorer, make_scorer
from src.engine.peak import ModelShape, last_layer_is_short
from src.indexing import Bars, IndexPlan
from src.insight.profile import Profiler
from src.int8 import in_int8, int8_backend, judge, quantise, require_int8, sampled
from src.models.resolve import ResolvedModel
from src.quality.evaluate import Evaluation, evaluate
from src.quality.fit import BlendFit, FusionFit, fit_blend
from src.retrieval import Retrieval, SearchPlan, retrieve
from src.stages.rerank import CandidateScorer, PassageTexts, blend, combine_scores, unchanged
from src.stages.submit import check_candidates, check_depth, write_submission
from src.stages.variants import QueryVariants, merge_wordings, questions_to_read

SEARCH_COMMAND = "python scripts/03_run_search.py"
_TRIED: tuple[Precision, Precision] = ("exact", "int8")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a run.

    Attributes:
        final: the run that was submitted.
        before, after: metrics of stage one and of the final run; ``None`` without labels. Where blend or fusion were
            fitted, no labelled question has chosen the weights that it is answered with.
        reranked: whether a cross-encoder had a say.
        warnings: model swaps and the like, to stand beside every figure.
        fit, fusion_fit: the fitted blend and fusion, where they were asked for.
        found: what stage one handed on.
    """

    final: Run
    found: Retrieval
    before: Evaluation | None
    after: Evaluation | None
    reranked: bool
    warnings: Sequence[str] = field(default_factory=tuple)
    fit: BlendFit | None = None
    fusion_fit: FusionFit | None = None


def rerank_candidates(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    found: Retrieval,
    plan: SearchPlan,
    device: str,
    profiler: Profiler,
    bars: Bars,
    qrels: Qrels | None = None,
) -> tuple[Run, BlendFit | None]:
    """Stage two: the cross-encoder reads the best passages of every candidate; off changes nothing.

    Args:
        qrels: what the blend is fitted on, where the plan asks for that; see :func:`src.quality.fit.fit_blend`.
    """
    candidates = found.fused.cut(plan.candidate_k)
    if not plan.rerankers:
        return unchanged(candidates), None
    if plan.precision == "int8":
        with profiler.stage("try int8"):
            weights = [plan.blend_weight, 1.0] if plan.fit_blend else [plan.blend_weight]
            try_int8(data, corpus, chunks, queries, found, plan, device, bars, weights)
    scores = candidate_scores(data, corpus, chunks, queries, found, plan, device, profiler, bars)

    def blended(weight: float) -> Run:
        return blend(candidates, scores, weight, "rerank-on", found.spool)

    if plan.fit_blend and qrels is not None:
        return fit_blend(candidates, plan.blend_weight, blended, corpus, qrels)
    return blended(plan.blend_weight), None


def scorer_of(model: ResolvedModel, plan: SearchPlan, device: str) -> PairScorer:
    """A cross-encoder of a plan; its weights are not loaded yet."""
    free_models()
    return make_scorer(
        model.directory, model.fingerprint, device, plan.batch_size, plan.max_length, plan.precision, plan.cpu,
        model.remote_code,
    )  # fmt: skip


def candidate_scores(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    found: Retrieval,
    plan: SearchPlan,
    device: str,
    profiler: Profiler,
    bars: Bars,
    load_first: bool = True,
    read_only: bool = False,
    may_quantise: bool = False,
) -> Floats:
    """The score of every candidate by the cross-encoder, float32 [Q, K]; of several, the weighted mean of z-scores.

    Args:
        load_first: load the model before anything else; without it no weights are loaded where all scores are kept.
        read_only: use kept scores and write none, for a process that does not hold the data folder.
        may_quantise: in 8 bits, make the quantised model from these questions; else :func:`try_int8` must have.
    """
    assert plan.rerankers
    scores = [
        _model_scores(
            model, data, corpus, chunks, queries, found, plan, device, profiler, bars, load_first, read_only,
            may_quantise,
        )
        for model, _ in plan.rerankers
    ]  # fmt: skip
    weights = [weight for _, weight in plan.rerankers]
    return combine_scores(found.fused.cut(plan.candidate_k), scores, weights, found.spool)


def _model_scores(
    model: ResolvedModel,
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    found: Retrieval,
    plan: SearchPlan,
    device: str,
    profiler: Profiler,
    bars: Bars,
    load_first: bool,
    read_only: bool,
    may_quantise: bool,
) -> Floats:
    queries, candidates, owners = questions_to_read(
        queries, found.fused.cut(plan.candidate_k), found.variants, plan.reranker_query
    )
    chosen = found.passages[:, : candidates.depth]
    chosen = chosen if len(owners) == len(chosen) else chosen[owners]
    with profiler.stage("load"):
        scorer = scorer_of(model, plan, device)
        if plan.precision == "int8":
            exact = require_int8(scorer, model.used)
            if may_quantise:
                read = partial(PassageTexts.of, corpus, chunks, chosen)
                quantise(exact, model.used, corpus.fingerprint, queries, read)
            scorer = in_int8(exact, corpus.fingerprint, f"{SEARCH_COMMAND} --data-dir {shlex.quote(str(data.root))}")
            del exact
            free_models()
        if load_first:
            scorer.load()
            log.info(
                "✓ Cross-encoder loaded successfully: %s on %s, %s by %s",
                model.describe(), device, scorer.arithmetic, scorer.backend_name,
            )  # fmt: skip
        kept = kept_pair_scores(data, model, scorer, plan.fresh, read_only)
    with profiler.stage("tokenise") as stage:
        passages = PassageTexts.of(corpus, chunks, chosen)
        # A block is what a kill costs: seconds of work, yet enough batches for every core, or to keep a card busy.
        block = max(4, plan.cpu.threads) if device == "cpu" else 128 * len(every_device(device))
        reranker = CandidateScorer(scorer, passages, kept, block)
        tables = reranker.tokenize(queries)
        stage.items, stage.unit = len(queries) + len(passages.texts), "texts"
    with profiler.stage("rerank", unit="pairs") as stage, bars("Processing queries", len(queries)) as progress:
        scores = reranker.pair_scores(queries, candidates, progress, tables, found.spool)
        floats = scorer.joint and not scorer.arithmetic.startswith("int8")  # the rest has no peak to compare with
        shape = ModelShape.of(model.directory) if floats else None
        stage.items, stage.arithmetic = reranker.scored, scorer.arithmetic
        stage.tokens = reranker.tokens if scorer.joint else 0
        short = shape is not None and last_layer_is_short(model.directory, scorer.backend_name)
        texts = reranker.scored if short else None
        stage.flops = 0.0 if shape is None else shape.flops(reranker.tokens, reranker.squared_tokens, texts)
    log.info("Pairs: %s scored, %s kept from earlier runs", f"{reranker.scored:,}", f"{reranker.reused:,}")
    return merge_wordings(scores, owners, plan.reranker_query)


def check_int8(plan: SearchPlan, device: str) -> None:
    """Find out before the work whether every cross-encoder of a plan can run in 8 bits, where that is asked.

    Raises:
        UserError: where one cannot.
    """
    if plan.precision == "int8":
        for model, _ in plan.rerankers:
            require_int8(scorer_of(model, plan, device), model.used)


def try_int8(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    found: Retrieval,
    plan: SearchPlan,
    device: str,
    bars: Bars,
    weights: Sequence[float],
) -> None:
    """Quantise the cross-encoders of a plan, and compare the answers to some of the questions with those in float32.

    Args:
        weights: of the cross-encoders in the blend, those that the run may use.

    Raises:
        UserError: where too many answers change; the quantised models are removed then.
    """
    rows = sampled(len(queries))
    part = replace(
        found, fused=found.fused.picked(rows), passages=found.passages[rows], late=None,
        variants=found.variants.picked(rows), spool=Spool(),
    )  # fmt: skip
    made = [
        int8_backend(require_int8(scorer_of(model, plan, device), model.used), corpus.fingerprint)
        for model, _ in plan.rerankers
    ]
    if plan.fresh:
        for backend in made:
            backend.discard()
    exact, rounded = (
        candidate_scores(
            data, corpus, chunks, queries.picked(rows), part, replace(plan, precision=precision, fresh=False), device,
            Profiler(), bars, load_first=False, may_quantise=True,
        )
        for precision in _TRIED
    )  # fmt: skip
    try:
        log.info("%s", judge(part.fused.cut(plan.candidate_k), exact, rounded, weights, plan.top_k))
    except UserError:
        for backend in made:
            backend.discard()
        raise


def kept_pair_scores(
    data: DataFolder, model: ResolvedModel, scorer: PairScorer, fresh: bool, read_only: bool
) -> PairScores:
    """Scores that this model has given before, with the same limit of tokens and the same arithmetic."""
    made_from = [model.fingerprint, scorer.max_length, scorer.arithmetic]
    key = fingerprint(made_from if scorer.joint else [*made_from, scorer.backend_name])
    return PairScores(data.runs / "pair_scores" / key, fresh, read_only)


def search(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    qrels: Qrels | None,
    indices: IndexPlan,
    plan: SearchPlan,
    output: Path,
    profiler: Profiler,
    bars: Bars,
    record: Mapping[str, Any],
    warnings: Sequence[str] = (),
    variants: QueryVariants | None = None,
) -> SearchResult:
    """A whole run: retrieve, fuse, rerank, evaluate, submit; every stage's run is kept under ``data/runs``.

    Args:
        qrels: labels, or ``None``: then nothing is measured.
        output: the submission file.
        record: what the manifests of the runs keep (settings, models, fingerprints of the questions).
        variants: other wordings of the questions, searched beside them.

    Raises:
        UserError: where the corpus has fewer than ``top_k`` documents with a title or text, an index is stale, or
            stage one finds fewer than ``top_k`` documents for a question.
    """
    check_depth(corpus, plan.top_k)
    check_int8(plan, indices.device)
    found = retrieve(data, corpus, chunks, queries, indices, plan, profiler, bars, qrels, variants)
    check_candidates(found.fused, plan.top_k, _what_finds_more(indices, plan))
    final, fit = rerank_candidates(data, corpus, chunks, queries, found, plan, indices.device, profiler, bars, qrels)
    with profiler.stage("write", len(queries), "questions"):
        before = evaluate(found.fused.cut(plan.candidate_k), corpus, qrels) if qrels is not None else None
        after = evaluate(final, corpus, qrels) if qrels is not None else None
        write_submission(output, final, queries, corpus, plan.top_k)
        for run in (*found.runs, found.fused):
            save_run(data.runs, run, corpus, record)
        metrics = {"before": before and before.metrics, "after": after and after.metrics}
        extra: dict[str, Any] = {**record, "metrics": metrics, "warnings": list(warnings)}
        if fit is not None:
            extra["blend_fit"] = {**asdict(fit), "in_force": fit.in_force}
        if found.fit is not None:
            extra["fusion_fit"] = {**asdict(found.fit), "in_force": found.fit.in_force}
        save_run(data.runs, final, corpus, extra)
    return SearchResult(final, found, before, after, bool(plan.rerankers), tuple(warnings), fit, found.fit)


def _what_finds_more(indices: IndexPlan, plan: SearchPlan) -> str:
    """What helps where stage one finds too few documents; an encoder over documents finds as many as there are."""
    if not indices.encoders:
        return "BM25 finds a document only by a word of the question. Add an encoder over documents to ENCODERS"
    return (
        f"Its {plan.depth_chunks} best chunks belong to too few documents. Raise SEARCH_DEPTH_CHUNKS, or add an "
        "encoder over documents to ENCODERS"
    )
