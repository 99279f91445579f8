"""The examination of 00_doctor.py: each part yields findings, and one that fails does not hide the next."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from _cli import PROJECT_ROOT, why_not_writable

import numpy as np
from transformers import AutoTokenizer

from _inputs import (
    PREPROCESS_COMMAND,
    Inputs,
    choose_inputs,
    chunk_tokenizer_directory,
    chunking,
    corpus_identity,
    load_queries,
    prepared_corpus,
)
from _plans import cpu_engine, encoder_plans, index_plan, reranker_plans, search_plan
from _variants import load_variants
from config import EncoderSettings, Settings, differences
from src.core.artifacts import MANIFEST_NAME, read_manifest, require_current
from src.core.data_lock import holder_of
from src.core.errors import StaleArtifactError, UserError
from src.core.storage import load_corpus
from src.core.types import Chunks, Corpus, Qrels, Queries
from src.engine.devices import pick_device
from src.engine.encoder import converted_as
from src.engine.openvino_graphs import conversion_folder, is_converted
from src.engine.pair_scorer import PairScorer, needs_library
from src.indexing import EncoderPlan, IndexPlan, index_status
from src.insight.doctor import (
    Finding,
    LocalModels,
    NotHereYetError,
    machine_findings,
    model_bytes,
    space_findings,
)
from src.int8 import require_int8
from src.models.resolve import ModelResolver, ResolvedModel, Role
from src.pipeline import scorer_of
from src.retrieval import SearchPlan
from src.stages.chunk import chunk_corpus
from src.stages.preprocess import read_corpus
from src.stages.rerank import CandidateScorer, PassageTexts
from src.stages.submit import check_depth
from src.stages.variants import QueryVariants

_BASE_MEMORY = 1 << 30
_EIGHT_BITS = (
    "up to 100 questions are answered in float32 and in 8 bits first; the run ends where too many answers change. Its "
    "time is told for float32"
)
_MOST_CHARACTERS = 2_000_000  # to be cut for the examination: four seconds on a slow core
_UNTIL_DOWNLOADED = "not known until it is downloaded"

Part = tuple[str, Callable[["Patient"], Iterator[Finding]]]


@dataclass
class Patient:
    """What the parts of the examination find out for each other.

    Attributes:
        rerankers: the cross-encoders that are here and can run.
        scorers: by the fingerprint of their model; weights are not loaded yet.
        unknown: model -> why neither its time nor its files can be told.
        cut: share of the corpus' text that ``chunks`` are of.
        stale: names of folders.
    """

    settings: Settings
    flags: argparse.Namespace
    inputs: Inputs | None = None
    corpus: Corpus | None = None
    chunks: Chunks | None = None
    queries: Queries | None = None
    qrels: Qrels | None = None
    variants: QueryVariants = field(default_factory=QueryVariants)
    rerankers: tuple[tuple[ResolvedModel, float], ...] = ()
    scorers: dict[str, PairScorer] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    cut: float = 1.0
    stale: list[str] = field(default_factory=list)

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
        settings = self.settings
        return LocalModels(
            PROJECT_ROOT / "data" / "models", PROJECT_ROOT, settings.when_model_unavailable, settings.allow_remote_code
        )

    def look_up(self, name: str, role: Role, pooling: str | None = None) -> ResolvedModel | UserError:
        """A model, or the error that says why it is not here; its name is ``unknown`` then."""
        try:
            return self.resolver.resolve(name, role, pooling)
        except UserError as error:
            self.unknown[name] = _UNTIL_DOWNLOADED if isinstance(error, NotHereYetError) else "not to be had"
            return error

    @property
    def entries(self) -> tuple[EncoderSettings, ...]:
        """The entries of ENCODERS that the run uses."""
        chunks = self.settings.enable_chunks
        return tuple(entry for entry in self.settings.encoders if chunks or entry.unit == "document")

    @cached_property
    def bi_encoders(self) -> dict[tuple[str, str | None], ResolvedModel | UserError]:
        """By name and pooling: what became of each."""
        asked = dict.fromkeys((entry.model, entry.pooling) for entry in self.entries)
        return {(name, pooling): self.look_up(name, "bi-encoder", pooling) for name, pooling in asked}

    def is_here(self, entry: EncoderSettings) -> bool:
        """Whether the model of an entry can be used now."""
        return isinstance(self.bi_encoders[entry.model, entry.pooling], ResolvedModel)

    @cached_property
    def encoders(self) -> tuple[EncoderPlan, ...]:
        """Plans of the bi-encoders that are here."""
        here = [entry for entry in self.entries if self.is_here(entry)]
        return encoder_plans(self.settings.model_copy(update={"encoders": here}), self.resolver)

    @property
    def chunk_count(self) -> int:
        """How many chunks the corpus has, by the part of it that was cut."""
        return 0 if self.chunks is None else round(len(self.chunks) / self.cut)

    @property
    def absent_cutter(self) -> str | None:
        """The model whose tokenizer measures the chunks, where it is not here."""
        first = next(iter(self.entries), None)
        by_tokens = chunking(self.settings).unit == "tokens"
        return first.model if first is not None and by_tokens and not self.is_here(first) else None

    @property
    def read(self) -> Queries:
        """What the cross-encoders read: the questions, and their variants where the settings say so."""
        assert self.queries is not None
        return self.queries if self.settings.reranker_query == "original" else self.variants.asked(self.queries)

    def prepared(self) -> tuple[Corpus, Chunks]:
        """The prepared corpus; the tokenizer that cut it is taken at its word where this run's is not here.

        Raises:
            StaleArtifactError: as :func:`_inputs.prepared_corpus`.
        """
        assert self.inputs is not None
        if self.absent_cutter is None:
            return prepared_corpus(self.inputs, self.settings, self.encoders)
        folder, fix = self.inputs.data.corpus, PREPROCESS_COMMAND + self.inputs.command
        made_from, made_with = corpus_identity(self.inputs, self.settings, self.encoders)
        made_from["tokenizer"] = read_manifest(folder / MANIFEST_NAME, fix).inputs.get("tokenizer", "")
        require_current(folder, "corpus", made_from, made_with, fix=fix)
        return load_corpus(folder, fix)

    def plans(self) -> tuple[IndexPlan, SearchPlan]:
        """What the run would do with the models that are here."""
        indices = index_plan(self.settings, self.encoders, self.device)
        late = next((entry for entry in self.entries if entry.unit == "chunk"), None)
        if late is not None and not self.is_here(late):
            # Another encoder must not be taken for the one of late interaction.
            indices = replace(indices, late_interaction=False)
        return indices, search_plan(self.settings, argparse.Namespace(top_k=self.settings.top_k), self.rerankers)

    @property
    def converted(self) -> bool:
        """Whether OpenVINO has nothing to convert before it can run the models that are here."""
        if self.device != "cpu" or self.settings.cpu_engine == "torch":
            return True
        kept = cpu_engine(self.settings).kept
        used = [model.fingerprint for model, _ in self.rerankers if needs_library(model.directory) is None]
        used += [converted_as(encoder.model.fingerprint, encoder.pooling) for encoder in self.encoders]
        return all(is_converted(name, conversion_folder(kept, name)) for name in used)

    def measured_plans(self) -> tuple[IndexPlan, SearchPlan]:
        """The same by torch where OpenVINO has yet to convert: that would take longer than the examination may."""
        indices, plan = self.plans()
        if self.converted:
            return indices, plan
        by_torch = replace(plan.cpu, engine="torch")
        return replace(indices, cpu=by_torch), replace(plan, cpu=by_torch)


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
        patient.corpus = patient.prepared()[0]
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
        variants = patient.variants = load_variants(settings, inputs.data, patient.queries, patient.queries)
        used = variants.describe(len(patient.queries)) if len(variants) else "none"
        yield Finding("ok", "variants", used)
    except UserError as error:
        yield Finding("FAIL", "variants", str(error))
    yield from _writable(settings, inputs.data.root)
    holder = holder_of(inputs.data.root)
    if holder is not None:
        yield Finding("FAIL", "in use", f"{inputs.data.root}: by {holder}. Let it end, or give --wait")


def _writable(settings: Settings, data_folder: Path) -> Iterator[Finding]:
    """Findings where the run could not write what it makes."""
    output = PROJECT_ROOT / settings.output_file
    if output.is_dir():
        yield Finding("FAIL", "output", f"OUTPUT_FILE: {output} is a folder; the path of a file is needed")
        return
    for what, path in (("output", output), ("data folder", data_folder / "runs")):
        reason = why_not_writable(path)
        if reason is not None:
            yield Finding("FAIL", what, reason)


def models(patient: Patient) -> Iterator[Finding]:
    """Which models would be used, where they come from, and whether they can read what they are given."""
    settings = patient.settings
    for (name, _), found in patient.bi_encoders.items():
        yield _model(name, "bi-encoder", found)
    for warning in dict.fromkeys(warning for encoder in patient.encoders for warning in encoder.warnings):
        yield Finding("note", "prefix", warning)
    if not settings.enable_cross_encoder_reranking:
        return
    here = []
    for name in dict.fromkeys([entry.model for entry in settings.rerankers] or [settings.cross_encoder_model]):
        found = patient.look_up(name, "cross-encoder")
        yield _model(name, "cross-encoder", found)
        here += [name] if isinstance(found, ResolvedModel) else []
    if patient.corpus is not None:
        for name in here:
            yield _language(patient, name)
    yield from _scorers(patient)


def _model(name: str, role: Role, found: ResolvedModel | UserError) -> Finding:
    if isinstance(found, UserError):
        return Finding("note" if isinstance(found, NotHereYetError) else "FAIL", role, str(found))
    if found.warning is None:
        return Finding("ok", role, found.describe())
    return Finding("note", role, f"{name}: not here, and the hub does not answer: {found.used} stands in for it")


def _language(patient: Patient, name: str) -> Finding:
    assert patient.corpus is not None
    alone = patient.settings.model_copy(update={"cross_encoder_model": name, "rerankers": []})
    try:
        ((model, weight),) = reranker_plans(alone, patient.resolver, patient.corpus)
        needs_library(model.directory)  # raises where it is no cross-encoder
    except NotHereYetError as error:
        patient.unknown[error.model] = _UNTIL_DOWNLOADED
        return Finding("note", "language", f"{name} cannot read the corpus; in its place {error}")
    except UserError as error:
        return Finding("FAIL", "cross-encoder", str(error))
    if all(model.fingerprint != other.fingerprint for other, _ in patient.rerankers):
        patient.rerankers += ((model, weight),)
    unread = model.warning is not None and "cannot read" in model.warning
    text = model.warning if unread else f"{model.used} can read the corpus"
    return Finding("note" if unread else "ok", "language", str(text))


def _scorers(patient: Patient) -> Iterator[Finding]:
    """Make the scorers of the cross-encoders; findings where one cannot run, or cannot read every question."""
    if patient.queries is None:
        return
    plan, nothing = patient.measured_plans()[1], np.zeros(0, dtype=np.int32)
    for model, _ in patient.rerankers:
        try:
            if plan.precision == "int8":
                require_int8(scorer_of(model, patient.plans()[1], patient.device), model.used)
                yield Finding("note", "8 bits", _EIGHT_BITS)
            scorer = scorer_of(model, plan, patient.device)
            CandidateScorer(scorer, PassageTexts((), nothing, nothing)).tokenize(patient.read)
        except UserError as error:
            yield Finding("FAIL", "cross-encoder", str(error))
        else:
            patient.scorers[model.fingerprint] = scorer


def artefacts(patient: Patient) -> Iterator[Finding]:
    """Which artefacts are there, fresh or stale, and why."""
    if patient.inputs is None or patient.corpus is None:
        return
    cutter = patient.absent_cutter
    try:
        patient.corpus, patient.chunks = patient.prepared()
    except StaleArtifactError as reason:
        yield Finding("note", "processed", str(reason))
        patient.stale.append("processed")
        if cutter is None:
            patient.chunks = _chunks(patient, patient.corpus)
    else:
        fresh = Finding("ok", "processed", f"fresh, {len(patient.chunks):,} chunks")
        if cutter is not None:
            # A model has the fingerprint that is compared only when it is here.
            unsure = f"fresh, as far as it is known: {cutter}, which measures chunks, is {patient.unknown[cutter]}"
            fresh = Finding("note", "processed", f"{len(patient.chunks):,} chunks, {unsure}")
        yield fresh
    for entry in patient.entries:
        if not patient.is_here(entry):
            yield Finding("note", "embeddings", f"{entry.model} over {entry.unit}s: {patient.unknown[entry.model]}")
    if patient.chunks is not None:
        yield from _indices(patient, patient.inputs, patient.corpus, patient.chunks)
    if patient.stale:
        yield Finding("note", "what to do", "./run_cross_encoder_search.sh makes what is missing or stale")


def _indices(patient: Patient, inputs: Inputs, corpus: Corpus, chunks: Chunks) -> Iterator[Finding]:
    for folder, why in index_status(inputs.data, corpus, chunks, patient.plans()[0]):
        if why is None:
            yield Finding("ok", folder.parent.name, f"{folder.name}: fresh")
        else:
            patient.stale.append(folder.name)
            yield Finding("note", folder.parent.name, why)


def _chunks(patient: Patient, corpus: Corpus) -> Chunks:
    cutting, tokenizer = chunking(patient.settings), None
    if cutting.unit == "tokens":
        directory = chunk_tokenizer_directory(patient.encoders, patient.resolver)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return chunk_corpus(_part(patient, corpus), cutting, tokenizer)


def _part(patient: Patient, corpus: Corpus) -> Corpus:
    """The corpus, with most documents empty where cutting all of it would take longer than the examination may."""
    lengths = np.array([len(text) for text in corpus.texts])
    order = np.random.default_rng(0).permutation(len(lengths))
    chosen = order[: int(np.searchsorted(np.cumsum(lengths[order]), _MOST_CHARACTERS)) + 1]
    total = int(lengths.sum())
    if len(chosen) == len(lengths) or not total:
        return corpus
    patient.cut = float(lengths[chosen].sum()) / total
    kept = set(chosen.tolist())
    return replace(
        corpus,
        titles=tuple(title if row in kept else "" for row, title in enumerate(corpus.titles)),
        texts=tuple(text if row in kept else "" for row, text in enumerate(corpus.texts)),
    )


def space(patient: Patient) -> Iterator[Finding]:
    """Free disk and memory against what the run needs."""
    if patient.inputs is None or patient.chunks is None or patient.corpus is None or patient.queries is None:
        return
    indices, plan = patient.plans()
    disk = memory = 0
    largest = 0
    for encoder in patient.encoders:
        units = patient.chunk_count if encoder.unit == "chunk" else len(patient.corpus)
        vectors = 4 * 1024 * units
        memory += vectors
        if encoder.name in patient.stale:
            disk += 2 * vectors
        largest = max(largest, model_bytes(encoder.model.directory))
        if encoder == indices.late_encoder and f"{encoder.name}-tokens" in patient.stale:
            disk += min(indices.token_bytes, patient.chunk_count * 2 * 1024 * patient.settings.chunk_tokens)
    largest = max([largest, *(model_bytes(model.directory) for model, _ in plan.rerankers)])
    lists = len(patient.queries) * plan.depth_documents * 8 * (len(patient.encoders) + 4)
    if not patient.converted:
        converted = {encoder.model.directory for encoder in patient.encoders}
        disk += sum(map(model_bytes, converted | {model.directory for model, _ in plan.rerankers}))
    # Lists lie in files.
    yield from space_findings(patient.inputs.data.root, disk + lists + (64 << 20), _BASE_MEMORY + 2 * largest + memory)
    for name, why in patient.unknown.items():
        yield Finding("note", "not counted", f"{name}: {why}")


PARTS: tuple[Part, ...] = (
    ("Machine", machine),
    ("Configuration", configuration),
    ("Data", data),
    ("Models", models),
    ("Artefacts", artefacts),
    ("Space", space),
)


def examine(patient: Patient, parts: Sequence[Part]) -> Iterator[tuple[str, list[Finding]]]:
    """Every part with its findings; an error that the run would end with is a finding."""
    for title, part in parts:
        findings: list[Finding] = []
        try:
            findings.extend(part(patient))
        except UserError as error:
            findings.append(Finding("FAIL", title.lower(), str(error)))
        yield title, findings
