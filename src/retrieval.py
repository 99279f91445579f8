"""The composition of stage one: search every index, fuse, compare token by token, choose the passages to be read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from src.core.artifacts import require_current
from src.core.errors import StaleArtifactError
from src.core.spool import Spool, blocks
from src.core.storage import DataFolder, load_token_vectors, load_vectors
from src.core.types import Chunks, Corpus, Floats, Qrels, Queries, Rows, Run, TokenVectors, offsets_of
from src.engine.devices import CpuEngine, Precision
from src.indexing import (
    TOKENS,
    Bars,
    EncoderPlan,
    IndexPlan,
    Units,
    bm25_identity,
    build_command,
    embedding_identity,
    load_encoder,
    tokens_left_out,
    units_of,
)
from src.insight.profile import Profiler
from src.models.resolve import ResolvedModel
from src.quality.fit import FusionFit, fit_fusion
from src.stages.fuse import Method, Weighted, fuse, fuse_wordings
from src.stages.index import Bm25Index, FaissIndex
from src.stages.late_interaction import late_scores, late_scores_in_blocks, maxsim_over
from src.stages.rerank import blend
from src.stages.retrieve import PassageChoice, choose_passages, dense_run, follow_documents, lexical_run
from src.stages.variants import QueryVariants, RerankerQuery

QueryKey = tuple[str, str | None, str | None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchPlan:
    """How a run searches and reranks.

    Attributes:
        rerankers: cross-encoders with their weights; none turns reranking off.
        passages_per_document: chunks of a candidate that late interaction and the cross-encoder read.
        late_weight: of late interaction in stage one's order of the candidates; 0 turns it off.
        passage_choice: ``best`` chunks by the bi-encoder, or the ``first`` ones of the document (FirstP).
        precision: of the cross-encoder; see :func:`src.engine.devices.settled_precision`.
        cpu: how a CPU runs the cross-encoder.
        fit_blend: fit ``blend_weight`` on the labels; what is fitted is used where its gain is shown.
        fit_fusion: fit the method of the fusion and the weights of the runs on the labels.
        variant_weight: of a query variant against 1 for the question, within each index.
        reranker_query: what the cross-encoder reads: the ``original`` question, or that and its variants, of which the
            ``max`` or the ``mean`` counts.
        fresh: score every pair anew, whatever is kept.
        build_command: makes the indices anew, as it is to be typed; ``None``: 02 over the data folder of the search.
    """

    bm25_weights: Mapping[str, float]
    fusion: Method
    rrf_k: int
    depth_documents: int
    depth_bm25: int
    depth_chunks: int
    candidate_k: int
    top_k: int
    rerankers: tuple[tuple[ResolvedModel, float], ...]
    batch_size: int
    max_length: int
    blend_weight: float
    passages_per_document: int
    precision: Precision
    cpu: CpuEngine
    late_weight: float
    passage_choice: PassageChoice
    fit_blend: bool = False
    fit_fusion: bool = False
    variant_weight: float = 0.7
    reranker_query: RerankerQuery = "original"
    fresh: bool = False
    build_command: str | None = None


@dataclass(frozen=True)
class Retrieval:
    """What stage one hands on.

    Attributes:
        runs: the run of each index.
        fused: the candidates.
        passages: int32 [Q, K, m], the chunks of each candidate to be read, best first.
        nearest: float32 [Q, D] and [C, D], vectors of questions and chunks that chose the best passages; ``None``
            where nothing encodes chunks.
        fit: the fitted fusion, where one was asked for.
        late: the fused run as it was before late interaction, and float32 [Q, K], the score that late interaction gave
            each of its candidates; ``None`` where that is off.
        variants: the wordings that were searched beside the questions.
        spool: where what is made of every question lies.
    """

    runs: tuple[Run, ...]
    fused: Run
    passages: Rows
    nearest: tuple[Floats, Floats] | None = None
    fit: FusionFit | None = None
    late: tuple[Run, Floats] | None = None
    variants: QueryVariants = field(default_factory=QueryVariants)
    spool: Spool = field(default_factory=Spool)


def retrieve(
    data: DataFolder,
    corpus: Corpus,
    chunks: Chunks,
    queries: Queries,
    indices: IndexPlan,
    plan: SearchPlan,
    profiler: Profiler,
    bars: Bars,
    qrels: Qrels | None = None,
    variants: QueryVariants | None = None,
    spool: Spool | None = None,
) -> Retrieval:
    """Stage one: search every index and fuse.

    Args:
        spool: where what is made of every question lies; by default in files under ``data/runs``.
        variants: wordings to search beside the questions; late interaction and the choice of passages go by the
            questions alone.
        qrels: what the fusion is fitted on, where the plan asks for that.

    Raises:
        StaleArtifactError: where an index is missing, stale or damaged; names the command that makes it anew.
    """
    weighted: list[Weighted] = []
    variants = variants or QueryVariants()
    spool = spool or Spool(data.runs)
    asked = variants.asked(queries)
    chunk_choice: tuple[Floats, Floats] | None = None
    query_vectors: dict[QueryKey, Floats] = {}
    late = _late_encoder(indices, plan)
    late_key = None if late is None else _query_key(late)
    fix = plan.build_command or build_command(data)
    question_tokens: TokenVectors | None = None

    @cache
    def units_by(unit: str) -> Units:
        return units_of(corpus, chunks, unit)

    def add(item: Weighted) -> None:
        weighted.append(_of_questions(item, queries, variants, plan, spool))

    for encoder in indices.encoders:
        units = units_by(encoder.unit)
        with profiler.stage("load"):
            identity = embedding_identity(indices, encoder, units)
            require_current(data.embeddings(encoder.name), "embeddings", *identity, fix=fix)
            require_current(data.index(encoder.name), "faiss", *identity, fix=fix)
            index = _load_faiss(data.index(encoder.name) / "index.faiss", len(units.texts), indices.device, fix)
        key = _query_key(encoder)
        if key not in query_vectors:
            query_vectors[key], tokens = _encode_queries(
                encoder, asked, indices, profiler, bars, key == late_key, spool
            )
            question_tokens = question_tokens or tokens
        depth = plan.depth_chunks if encoder.unit == "chunk" else plan.depth_documents
        with profiler.stage("dense search", len(asked), "searches"):
            run = dense_run(
                encoder.name, index, query_vectors[key], units.docs, asked, corpus, depth, plan.depth_documents, spool
            )
        add(Weighted(run, encoder.weight))
        if encoder.unit == "chunk" and chunk_choice is None:
            vectors = load_vectors(data.embeddings(encoder.name), len(chunks), fix)
            chunk_choice = (query_vectors[key][: len(queries)], vectors)
    for unit in indices.bm25_units:
        add(_lexical(data, corpus, units_by(unit), asked, indices, plan, unit, profiler, spool, fix))
    with profiler.stage("fusion", len(queries), "questions"):
        depth = max(plan.candidate_k, plan.top_k)
        if plan.fit_fusion and qrels is not None:
            fused, fit = _fused_by_labels(weighted, plan, depth, corpus, qrels, spool)
        else:
            fused, fit = _fused(weighted, plan.fusion, plan.rrf_k, depth, spool), None
        passages = _passages(fused, chunks, chunk_choice, plan, spool)
    before_late = None
    if late is not None and question_tokens is not None:
        scores = _late_scores(
            data, units_by("chunk"), question_tokens, passages, late, indices, profiler, bars, spool, fix
        )
        before, fused = fused, blend(fused, scores, plan.late_weight, "fused", spool)
        passages = _following(passages, before, fused, spool)
        before_late = before, scores
    return Retrieval(
        tuple(item.run for item in weighted), fused, passages, chunk_choice, fit, before_late, variants, spool
    )  # fmt: skip


def at_depth(found: Retrieval, depth: int, late_weight: float) -> Run:
    """The candidates of a search with fewer of them, [Q, depth]: late interaction is weighed among these alone."""
    if found.late is None or depth >= found.fused.depth:
        return found.fused.cut(depth)
    before, scores = found.late
    return blend(before.cut(depth), scores[:, :depth], late_weight, found.fused.name, found.spool)


def _of_questions(
    item: Weighted, queries: Queries, variants: QueryVariants, plan: SearchPlan, spool: Spool
) -> Weighted:
    """The run of one index over questions and variants becomes a run over the questions."""
    if not len(variants):
        return item
    run = item.run

    def made(rows: slice) -> Run:
        first, last = np.searchsorted(variants.owners, [rows.start, rows.stop]).tolist()
        wordings = run.picked([*range(rows.start, rows.stop), *range(len(queries) + first, len(queries) + last)])
        owners = variants.owners[first:last] - np.int32(rows.start)
        return fuse_wordings(
            wordings, rows.stop - rows.start, owners, plan.variant_weight, plan.fusion, plan.rrf_k, item.absent_is_zero
        )

    merged = Run.in_blocks(run.name, queries.query_ids, run.depth, run.corpus_fingerprint, spool, made)
    return replace(item, run=merged)


def _fused_by_labels(
    weighted: Sequence[Weighted], plan: SearchPlan, depth: int, corpus: Corpus, qrels: Qrels, spool: Spool
) -> tuple[Run, FusionFit]:
    """The fused run with fitted weights: a labelled question gets those that were fitted without it."""

    def fused(method: Method, weights: Sequence[float]) -> Run:
        items = [replace(item, weight=weight) for item, weight in zip(weighted, weights, strict=True)]
        return _fused(items, method, plan.rrf_k, depth, spool)

    return fit_fusion(plan.fusion, [item.weight for item in weighted], fused, corpus, qrels)


def _fused(weighted: Sequence[Weighted], method: Method, rrf_k: int, depth: int, spool: Spool) -> Run:
    if not weighted:
        raise ValueError("no run with a positive weight")
    first = weighted[0].run

    def made(rows: slice) -> Run:
        return fuse([replace(item, run=item.run.part(rows)) for item in weighted], method, rrf_k, depth)

    return Run.in_blocks("fused", first.query_ids, depth, first.corpus_fingerprint, spool, made)


def _query_key(encoder: EncoderPlan) -> QueryKey:
    return encoder.model.fingerprint, encoder.query_prefix, encoder.pooling


def _late_encoder(indices: IndexPlan, plan: SearchPlan) -> EncoderPlan | None:
    if plan.late_weight > 0 and indices.late_encoder is None:
        log.warning("WARNING: no encoder works on chunks: late interaction is off. Name one in ENCODERS.")
    return indices.late_encoder if plan.late_weight > 0 else None


def _passages(run: Run, chunks: Chunks, nearest: tuple[Floats, Floats] | None, plan: SearchPlan, spool: Spool) -> Rows:
    def made(rows: slice) -> Rows:
        near = None if nearest is None else (nearest[0][rows], nearest[1])
        return choose_passages(run.part(rows), chunks, near, plan.passage_choice, plan.passages_per_document)

    return spool.filled(len(run.query_ids), (run.depth, plan.passages_per_document), np.int32, made)


def _following(passages: Rows, before: Run, after: Run, spool: Spool) -> Rows:
    return spool.filled(
        len(passages), passages.shape[1:], np.int32,
        lambda rows: follow_documents(passages[rows], before.part(rows), after.part(rows)),
    )  # fmt: skip


def _late_scores(
    data: DataFolder,
    units: Units,
    questions: TokenVectors,
    passages: Rows,
    encoder: EncoderPlan,
    indices: IndexPlan,
    profiler: Profiler,
    bars: Bars,
    spool: Spool,
    fix: str,
) -> Floats:
    folder, identity = data.tokens(encoder.name), embedding_identity(indices, encoder, units)
    stage, bar = profiler.stage("late interaction", len(passages), "questions"), bars("Late interaction", len(passages))
    if not tokens_left_out(folder, identity, indices):
        require_current(folder, TOKENS, *identity, fix=fix)
        tokens = load_token_vectors(folder, len(units.texts), fix)
        with stage, bar as progress:
            score = maxsim_over(tokens, indices.device)
            return spool.filled(
                len(passages), passages.shape[1:2], np.float32,
                lambda rows: late_scores(questions.part(rows), score, passages[rows], progress),
            )  # fmt: skip
    log.info("Token vectors were too large to be kept: those of the candidates are made now")
    model = load_encoder(encoder, indices)
    widest = 2 * model.token_dimension * indices.max_tokens

    def encode(rows: Rows) -> TokenVectors:
        return model.encode_tokens([units.texts[row] for row in rows.tolist()], "document", indices.batch_size)[1]

    most = max(1, indices.token_bytes // widest)
    with stage, bar as progress:
        return spool.filled(
            len(passages), passages.shape[1:2], np.float32,
            lambda rows: late_scores_in_blocks(
                questions.part(rows), passages[rows], encode, most, indices.device, progress
            ),
        )  # fmt: skip


def _load_faiss(path: Path, units: int, device: str, fix: str) -> FaissIndex:
    try:
        index = FaissIndex.load(path, device)
    except RuntimeError as error:
        raise StaleArtifactError(f"{path}: cannot be read ({str(error)[:120]}). Run: {fix}") from error
    if len(index) != units:
        raise StaleArtifactError(f"{path}: holds {len(index)} vectors, {units} expected. Run: {fix}")
    return index


def _encode_queries(
    encoder: EncoderPlan,
    queries: Queries,
    indices: IndexPlan,
    profiler: Profiler,
    bars: Bars,
    by_token: bool,
    spool: Spool,
) -> tuple[Floats, TokenVectors | None]:
    with profiler.stage("load"):
        model = load_encoder(encoder, indices)
    with profiler.stage("encode", len(queries), "questions"), bars("Encoding questions", len(queries)) as progress:
        vectors = spool.array((len(queries), model.dimension), np.float32)
        if not by_token:
            for rows in blocks(len(queries)):
                vectors[rows] = model.encode(queries.texts[rows], "query", indices.batch_size, progress)
            return vectors, None
        counts = [model.token_counts(queries.texts[rows], "query") for rows in blocks(len(queries))]
        offsets = offsets_of(np.concatenate(counts))
        values = spool.array((int(offsets[-1]), model.token_dimension), np.float16)
        tokens = TokenVectors(values, offsets)
        for rows in blocks(len(queries)):
            keep = partial(_store, tokens.part(rows))
            vectors[rows] = model.encode(queries.texts[rows], "query", indices.batch_size, progress, keep)
    return vectors, tokens


def _store(tokens: TokenVectors, number: int, vectors: Floats) -> None:
    tokens[number][:] = vectors


def _lexical(
    data: DataFolder,
    corpus: Corpus,
    units: Units,
    queries: Queries,
    indices: IndexPlan,
    plan: SearchPlan,
    unit: str,
    profiler: Profiler,
    spool: Spool,
    fix: str,
) -> Weighted:
    folder = data.index(f"bm25-{unit}")
    with profiler.stage("load"):
        require_current(folder, "bm25", *bm25_identity(indices, unit, units), fix=fix)
        try:
            index = Bm25Index.load(folder)
        except (OSError, ValueError, KeyError) as error:
            raise StaleArtifactError(f"{folder}: cannot be read ({error}). Run: {fix}") from error
    depth = plan.depth_chunks if unit == "chunk" else plan.depth_bm25
    with profiler.stage("BM25", len(queries), "searches"):
        run = lexical_run(f"bm25-{unit}", index, units.docs, queries, corpus, depth, plan.depth_bm25, spool)
    return Weighted(run, plan.bm25_weights[unit], absent_is_zero=True)
