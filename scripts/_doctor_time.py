"""How long the run would take, in 00_doctor.py: the models are measured on the user's own texts, for a moment."""

from collections.abc import Iterator, Sequence
from typing import Literal

from _doctor import Patient
from src.core.memory import free_models
from src.core.pair_scores import hash_texts
from src.core.types import Chunks, Corpus
from src.engine.pair_scorer import PairScorer, needs_library
from src.indexing import EncoderPlan, IndexPlan, embedding_identity, load_encoder, tokens_left_out, units_of
from src.insight.doctor import Finding, duration, mean_tokens, pairs_per_second, tokens_per_second
from src.models.resolve import ResolvedModel
from src.pipeline import kept_pair_scores
from src.retrieval import SearchPlan

MEASURED_SECONDS = 2.0  # of all models together
START_SECONDS = 12.0  # imports and loading the models, as measured on two cores
CONVERSION_SECONDS = 30.0
OPENVINO_OVER_TORCH = 2.5  # of the embedded models in float32, on two cores with AVX512

# What a bi-encoder encodes: role, name, texts or some of them, and how many there are.
Work = tuple[Literal["query", "document"], str, tuple[str, ...], int]


def time_needed(patient: Patient) -> Iterator[Finding]:
    """The expected time of the run, from a short measurement of the models on the user's own texts."""
    if patient.corpus is None or patient.queries is None:
        return
    unknown = [f"{name}: {why}" for name, why in patient.unknown.items()]
    if patient.chunks is None:
        if unknown:
            yield Finding("note", "time", "; ".join(unknown))
        return
    parts = list(_times(patient, patient.corpus, patient.chunks))
    total = duration(sum(seconds for _, seconds in parts)) + (" without what is not known" if unknown else "")
    text = f"about {total}: {', '.join([*(part for part, _ in parts), *unknown])}"
    yield Finding("note" if unknown else "ok", "time", text)


def _times(patient: Patient, corpus: Corpus, chunks: Chunks) -> Iterator[tuple[str, float]]:
    """What each part of the run takes: a text, and seconds."""
    yield f"start {START_SECONDS:.0f} s", START_SECONDS
    faster, texts = 1.0, units_of(corpus, chunks, "chunk").texts
    if not patient.converted:
        faster = OPENVINO_OVER_TORCH
        how = f"the rest measured with torch, OpenVINO taken to be {faster:g} times as fast"
        yield f"converting the models, once, {CONVERSION_SECONDS:.0f} s; {how}", CONVERSION_SECONDS
    indices, plan = patient.measured_plans()
    encoding = _encoding(patient, indices, corpus, chunks)
    share = MEASURED_SECONDS / max(1, len(encoding) + len(patient.scorers))
    for encoder, work in encoding:
        model = load_encoder(encoder, indices)
        by = f" by {encoder.model.used}" if len(encoding) > 1 else ""
        everything = [text for _, _, some, _ in work for text in some]
        rate = faster * tokens_per_second(model, everything, work[-1][0], indices.batch_size, share)
        for role, what, some, count in work:
            seconds = count * mean_tokens(model, some, role) / rate
            yield f"encoding {count:,} {what}{by} {seconds:.0f} s", seconds
        del model  # two large ones may not fit together
    for reranker, _ in plan.rerankers:
        scorer = patient.scorers.pop(reranker.fingerprint, None)
        if scorer is None:
            yield f"{reranker.used}: not measured", 0.0
            continue
        free_models()
        by_openvino = faster if needs_library(reranker.directory) is None else 1.0
        rate = by_openvino * pairs_per_second(scorer, patient.read.texts, texts, plan.batch_size, share)
        yield _reranking(patient, plan, reranker, scorer, rate, texts)


def _encoding(
    patient: Patient, indices: IndexPlan, corpus: Corpus, chunks: Chunks
) -> list[tuple[EncoderPlan, list[Work]]]:
    """What each bi-encoder has to encode: always the questions, and its units where their vectors are stale."""
    assert patient.queries is not None
    asked = tuple(dict.fromkeys(patient.variants.asked(patient.queries).texts))
    what = "questions and variants" if len(patient.variants) else "questions"
    found: dict[tuple[str, str | None, str | None], tuple[EncoderPlan, list[Work]]] = {}
    for encoder in patient.encoders:
        # A search encodes the questions once for all encoders that agree in these.
        key = encoder.model.fingerprint, encoder.query_prefix, encoder.pooling
        _, work = found.setdefault(key, (encoder, [("query", what, asked, len(asked))]))
        if encoder.name in patient.stale or f"{encoder.name}-tokens" in patient.stale:
            texts = units_of(corpus, chunks, encoder.unit).texts
            count = len(texts) / (patient.cut if encoder.unit == "chunk" else 1.0)
            work.append(("document", f"{encoder.unit}s", texts, round(count)))
    late = indices.late_encoder
    if late is not None and patient.inputs is not None and late.name not in patient.stale:
        units = units_of(corpus, chunks, late.unit)
        folder = patient.inputs.data.tokens(late.name)
        if tokens_left_out(folder, embedding_identity(indices, late, units), indices):
            key = late.model.fingerprint, late.query_prefix, late.pooling
            what = "chunks at most, anew in every search, for late interaction"
            found[key][1].append(("document", what, units.texts, len(units.texts)))
    return list(found.values())


def _reranking(
    patient: Patient, plan: SearchPlan, model: ResolvedModel, scorer: PairScorer, rate: float, chunks: Sequence[str]
) -> tuple[str, float]:
    assert patient.corpus is not None
    assert patient.inputs is not None
    assert patient.queries is not None
    asked, read = patient.queries.texts, patient.read.texts
    owners = [*range(len(asked)), *patient.variants.owners.tolist()][: len(read)]
    # A wording meets the candidates of its question.
    wordings = len({(asked[owner], text) for owner, text in zip(owners, read, strict=True)})
    pairs = wordings * min(plan.candidate_k, len(patient.corpus)) * plan.passages_per_document
    if not scorer.joint:
        pairs = min(pairs, patient.chunk_count)
    kept = kept_pair_scores(patient.inputs.data, model, scorer, fresh=False, read_only=True)
    # Candidates are not known yet; those that questions and passages of this corpus were scored with are likely ones.
    reused = min(pairs, kept.count(hash_texts(read), hash_texts(chunks)) if len(kept) else 0)
    speed = f"{rate:,.0f} pairs/s" if rate >= 10 else f"{rate:.2g} pairs/s"
    left = f", {reused:,} of them kept from earlier runs," if reused else ""
    seconds = (pairs - reused) / rate
    return f"reranking {pairs:,} pairs{left} {seconds:.0f} s ({speed})", seconds
