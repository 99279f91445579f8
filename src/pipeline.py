"""The order of the stages of a run: retrieve -> fuse -> rerank -> evaluate -> submit.

Preprocessing and indexing come before it (:mod:`src.stages.preprocess`, :mod:`src.indexing`). Everything here takes
plain values and types; nothing reads settings or flags.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from src.core.artifacts import fingerprint, require_current
from src.core.errors import StaleArtifactError
from src.core.pair_scores import PairScores
from src.core.storage import DataFolder, load_token_vectors, load_vectors, save_run
from src.core.types import Chunks, Corpus, Floats, Qrels, Queries, Rows, Run, TokenVectors
from src.engine.devices import CpuEngine, Precision
from src.engine.pair_scorer import CrossEncoderScorer, make_scorer
from src.indexing import (
    BUILD_COMMAND,
    TOKENS,
    Bars,
    EncoderPlan,
    IndexPlan,
    bm25_identity,
    embedding_identity,
    load_encoder,
    tokens_left_out,
    units_of,
)
from src.insight.profile import Profiler
from src.models.resolve import ResolvedModel
from src.quality.evaluate import Evaluation, evaluate
from src.quality.fit import BlendFit, fit_blend
from src.stages.fuse import Method, Weighted, fuse
from src.stages.index import Bm25Index, FaissIndex
from src.stages.late_interaction import late_scores, late_scores_in_blocks
from src.stages.rerank import CandidateScorer, PassageTexts, blend, unchanged
from src.stages.retrieve import best_chunks, dense_run, first_chunks, lexical_run
from src.stages.submit import check_depth, write_submission

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchPlan:
    """How a run searches and reranks.

    Attributes:
        reranker: the cross-encoder; ``None`` turns reranking off.
        passages_per_document: chunks of a candidate that late interaction and the cross-encoder read.
        late_weight: of late interaction in stage one's order of the candidates; 0 turns it off.
        passage_choice: ``best`` chunks by the bi-encoder, or the ``first`` ones of the document (FirstP).
        precision: of the cross-encoder, ``exact`` or ``fast``.
        cpu: how a CPU runs the cross-encoder.
        fit_blend: fit ``blend_weight`` on the labels.
    """

    bm25_weights: Mapping[str, float]
    fusion: Method
    rrf_k: int
    depth_documents: int
    depth_chunks: int
    candidate_k: int
    top_k: int
    reranker: ResolvedModel | None
    batch_size: int
    max_length: int
    blend_weight: float
    passages_per_document: int
    precision: Precision
    cpu: CpuEngine
    late_weight: float
    passage_choice: Literal["best", "first"]
    fit_blend: bool = False


@dataclass(frozen=True)
class Retrieval:
    """What stage one hands on.

    Attributes:
        runs: the run of each index.
        fused: the candidates.
        passages: int32 [Q, K, m], the chunks of each candidate to be read, best first.
    """

    runs: tuple[Run, ...]
    fused: Run
    passages: Rows


def retrieve(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    indices: IndexPlan,
    plan: SearchPlan,
    profiler: Profiler,
    bars: Bars,
) -> Retrieval:
    """Stage one: search every index and fuse.

    Raises:
        StaleArtifactError: where an index is missing, stale or damaged; names the command that makes it anew.
    """
    weighted: list[Weighted] = []
    chunk_choice: tuple[Floats, Floats] | None = None
    query_vectors: dict[tuple[str, str | None], Floats] = {}
    late = _late_encoder(indices, plan)
    late_key = None if late is None else _query_key(late)
    question_tokens: TokenVectors | None = None
    for encoder in indices.encoders:
        units = units_of(corpus, chunks, encoder.unit)
        with profiler.stage("load"):
            identity = embedding_identity(indices, encoder, units)
            require_current(data.embeddings(encoder.name), "embeddings", *identity, fix=BUILD_COMMAND)
            require_current(data.index(encoder.name), "faiss", *identity, fix=BUILD_COMMAND)
            index = _load_faiss(data.index(encoder.name) / "index.faiss", len(units.texts), indices.device)
        key = _query_key(encoder)
        if key not in query_vectors:
            query_vectors[key], tokens = _encode_queries(encoder, queries, indices, profiler, bars, key == late_key)
            question_tokens = question_tokens or tokens
        depth = plan.depth_chunks if encoder.unit == "chunk" else plan.depth_documents
        with profiler.stage("dense search", len(queries), "questions"):
            run = dense_run(
                encoder.name, index, query_vectors[key], units.docs, queries, corpus, depth, plan.depth_documents
            )
        weighted.append(Weighted(run, encoder.weight))
        if encoder.unit == "chunk" and chunk_choice is None:
            vectors = load_vectors(data.embeddings(encoder.name), len(chunks), BUILD_COMMAND)
            chunk_choice = (query_vectors[key], vectors)
    for unit in indices.bm25_units:
        weighted.append(_lexical(data, corpus, chunks, queries, indices, plan, unit, profiler))
    with profiler.stage("fusion", len(queries), "questions"):
        depth = max(plan.candidate_k, plan.top_k)
        fused = fuse(weighted, plan.fusion, plan.rrf_k, depth)
        passages = _choose_passages(fused, chunks, chunk_choice, plan)
    if late is not None and question_tokens is not None:
        scores = _late_scores(data, corpus, chunks, question_tokens, passages, late, indices, profiler, bars)
        fused = blend(fused, scores, plan.late_weight, "fused")
        passages = _choose_passages(fused, chunks, chunk_choice, plan)
    return Retrieval(tuple(item.run for item in weighted), fused, passages)


def _query_key(encoder: EncoderPlan) -> tuple[str, str | None]:
    return encoder.model.fingerprint, encoder.query_prefix


def _late_encoder(indices: IndexPlan, plan: SearchPlan) -> EncoderPlan | None:
    if plan.late_weight > 0 and indices.late_encoder is None:
        log.warning("WARNING: no encoder works on chunks: late interaction is off. Name one in ENCODERS.")
    return indices.late_encoder if plan.late_weight > 0 else None


def _choose_passages(run: Run, chunks: Chunks, nearest: tuple[Floats, Floats] | None, plan: SearchPlan) -> Rows:
    """Chunks that stand for each candidate: int32 [Q, K, m]."""
    if nearest is None or plan.passage_choice == "first":
        return first_chunks(run, chunks, plan.passages_per_document)
    return best_chunks(run, chunks, *nearest, plan.passages_per_document)


def _late_scores(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    questions: TokenVectors,
    passages: Rows,
    encoder: EncoderPlan,
    indices: IndexPlan,
    profiler: Profiler,
    bars: Bars,
) -> Floats:
    units = units_of(corpus, chunks, "chunk")
    folder, identity = data.tokens(encoder.name), embedding_identity(indices, encoder, units)
    stage, bar = profiler.stage("late interaction", len(passages), "questions"), bars("Late interaction", len(passages))
    if not tokens_left_out(folder, identity, indices):
        require_current(folder, TOKENS, *identity, fix=BUILD_COMMAND)
        tokens = load_token_vectors(folder, len(units.texts), BUILD_COMMAND)
        with stage, bar as progress:
            return late_scores(questions, tokens, passages, progress)
    log.info("Token vectors were too large to be kept: those of the candidates are made now")
    model = load_encoder(encoder, indices)
    widest = 2 * model.dimension * indices.max_tokens

    def encode(rows: Rows) -> TokenVectors:
        return model.encode_tokens([units.texts[row] for row in rows.tolist()], "document", indices.batch_size)[1]

    with stage, bar as progress:
        return late_scores_in_blocks(questions, passages, encode, max(1, indices.token_bytes // widest), progress)


def _load_faiss(path: Path, units: int, device: str) -> FaissIndex:
    try:
        index = FaissIndex.load(path, use_gpu=device.startswith("cuda"))
    except RuntimeError as error:
        raise StaleArtifactError(f"{path}: cannot be read ({str(error)[:120]}). Run: {BUILD_COMMAND}") from error
    if len(index) != units:
        raise StaleArtifactError(f"{path}: holds {len(index)} vectors, {units} expected. Run: {BUILD_COMMAND}")
    return index


def _encode_queries(
    encoder: EncoderPlan, queries: Queries, indices: IndexPlan, profiler: Profiler, bars: Bars, by_token: bool
) -> tuple[Floats, TokenVectors | None]:
    with profiler.stage("load"):
        model = load_encoder(encoder, indices)
    with profiler.stage("encode", len(queries), "questions"), bars("Encoding questions", len(queries)) as progress:
        if by_token:
            return model.encode_tokens(queries.texts, "query", indices.batch_size, progress)
        return model.encode(queries.texts, "query", indices.batch_size, progress), None


def _lexical(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    indices: IndexPlan,
    plan: SearchPlan,
    unit: str,
    profiler: Profiler,
) -> Weighted:
    units = units_of(corpus, chunks, unit)
    folder = data.index(f"bm25-{unit}")
    with profiler.stage("load"):
        require_current(folder, "bm25", *bm25_identity(indices, unit, units), fix=BUILD_COMMAND)
        try:
            index = Bm25Index.load(folder)
        except (OSError, ValueError, KeyError) as error:
            raise StaleArtifactError(f"{folder}: cannot be read ({error}). Run: {BUILD_COMMAND}") from error
    depth = plan.depth_chunks if unit == "chunk" else plan.depth_documents
    with profiler.stage("BM25", len(queries), "questions"):
        run = lexical_run(f"bm25-{unit}", index, units.docs, queries, corpus, depth, plan.depth_documents)
    return Weighted(run, plan.bm25_weights[unit], absent_is_zero=True)


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a run.

    Attributes:
        final: the run that was submitted.
        before, after: metrics of stage one and of the final run; ``None`` without labels. Where the blend was fitted,
            ``after`` is of questions that did not choose their weight.
        reranked: whether a cross-encoder had a say.
        warnings: model swaps and the like, to stand beside every figure.
        fit: the fitted blend, where one was asked for.
    """

    final: Run
    before: Evaluation | None
    after: Evaluation | None
    reranked: bool
    warnings: Sequence[str] = field(default_factory=tuple)
    fit: BlendFit | None = None


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
        qrels: what the blend is fitted on, where the plan asks for that.
    """
    candidates = found.fused.cut(plan.candidate_k)
    if plan.reranker is None:
        return unchanged(candidates), None
    scores = candidate_scores(data, corpus, chunks, queries, found, plan, device, profiler, bars)
    fit = None
    if plan.fit_blend and qrels is not None:
        fit = fit_blend(candidates, lambda weight: blend(candidates, scores, weight, "rerank-on"), corpus, qrels)
    return blend(candidates, scores, plan.blend_weight if fit is None else fit.weight, "rerank-on"), fit


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
) -> Floats:
    """The cross-encoder's own score of every candidate, float32 [Q, K].

    Args:
        load_first: load the model before anything else; without it no weights are loaded where all scores are kept.
    """
    assert plan.reranker is not None
    candidates = found.fused.cut(plan.candidate_k)
    with profiler.stage("load"):
        scorer = make_scorer(
            plan.reranker.directory, plan.reranker.fingerprint, device, plan.batch_size, plan.max_length,
            plan.precision, plan.cpu,
        )  # fmt: skip
        if load_first:
            scorer.load()
            log.info(
                "✓ Cross-encoder loaded successfully: %s on %s, %s by %s",
                plan.reranker.describe(), device, scorer.arithmetic, scorer.backend.name,
            )  # fmt: skip
        kept = kept_pair_scores(data, plan.reranker, scorer)
    with profiler.stage("tokenise") as stage:
        passages = PassageTexts.of(corpus, chunks, found.passages[:, : candidates.depth])
        reranker = CandidateScorer(scorer, passages, kept)
        tables = reranker.tokenize(queries)
        stage.items, stage.unit = len(queries) + len(passages.texts), "texts"
    pairs = int((passages.rows >= 0).sum())
    with profiler.stage("rerank", pairs, "pairs"), bars("Processing queries", len(queries)) as progress:
        scores = reranker.pair_scores(queries, candidates, progress, tables)
    log.info("Pairs: %s scored, %s kept from earlier runs", f"{reranker.scored:,}", f"{reranker.reused:,}")
    return scores


def kept_pair_scores(data: DataFolder, model: ResolvedModel, scorer: CrossEncoderScorer) -> PairScores:
    """Scores that this model has given before, with the same limit of tokens and the same arithmetic."""
    key = fingerprint([model.fingerprint, scorer.max_length, scorer.arithmetic])
    return PairScores(data.runs / "pair_scores" / key)


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
) -> SearchResult:
    """A whole run: retrieve, fuse, rerank, evaluate, submit; every stage's run is kept under ``data/runs``.

    Args:
        qrels: labels, or ``None``: then nothing is measured.
        output: the submission file.
        record: what the manifests of the runs keep (settings, models, fingerprints of the questions).

    Raises:
        UserError: where the corpus is smaller than ``top_k``, an index is stale, or a question cannot be answered.
    """
    check_depth(corpus, plan.top_k)
    found = retrieve(data, corpus, chunks, queries, indices, plan, profiler, bars)
    final, fit = rerank_candidates(data, corpus, chunks, queries, found, plan, indices.device, profiler, bars, qrels)
    with profiler.stage("write", len(queries), "questions"):
        before = evaluate(found.fused.cut(plan.candidate_k), corpus, qrels) if qrels is not None else None
        after = evaluate(final if fit is None else fit.held_out, corpus, qrels) if qrels is not None else None
        write_submission(output, final, queries, corpus, plan.top_k)
        for run in (*found.runs, found.fused):
            save_run(data.runs, run, corpus, record)
        metrics = {"before": before and before.metrics, "after": after and after.metrics}
        extra: dict[str, Any] = {**record, "metrics": metrics, "warnings": list(warnings)}
        if fit is not None:
            extra["blend_fit"] = {
                "weight": fit.weight, "fold_weights": fit.fold_weights, "gain": asdict(fit.gain), "shown": fit.shown,
            }  # fmt: skip
        save_run(data.runs, final, corpus, extra)
    return SearchResult(final, before, after, plan.reranker is not None, tuple(warnings), fit)
