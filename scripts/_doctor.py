"""The examination of 00_doctor.py: each part yields findings, and one that fails does not hide the next."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from _cli import PROJECT_ROOT

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer

from _inputs import Inputs, choose_inputs, chunking, load_queries, prepared_corpus
from _plans import cpu_engine, encoder_plans, index_plan, reranker_plans, search_plan
from _variants import load_variants
from config import Settings, differences
from src.core.artifacts import MANIFEST_NAME
from src.core.data_lock import holder_of
from src.core.errors import StaleArtifactError, UserError
from src.core.types import Chunks, Corpus, Qrels, Queries
from src.engine.devices import pick_device
from src.engine.openvino_graphs import conversion_folder
from src.engine.pair_scorer import needs_library
from src.indexing import EncoderPlan, IndexPlan, index_status, load_encoder, units_of
from src.insight.doctor import Finding, Speed, duration, folder_bytes, machine_findings, measure, space_findings
from src.models.resolve import ModelResolver, ResolvedModel, hub_answers
from src.pipeline import scorer_of
from src.retrieval import SearchPlan
from src.stages.chunk import chunk_corpus
from src.stages.preprocess import read_corpus
from src.stages.submit import check_depth

MEASURED_SECONDS = 2.0
START_SECONDS = 12.0  # imports and loading the models, as measured on two cores
CONVERSION_SECONDS = 30.0
OPENVINO_OVER_TORCH = 2.5  # of the embedded models in float32, on two cores with AVX512
_BASE_MEMORY = 1 << 30
_SAMPLE = 256


@dataclass
class Patient:
    """What the parts of the examination find out for each other."""

    settings: Settings
    flags: argparse.Namespace
    inputs: Inputs | None = None
    corpus: Corpus | None = None
    chunks: Chunks | None = None
    queries: Queries | None = None
    qrels: Qrels | None = None
    encoders: tuple[EncoderPlan, ...] = ()
    rerankers: tuple[tuple[ResolvedModel, float], ...] = ()
    stale: list[str] = field(default_factory=list)
    prepared: bool = False

    @cached_property
    def device(self) -> str:
        """What the run will use; ``cpu`` for the rest of the examination where it has not what it asks for."""
        try:
            return pick_device(self.settings.device)
        except UserError:
            return "cpu"

    @property
    def resolver(self) -> ModelResolver:
        """Finds models that are here, and downloads none."""
        return ModelResolver(
            PROJECT_ROOT / "data" / "models", PROJECT_ROOT, self.settings.when_model_unavailable,
            self.settings.allow_remote_code, may_download=False,
        )  # fmt: skip

    def plans(self) -> tuple[IndexPlan, SearchPlan]:
        """What the run would do."""
        flags = argparse.Namespace(top_k=self.settings.top_k)
        return index_plan(self.settings, self.encoders, self.device), search_plan(self.settings, flags, self.rerankers)


def configuration(patient: Patient) -> Iterator[Finding]:
    """Preset, reranking, chunks."""
    settings = patient.settings
    changed = differences(settings.snapshot())
    yield Finding("ok", "preset", settings.search_preset + ("" if changed else ", nothing differs from it"))
    for line in changed:
        yield Finding("note", "  differs", line)
    on = settings.enable_cross_encoder_reranking
    state = f"on, {settings.reranker_candidate_k} candidates, blend weight {settings.reranker_blend_weight:g}"
    yield Finding("ok" if on else "note", "reranking", state if on else "off (ENABLE_CROSS_ENCODER_RERANKING = False)")
    chunks = settings.enable_chunks
    yield Finding("ok" if chunks else "note", "chunks", "on" if chunks else "off (ENABLE_CHUNKS = False)")


def machine(patient: Patient) -> Iterator[Finding]:
    """Python, torch, CUDA, driver, faiss."""
    return machine_findings(patient.settings.device)


def data(patient: Patient) -> Iterator[Finding]:
    """Corpus, questions, labels: read as the run reads them."""
    settings = patient.settings
    inputs = patient.inputs = choose_inputs(patient.flags, settings, PROJECT_ROOT)
    if inputs.corpus is not None:
        patient.corpus = read_corpus(inputs.corpus, settings.corpus_columns.model_dump())
    else:
        patient.corpus = prepared_corpus(inputs, settings, encoder_plans(settings, patient.resolver))[0]
    where = inputs.corpus or inputs.data.corpus
    yield Finding("ok", "corpus", f"{len(patient.corpus):,} documents ({inputs.origin}: {where})")
    check_depth(patient.corpus, settings.top_k)
    patient.queries, patient.qrels = load_queries(inputs, settings, patient.corpus)
    yield Finding("ok", "questions", f"{len(patient.queries):,} ({inputs.questions or inputs.data.questions})")
    if patient.qrels is None:
        yield Finding("note", "labels", f"none at {inputs.no_labels}: Hit@5 will not be measured")
    else:
        yield Finding("ok", "labels", f"{len(patient.qrels):,} labelled questions")
    try:
        variants = load_variants(settings, inputs.data, patient.queries, patient.queries)
        used = variants.describe(len(patient.queries)) if len(variants) else "none"
        yield Finding("ok", "variants", used)
    except UserError as error:
        yield Finding("FAIL", "variants", str(error))
    holder = holder_of(inputs.data.root)
    if holder is not None:
        yield Finding("FAIL", "in use", f"{inputs.data.root}: by {holder}. Let it end, or give --wait")


def models(patient: Patient) -> Iterator[Finding]:
    """Which models would be used, and where they come from."""
    settings, resolver = patient.settings, patient.resolver
    names = [(entry.model, "bi-encoder", entry.pooling) for entry in settings.encoders]
    if settings.enable_cross_encoder_reranking:
        wanted = [entry.model for entry in settings.rerankers] or [settings.cross_encoder_model]
        names += [(name, "cross-encoder", None) for name in wanted]
    pending = False
    for name, role, pooling in dict.fromkeys(names):
        try:
            model = resolver.resolve(name, role, pooling)  # type: ignore[arg-type]
        except UserError as error:
            if "not in the local hub cache" in str(error) and hub_answers():
                pending = True
                yield Finding("note", role, f"{name}: not here; the hub answers, the run would download it")
            else:
                yield Finding("FAIL", role, str(error))
            continue
        if model.warning is None:
            yield Finding("ok", role, model.describe())
        elif hub_answers():
            yield Finding("note", role, f"{name}: not here; the hub answers, the run would download it")
        else:
            yield Finding("note", role, f"{name}: not here, and the hub does not answer: {model.used} stands in for it")
    if pending:
        return
    patient.encoders = encoder_plans(settings, resolver)
    if settings.enable_cross_encoder_reranking and patient.corpus is not None:
        patient.rerankers = reranker_plans(settings, resolver, patient.corpus)
        for model, _ in patient.rerankers:
            unread = model.warning is not None and "cannot read" in model.warning
            text = model.warning if unread else f"{model.used} can read the corpus"
            yield Finding("note" if unread else "ok", "language", str(text))


def artefacts(patient: Patient) -> Iterator[Finding]:
    """Which artefacts are there, fresh or stale, and why."""
    if patient.inputs is None or patient.corpus is None:
        return
    try:
        patient.corpus, patient.chunks = prepared_corpus(patient.inputs, patient.settings, patient.encoders)
    except StaleArtifactError as reason:
        yield Finding("note", "processed", str(reason))
        patient.stale.append("processed")
        cutting, tokenizer = chunking(patient.settings), None
        if cutting.unit == "tokens" and patient.encoders:
            tokenizer = AutoTokenizer.from_pretrained(patient.encoders[0].model.directory, local_files_only=True)
        if cutting.unit != "tokens" or tokenizer is not None:
            patient.chunks = chunk_corpus(patient.corpus, cutting, tokenizer)
    else:
        yield Finding("ok", "processed", f"fresh, {len(patient.chunks):,} chunks")
    if patient.chunks is None:
        return
    for folder, why in index_status(patient.inputs.data, patient.corpus, patient.chunks, patient.plans()[0]):
        if why is None:
            yield Finding("ok", folder.parent.name, f"{folder.name}: fresh")
        else:
            patient.stale.append(folder.name)
            yield Finding("note", folder.parent.name, why)
    if patient.stale:
        yield Finding("note", "what to do", "./run_cross_encoder_search.sh makes what is missing or stale")


def space(patient: Patient) -> Iterator[Finding]:
    """Free disk and memory against what the run needs."""
    if patient.inputs is None or patient.chunks is None or patient.corpus is None or patient.queries is None:
        return iter(())
    indices, plan = patient.plans()
    disk = memory = 0
    largest = 0
    for encoder in patient.encoders:
        units = len(patient.chunks) if encoder.unit == "chunk" else len(patient.corpus)
        vectors = 4 * 1024 * units
        memory += vectors
        if encoder.name in patient.stale:
            disk += 2 * vectors
        largest = max(largest, folder_bytes(encoder.model.directory))
        if encoder == indices.late_encoder and f"{encoder.name}-tokens" in patient.stale:
            disk += min(indices.token_bytes, len(patient.chunks) * 2 * 1024 * patient.settings.chunk_tokens)
    largest = max([largest, *(folder_bytes(model.directory) for model, _ in plan.rerankers)])
    lists = len(patient.queries) * plan.depth_documents * 8 * (len(patient.encoders) + 4)
    return space_findings(
        patient.inputs.data.root, disk + lists + (64 << 20), _BASE_MEMORY + 2 * largest + memory + lists
    )


def time_needed(patient: Patient) -> Iterator[Finding]:
    """The expected time of the run, from a short measurement of the models on the user's own texts."""
    if patient.chunks is None or patient.corpus is None or patient.queries is None:
        return
    indices, plan = patient.plans()
    total, parts, faster = START_SECONDS, [f"start {START_SECONDS:.0f} s"], 1.0
    waiting = [e for e in patient.encoders if e.name in patient.stale or f"{e.name}-tokens" in patient.stale]
    if not _converted(patient):
        # Converting them here would take longer than the examination may.
        by_torch = replace(plan.cpu, engine="torch")
        indices, plan = replace(indices, cpu=by_torch), replace(plan, cpu=by_torch)
        total += CONVERSION_SECONDS
        faster = OPENVINO_OVER_TORCH
        parts.append(
            f"converting the models, once, {CONVERSION_SECONDS:.0f} s; the rest measured with torch, OpenVINO taken "
            f"to be {faster:g} times as fast"
        )
    for encoder in waiting:
        texts = units_of(patient.corpus, patient.chunks, encoder.unit).texts
        seconds = _encoding_seconds(encoder, indices, texts) / faster
        total += seconds
        parts.append(f"encoding {len(texts):,} {encoder.unit}s {seconds:.0f} s")
    for model, _ in plan.rerankers:
        pairs, seconds, rate = _reranking_seconds(patient, plan, model)
        by_openvino = faster if needs_library(model.directory) is None else 1.0
        seconds, rate = seconds / by_openvino, rate * by_openvino
        total += seconds
        parts.append(f"reranking {pairs:,} pairs {seconds:.0f} s ({rate:,.0f} pairs/s)")
    yield Finding(
        "ok", "time", f"about {duration(total)}: {', '.join(parts)}; pairs that earlier runs scored cost nothing"
    )


