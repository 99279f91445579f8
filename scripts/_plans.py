"""Settings and flags become the plain plans that the pipeline takes."""

from argparse import Namespace
from collections.abc import Iterator

import torch

from _cli import PROJECT_ROOT
from config import Settings
from src.core.types import Chunks, Corpus, Queries
from src.engine.devices import CpuEngine
from src.indexing import EncoderPlan, IndexPlan
from src.models.resolve import ModelResolver, ResolvedModel
from src.retrieval import SearchPlan


def encoder_plans(settings: Settings, resolver: ModelResolver) -> tuple[EncoderPlan, ...]:
    """The bi-encoders of the settings, resolved; a model that is named twice is resolved once."""
    resolved = {
        name: resolver.resolve(name, "bi-encoder") for name in dict.fromkeys(e.model for e in settings.encoders)
    }
    return tuple(
        EncoderPlan(resolved[e.model], e.unit, e.weight, e.query_prefix, e.document_prefix) for e in settings.encoders
    )


def index_plan(settings: Settings, encoders: tuple[EncoderPlan, ...], device: str) -> IndexPlan:
    """What the indices are made with."""
    weights = bm25_weights(settings)
    return IndexPlan(
        encoders=encoders,
        batch_size=settings.encoder_batch_size,
        max_tokens=settings.encoder_max_tokens,
        bm25_backend=settings.bm25_backend,
        bm25_k1=settings.bm25_k1,
        bm25_b=settings.bm25_b,
        bm25_units=tuple(unit for unit, weight in weights.items() if weight > 0),
        device=device,
        cpu=cpu_engine(settings),
        late_interaction=settings.late_interaction_weight > 0,
        token_bytes=int(settings.late_interaction_gb * 1e9),
    )


def cpu_engine(settings: Settings) -> CpuEngine:
    """How a CPU runs the models; threads as they were set up."""
    return CpuEngine(settings.cpu_engine, PROJECT_ROOT / "data" / "models" / "openvino", torch.get_num_threads())


def bm25_weights(settings: Settings) -> dict[str, float]:
    """Unit -> weight of BM25 in the fusion."""
    return {"document": settings.bm25_document_weight, "chunk": settings.bm25_chunk_weight}


def search_plan(settings: Settings, flags: Namespace, reranker: ResolvedModel | None) -> SearchPlan:
    """How this run searches and reranks."""
    return SearchPlan(
        bm25_weights=bm25_weights(settings),
        fusion=settings.fusion_method,
        rrf_k=settings.rrf_k,
        depth_documents=max(settings.search_depth_documents, settings.reranker_candidate_k),
        depth_chunks=settings.search_depth_chunks,
        candidate_k=max(settings.reranker_candidate_k, flags.top_k),
        top_k=flags.top_k,
        reranker=reranker,
        batch_size=settings.reranker_batch_size,
        max_length=settings.reranker_max_length,
        blend_weight=settings.reranker_blend_weight,
        passages_per_document=settings.reranker_passages_per_document,
        precision=settings.reranker_precision,
        cpu=cpu_engine(settings),
        late_weight=settings.late_interaction_weight,
        passage_choice=settings.reranker_passage_choice,
        fit_blend=getattr(flags, "fit_blend", False),
        fit_fusion=getattr(flags, "fit_fusion", False),
        fresh=getattr(flags, "fresh", False),
    )


def plan_lines(
    corpus: Corpus, chunks: Chunks, queries: Queries, indices: IndexPlan, plan: SearchPlan, labels: str
) -> Iterator[str]:
    """Lines that say what will run: models and where they came from, device, sizes, K, labels."""
    yield f"Corpus: {len(corpus):,} documents, {len(chunks):,} chunks. Questions: {len(queries):,}. Labels: {labels}."
    for encoder in indices.encoders:
        yield f"Bi-encoder over {encoder.unit}s: {encoder.model.describe()}, weight {encoder.weight:g}"
    for unit in indices.bm25_units:
        yield (
            f"BM25 over {unit}s: {indices.bm25_backend}, k1 {indices.bm25_k1:g}, b {indices.bm25_b:g}, "
            f"weight {plan.bm25_weights[unit]:g}"
        )
    fusion = "to be fitted" if plan.fit_fusion else plan.fusion if plan.fusion == "convex" else f"rrf, k {plan.rrf_k}"
    late = f", late interaction weight {plan.late_weight:g}" if plan.late_weight > 0 else ""
    yield f"Fusion: {fusion}{late}. Device: {indices.device}."
    if plan.reranker is None:
        yield f"Reranking: off. Submission: top {plan.top_k} of stage one."
    else:
        blend = "to be fitted" if plan.fit_blend else f"{plan.blend_weight:g}"
        if plan.reranker.source != "embedded" and not plan.fit_blend:
            blend += " (its default was measured on the embedded model alone; --fit-blend fits it to your labels)"
        yield (
            f"Reranking: {plan.reranker.describe()}, {plan.candidate_k} candidates, "
            f"{plan.passages_per_document} passage(s) each, blend weight {blend}. "
            f"Submission: top {plan.top_k}."
        )
