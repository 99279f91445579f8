"""Settings and flags become the plain plans that the pipeline takes."""

import logging
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace

from _cli import PROJECT_ROOT

import torch

from config import Settings, differences, in_place_of_shipped
from src.core.types import Chunks, Corpus, Queries
from src.engine.devices import CpuEngine
from src.indexing import EncoderPlan, IndexPlan
from src.models.language_guard import choose_reranker
from src.models.prefixes import choose_prefixes
from src.models.resolve import ModelResolver, ResolvedModel
from src.retrieval import SearchPlan

log = logging.getLogger("search")

WITHOUT_CHUNKS = (
    "ENABLE_CHUNKS = False: encoders and BM25 over chunks are off, and of a long page the models read its beginning "
    "alone"
)


def model_resolver(settings: Settings) -> ModelResolver:
    """Finds models as the settings say."""
    return ModelResolver(
        PROJECT_ROOT / "data" / "models", PROJECT_ROOT, settings.when_model_unavailable, settings.allow_remote_code
    )


def encoder_plans(settings: Settings, resolver: ModelResolver) -> tuple[EncoderPlan, ...]:
    """The bi-encoders of the settings, resolved; a model that is named twice is resolved once.

    Entries that turn out to be the same model over the same unit (where one model stands in for several) become one,
    with the sum of their weights: searched twice they would count the same.
    """
    entries = [entry for entry in settings.encoders if settings.enable_chunks or entry.unit == "document"]
    asked = dict.fromkeys((entry.model, entry.pooling) for entry in entries)
    resolved = {(name, pooling): resolver.resolve(name, "bi-encoder", pooling) for name, pooling in asked}
    plans: dict[str, EncoderPlan] = {}
    for entry in entries:
        model = resolved[entry.model, entry.pooling]
        # Prefixes and pooling are those of the model that was asked for, not of one that stands in for it.
        own = model.warning is None
        prefixes = choose_prefixes(
            model, entry.query_prefix if own else None, entry.document_prefix if own else None
        )  # fmt: skip
        for warning in prefixes.warnings:
            log.warning("WARNING: %s", warning)
        pooling = entry.pooling or model.assumed_pooling if own else None
        plan = EncoderPlan(
            model, entry.unit, entry.weight, prefixes.query, prefixes.document, pooling, prefixes.warnings
        )
        same = plans.get(plan.name)
        if same is not None:
            log.warning(
                "WARNING: %s over %ss stands for %s and %s: it is searched once, with weight %g",
                model.used, entry.unit, same.model.requested, model.requested, same.weight + plan.weight,
            )  # fmt: skip
            plan = replace(same, model=_merged(same.model, model), weight=same.weight + plan.weight)
        plans[plan.name] = plan
    return tuple(plans.values())


def _merged(first: ResolvedModel, second: ResolvedModel) -> ResolvedModel:
    """One model in the place of two that were asked for, with what there is to say of both."""
    warnings = dict.fromkeys(warning for warning in (first.warning, second.warning) if warning)
    return replace(first, warning="; ".join(warnings) or None)


def preset_lines(settings: Settings) -> Iterator[str]:
    """Lines that say which preset is in force, and what differs from it."""
    constants = settings.snapshot()
    changed = differences(constants)
    yield f"Preset: {settings.search_preset}" + ("" if changed else ", nothing differs from it")
    instead = in_place_of_shipped(constants)
    if instead:
        yield (
            f"  it sets {', '.join(instead)}. A constant at its shipped value follows the preset; PRESET_OVERRIDES "
            "insists on it"
        )
    for line in changed:
        yield f"  differs: {line}"
    size, overlap = settings.chunk_tokens, settings.chunk_overlap_tokens
    if settings.chunk_unit == "characters":
        size, overlap = settings.chunk_characters, settings.chunk_overlap_characters
    chunks = f"chunks of {size} {settings.chunk_unit} with overlap {overlap}" if settings.enable_chunks else "no chunks"
    yield (
        f"Sizes: {chunks}; per question {settings.search_depth_documents} documents of each encoder, "
        f"{settings.search_depth_bm25} of BM25, {settings.search_depth_chunks} chunks; texts of at most "
        f"{settings.encoder_max_tokens} tokens, pairs of {settings.reranker_max_length}."
    )
    if not settings.enable_chunks:
        yield f"WARNING: {WITHOUT_CHUNKS}"


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
    chunk = settings.bm25_chunk_weight if settings.enable_chunks else 0.0
    return {"document": settings.bm25_document_weight, "chunk": chunk}