def _converted(patient: Patient) -> bool:
    if patient.device != "cpu" or patient.settings.cpu_engine == "torch":
        return True
    kept = cpu_engine(patient.settings).kept
    used = [model for model, _ in patient.rerankers if needs_library(model.directory) is None]
    used += [encoder.model for encoder in patient.encoders]
    return all((conversion_folder(kept, model.fingerprint) / MANIFEST_NAME).is_file() for model in used)


def _encoding_seconds(encoder: EncoderPlan, indices: IndexPlan, texts: tuple[str, ...]) -> float:
    model = load_encoder(encoder, indices)
    chosen = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:_SAMPLE].tolist()]
    counts = model.token_counts(chosen, "document") + 2

    def encode(rows: npt.NDArray[np.int64]) -> None:
        model.encode([chosen[row] for row in rows.tolist()], "document", indices.batch_size)

    speed: Speed = measure(encode, counts.tolist(), 2 * indices.batch_size, MEASURED_SECONDS)
    return float(counts.mean()) * len(texts) / speed.units_per_second


def _reranking_seconds(patient: Patient, plan: SearchPlan, model: ResolvedModel) -> tuple[int, float, float]:
    assert patient.corpus is not None
    assert patient.chunks is not None
    assert patient.queries is not None
    scorer = scorer_of(model, plan, patient.device)
    generator = np.random.default_rng(0)
    texts = units_of(patient.corpus, patient.chunks, "chunk").texts
    read = [texts[i] for i in generator.integers(len(texts), size=_SAMPLE).tolist()]
    passages = scorer.tokenize(read)
    asked = generator.integers(len(patient.queries), size=_SAMPLE).tolist()
    questions = scorer.tokenize([patient.queries.texts[i] for i in asked])
    pairs = np.stack([np.arange(_SAMPLE), np.arange(_SAMPLE)], axis=1).astype(np.int32)
    lengths = scorer.pair_lengths(questions, passages, pairs)

    def score(rows: npt.NDArray[np.int64]) -> None:
        if scorer.joint:
            scorer.score(questions, passages, pairs[rows])
            return
        # Such a model keeps what it has read, so every passage must be new to it here.
        new = np.stack([pairs[rows, 0], np.arange(len(rows), dtype=np.int32)], axis=1)
        scorer.score(questions, scorer.tokenize([read[row] for row in rows.tolist()]), new)

    speed = measure(score, lengths.tolist(), 2 * plan.batch_size, MEASURED_SECONDS)
    distinct = len(set(patient.queries.texts))
    count = distinct * min(plan.candidate_k, len(patient.corpus)) * plan.passages_per_document
    if not scorer.joint:
        count = min(count, len(texts))
    rate = speed.units_per_second / float(lengths.mean())
    return count, count / rate, rate


PARTS: tuple[tuple[str, Callable[[Patient], Iterator[Finding]]], ...] = (
    ("Machine", machine),
    ("Configuration", configuration),
    ("Data", data),
    ("Models", models),
    ("Artefacts", artefacts),
    ("Space", space),
    ("Time of ./run_cross_encoder_search.sh", time_needed),
)


def examine(patient: Patient) -> Iterator[tuple[str, list[Finding]]]:
    """Every part with its findings; an error that the run would end with is a finding."""
    for title, part in PARTS:
        findings: list[Finding] = []
        try:
            findings.extend(part(patient))
        except UserError as error:
            findings.append(Finding("FAIL", title.lower(), str(error)))
        yield title, findings