def reranker_plans(
    settings: Settings, resolver: ModelResolver, corpus: Corpus
) -> tuple[tuple[ResolvedModel, float], ...]:
    """The cross-encoders of the settings with their weights, each one that can read the corpus.

    Two that turn out to be the same model become one, with the sum of their weights.
    """
    entries = [(r.model, r.weight) for r in settings.rerankers] or [(settings.cross_encoder_model, 1.0)]
    chosen: dict[str, tuple[ResolvedModel, float]] = {}
    for name, weight in entries:
        model = choose_reranker(resolver, name, settings.cross_encoder_model_multilingual, corpus)
        same = chosen.get(model.fingerprint)
        if same is not None:
            log.warning("WARNING: %s scores for %s and %s: it is asked once", model.used, same[0].requested, name)
            model, weight = _merged(same[0], model), same[1] + weight
        chosen[model.fingerprint] = model, weight
    return tuple(chosen.values())


def search_plan(
    settings: Settings,
    flags: Namespace,
    rerankers: tuple[tuple[ResolvedModel, float], ...],
    build_command: str | None = None,
) -> SearchPlan:
    """How this run searches and reranks.

    Args:
        build_command: what makes stale indices anew, with the flags of this run.
    """
    return SearchPlan(
        bm25_weights=bm25_weights(settings),
        fusion=settings.fusion_method,
        rrf_k=settings.rrf_k,
        depth_documents=max(settings.search_depth_documents, settings.reranker_candidate_k),
        depth_bm25=max(settings.search_depth_bm25, settings.reranker_candidate_k),
        depth_chunks=settings.search_depth_chunks,
        candidate_k=max(settings.reranker_candidate_k, flags.top_k),
        top_k=flags.top_k,
        rerankers=rerankers,
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
        variant_weight=settings.query_variant_weight,
        reranker_query=settings.reranker_query,
        fresh=getattr(flags, "fresh", False),
        build_command=build_command,
    )


def with_flags(settings: Settings, flags: Namespace) -> Settings:
    """The settings as the flags of the search change them: what a run is recorded with."""
    changed = {
        "enable_cross_encoder_reranking": flags.rerank,
        "reranker_candidate_k": max(settings.reranker_candidate_k, flags.top_k),
        "top_k": flags.top_k,
    }
    return settings.model_copy(update=changed)


def run_warnings(
    settings: Settings, encoders: Sequence[EncoderPlan], rerankers: Sequence[tuple[ResolvedModel, float]]
) -> list[str]:
    """What is to be repeated wherever results are shown: swapped models, wrong prefixes, chunks that are off."""
    models = [*(encoder.model for encoder in encoders), *(model for model, _ in rerankers)]
    found = [model.warning for model in models if model.warning]
    found += [warning for encoder in encoders for warning in encoder.warnings]
    found += [] if settings.enable_chunks else [WITHOUT_CHUNKS]
    return list(dict.fromkeys(found))


def _described(encoder: EncoderPlan) -> str:
    prefixes = [encoder.query_prefix or "", encoder.document_prefix or ""]
    told = f"prefixes {prefixes[0]!r} and {prefixes[1]!r}" if any(prefixes) else "no prefixes"
    return f"{encoder.model.describe()}, {told}"


def plan_lines(
    corpus: Corpus, chunks: Chunks, queries: Queries, indices: IndexPlan, plan: SearchPlan, labels: str
) -> Iterator[str]:
    """Lines that say what will run: models and where they came from, device, sizes, K, labels."""
    yield f"Corpus: {len(corpus):,} documents, {len(chunks):,} chunks. Questions: {len(queries):,}. Labels: {labels}."
    for encoder in indices.encoders:
        yield f"Bi-encoder over {encoder.unit}s: {_described(encoder)}, weight {encoder.weight:g}"
    for unit in indices.bm25_units:
        yield (
            f"BM25 over {unit}s: {indices.bm25_backend}, k1 {indices.bm25_k1:g}, b {indices.bm25_b:g}, "
            f"weight {plan.bm25_weights[unit]:g}"
        )
    fusion = "to be fitted" if plan.fit_fusion else plan.fusion if plan.fusion == "convex" else f"rrf, k {plan.rrf_k}"
    late = f", late interaction weight {plan.late_weight:g}" if plan.late_weight > 0 else ""
    yield f"Fusion: {fusion}{late}. Device: {indices.device}."
    if not plan.rerankers:
        yield f"Reranking: off. Submission: top {plan.top_k} of stage one."
        return
    blend = "to be fitted" if plan.fit_blend else f"{plan.blend_weight:g}"
    if (len(plan.rerankers) > 1 or plan.rerankers[0][0].source != "embedded") and not plan.fit_blend:
        blend += " (its default was measured on the embedded model alone; --fit-blend fits it to your labels)"
    models = ", ".join(
        model.describe() + (f" weight {weight:g}" if len(plan.rerankers) > 1 else "")
        for model, weight in plan.rerankers
    )
    yield (
        f"Reranking: {models}, {plan.candidate_k} candidates, {plan.passages_per_document} passage(s) each, "
        f"blend weight {blend}. Submission: top {plan.top_k}."
    )
