"""Building the indices, and telling whether those on disk are the ones that a run needs."""

import logging
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    atomic_directory,
    describe_files,
    fingerprint,
    require_current,
    save_manifest,
)
from src.core.errors import StaleArtifactError, UserError
from src.core.memory import free_models
from src.core.storage import DataFolder, load_vectors, save_token_vectors, save_vectors
from src.core.text import terms
from src.core.types import Chunks, Corpus, Floats, Progress, Rows, passage_text
from src.core.vector_parts import TokenFile, VectorParts
from src.engine.devices import CpuEngine
from src.engine.encoder import SentenceEncoder
from src.models.resolve import ResolvedModel
from src.stages.embed import encode_in_blocks
from src.stages.index import Bm25Backend, Bm25Index, FaissIndex

Bars = Callable[[str, int], AbstractContextManager[Progress]]
Identity = tuple[dict[str, str], dict[str, Any]]

TOKENS, _TOKENS_LEFT_OUT = "token vectors", "token vectors left out"
BUILD_COMMAND = "python scripts/02_build_indices.py"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderPlan:
    """One bi-encoder over one unit.

    Attributes:
        model: where it lies.
        unit: ``document`` or ``chunk``.
        weight: in the fusion.
        query_prefix, document_prefix: ``None`` takes the model's own.
        pooling: where it differs from the model's own.
        warnings: of its prefixes, to be repeated wherever results are shown.
    """

    model: ResolvedModel
    unit: str
    weight: float
    query_prefix: str | None = None
    document_prefix: str | None = None
    pooling: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its folders and of its run; prefixes and pooling are in it, so that two of one model stay apart."""
        used = self.model.used
        if self.model.source == "directory":
            # Its path differs from machine to machine, and artefacts are copied between them.
            used = f"{self.model.directory.name}-{self.model.fingerprint[:8]}"
        slug = "".join(char if char.isalnum() or char in "-_." else "-" for char in used)
        how = fingerprint([self.query_prefix, self.document_prefix, self.pooling])[:6]
        return f"dense-{self.unit}-{slug}-{how}"


@dataclass(frozen=True)
class IndexPlan:
    """What the indices are made from and with.

    Attributes:
        late_interaction: keep the token vectors of the first encoder over chunks.
        token_bytes: most bytes that they may take on disk.
    """

    encoders: tuple[EncoderPlan, ...]
    batch_size: int
    max_tokens: int
    bm25_backend: Bm25Backend
    bm25_k1: float
    bm25_b: float
    bm25_units: tuple[str, ...]
    device: str
    cpu: CpuEngine
    late_interaction: bool
    token_bytes: int

    @property
    def late_encoder(self) -> EncoderPlan | None:
        """Whose token vectors late interaction compares; ``None`` where it is off, or nothing encodes chunks."""
        if not self.late_interaction:
            return None
        return next((encoder for encoder in self.encoders if encoder.unit == "chunk"), None)


@dataclass(frozen=True)
class Units:
    """The texts of one kind that are indexed: whole documents or chunks. Empty ones are left out.

    Attributes:
        texts: U passages with their titles.
        docs: int32 [U], row of the document of each.
        fingerprint: of the corpus and, for chunks, of their spans.
    """

    texts: tuple[str, ...]
    docs: Rows
    fingerprint: str


def units_of(corpus: Corpus, chunks: Chunks, unit: str) -> Units:
    """The documents (that are not empty) or the chunks of a corpus."""
    if unit == "chunk":
        texts = tuple(
            passage_text(corpus.titles[int(d)], chunks.text(corpus, i)) for i, d in enumerate(chunks.doc_rows)
        )
        return Units(texts, chunks.doc_rows, f"{corpus.fingerprint}/{chunks.fingerprint}")
    pages = [passage_text(title, text) for title, text in zip(corpus.titles, corpus.texts, strict=True)]
    rows = np.array([row for row, page in enumerate(pages) if page], dtype=np.int32)
    return Units(tuple(pages[row] for row in rows.tolist()), rows, corpus.fingerprint)


def embedding_identity(plan: IndexPlan, encoder: EncoderPlan, units: Units) -> Identity:
    """Inputs and settings that embeddings, and the index over them, must have been made with."""
    inputs = {"units": units.fingerprint, "model": encoder.model.fingerprint}
    settings = {
        "unit": encoder.unit,
        "document_prefix": encoder.document_prefix,
        "pooling": encoder.pooling,
        "max_tokens": plan.max_tokens,
    }
    return inputs, settings


def bm25_identity(plan: IndexPlan, unit: str, units: Units) -> Identity:
    """Inputs and settings that a BM25 index must have been made with."""
    settings = {"unit": unit, "backend": plan.bm25_backend, "k1": plan.bm25_k1, "b": plan.bm25_b}
    return {"units": units.fingerprint, "terms": "snowball-by-script-1"}, settings


def build_command(data: DataFolder) -> str:
    """What makes the indices of a data folder anew, as it is to be typed."""
    return f"{BUILD_COMMAND} --data-dir {shlex.quote(str(data.root))}"


def _stale(folder: Path, kind: str, identity: Identity, fix: str) -> str | None:
    """Why an artefact is not the one that is needed; ``None`` where it is."""
    try:
        require_current(folder, kind, *identity, fix=fix)
    except StaleArtifactError as reason:
        log.debug("%s", reason)
        return str(reason)
    return None


def _is_current(folder: Path, kind: str, identity: Identity) -> bool:
    return _stale(folder, kind, identity, BUILD_COMMAND) is None


def index_status(
    data: DataFolder, corpus: Corpus, chunks: Chunks, plan: IndexPlan
) -> Iterator[tuple[Path, str | None]]:
    """Every folder that the plan needs, and why it cannot be used as it is; ``None`` where it can."""
    fix = build_command(data)
    for encoder in plan.encoders:
        identity = embedding_identity(plan, encoder, units_of(corpus, chunks, encoder.unit))
        folder = data.embeddings(encoder.name)
        yield folder, _stale(folder, "embeddings", identity, fix)
        yield data.index(encoder.name), _stale(data.index(encoder.name), "faiss", identity, fix)
        if encoder == plan.late_encoder:
            tokens = data.tokens(encoder.name)
            yield tokens, None if tokens_left_out(tokens, identity, plan) else _stale(tokens, TOKENS, identity, fix)
    for unit in plan.bm25_units:
        folder = data.index(f"bm25-{unit}")
        yield folder, _stale(folder, "bm25", bm25_identity(plan, unit, units_of(corpus, chunks, unit)), fix)


def indices_current(data: DataFolder, corpus: Corpus, chunks: Chunks, plan: IndexPlan) -> bool:
    """Whether every index that the plan needs is there and whole."""
    return all(reason is None for _, reason in index_status(data, corpus, chunks, plan))


def drop_unfinished(data: DataFolder, plan: IndexPlan) -> None:
    """Remove the blocks of a build with ``fresh`` that was stopped; the complete embeddings stand."""
    for encoder in plan.encoders:
        shutil.rmtree(data.parts(encoder.name), ignore_errors=True)


def build_indices(
    data: DataFolder, corpus: Corpus, chunks: Chunks, plan: IndexPlan, bars: Bars, fresh: bool = False
) -> None:
    """Encode documents and chunks, index their vectors and terms; what is current is kept.

    Args:
        data: where embeddings and indices go.
        corpus, chunks: from preprocessing.
        bars: makes a progress bar.
        fresh: make everything anew, whatever is there.
    """
    vectors_of_text: dict[tuple[str, str | None, str | None], dict[str, Floats]] = {}
    # The one that gives token vectors needs every text of its own; others take over what it has encoded.
    for encoder in sorted(plan.encoders, key=lambda encoder: encoder != plan.late_encoder):
        units = units_of(corpus, chunks, encoder.unit)
        identity = embedding_identity(plan, encoder, units)
        folder, tokens = data.embeddings(encoder.name), data.tokens(encoder.name)
        wants_tokens = encoder == plan.late_encoder and (fresh or not _tokens_current(tokens, identity, plan))
        how = (encoder.model.fingerprint, encoder.document_prefix, encoder.pooling)
        known = vectors_of_text.setdefault(how, {})
        if not fresh and _is_current(folder, "embeddings", identity) and not wants_tokens:
            log.info("Embeddings %s: up to date, kept", encoder.name)
            # A kill between the last two steps of its making leaves its blocks behind.
            shutil.rmtree(data.parts(encoder.name), ignore_errors=True)
            vectors = load_vectors(folder, len(units.texts), build_command(data))
        else:
            parts = VectorParts(data.parts(encoder.name), *identity, fresh=fresh)
            model = load_encoder(encoder, plan)
            try:
                if wants_tokens:
                    vectors = _encode_with_tokens(model, units, plan, bars, tokens, identity, parts)
                else:
                    vectors = _encode_units(model, encoder, units, plan, bars, known, parts)
            finally:
                # Freed before the next one is loaded: two large models may not fit together.
                del model
                if not len(parts):
                    parts.drop()
            save_vectors(folder, vectors, *identity, extra={"model": encoder.model.record()})
            parts.drop()
        # Those of a kept embedding too: a run that goes on after a kill then encodes what the first would have encoded.
        known.update(zip(units.texts, vectors, strict=True))
        _build_faiss(data.index(encoder.name), vectors, identity, fresh)
    for unit in plan.bm25_units:
        units = units_of(corpus, chunks, unit)
        _build_bm25(data.index(f"bm25-{unit}"), units, plan, bm25_identity(plan, unit, units), fresh)


def tokens_left_out(folder: Path, identity: Identity, plan: IndexPlan) -> bool:
    """Whether it is on record that the token vectors would take more than the plan allows."""
    return _is_current(folder, _TOKENS_LEFT_OUT, _with_limit(identity, plan))


def _tokens_current(folder: Path, identity: Identity, plan: IndexPlan) -> bool:
    return _is_current(folder, TOKENS, identity) or tokens_left_out(folder, identity, plan)


def _with_limit(identity: Identity, plan: IndexPlan) -> Identity:
    return identity[0], {**identity[1], "limit": plan.token_bytes}


def _encode_with_tokens(
    model: SentenceEncoder,
    units: Units,
    plan: IndexPlan,
    bars: Bars,
    folder: Path,
    identity: Identity,
    parts: VectorParts,
) -> Floats:
    """Vectors of the units; the vectors of their tokens go to ``folder`` on the way, where they are not too large."""
    counts = model.token_counts(units.texts, "document")
    size = 2 * model.token_dimension * int(counts.sum())
    if size <= plan.token_bytes:
        with closing(TokenFile(parts.folder / "tokens.npy", counts, model.token_dimension)) as tokens:
            vectors = encode_in_blocks(model, units.texts, plan.batch_size, bars, "Encoding chunks", parts, tokens)
        save_token_vectors(folder, tokens.path, counts, *identity)
        log.info("Token vectors of %s chunks: %.2f GB", f"{len(counts):,}", size / 1e9)
        return vectors
    log.warning(
        "WARNING: the token vectors of %s chunks would take %.1f GB, LATE_INTERACTION_GB allows %.1f: they are not "
        "kept. Each search will make those of its candidates, which takes time. Raise LATE_INTERACTION_GB, or set "
        "LATE_INTERACTION_WEIGHT = 0.",
        f"{len(counts):,}", size / 1e9, plan.token_bytes / 1e9,
    )  # fmt: skip
    vectors = encode_in_blocks(model, units.texts, plan.batch_size, bars, "Encoding chunks", parts)
    with atomic_directory(folder) as temporary:
        manifest = Manifest(_TOKENS_LEFT_OUT, *_with_limit(identity, plan), counts={"bytes": size})
        save_manifest(temporary / MANIFEST_NAME, manifest)
    return vectors


def load_encoder(encoder: EncoderPlan, plan: IndexPlan) -> SentenceEncoder:
    """The bi-encoder of a plan, with its prefixes; the one before it is gone by then, if nothing refers to it."""
    free_models()
    return SentenceEncoder(
        encoder.model.directory, plan.device, encoder.query_prefix, encoder.document_prefix, plan.max_tokens, plan.cpu,
        encoder.model.fingerprint, encoder.pooling, encoder.model.remote_code,
    )  # fmt: skip


def _encode_units(
    model: SentenceEncoder,
    encoder: EncoderPlan,
    units: Units,
    plan: IndexPlan,
    bars: Bars,
    known: dict[str, Floats],
    parts: VectorParts,
) -> Floats:
    """Vectors of the units; a text that the same model has just encoded as another unit is not encoded again."""
    new = [text for text in dict.fromkeys(units.texts) if text not in known]
    vectors = encode_in_blocks(model, new, plan.batch_size, bars, f"Encoding {encoder.unit}s", parts)
    known.update(zip(new, vectors, strict=True))
    return np.stack([known[text] for text in units.texts])


def _build_faiss(folder: Path, vectors: Floats, identity: Identity, fresh: bool) -> None:
    if not fresh and _is_current(folder, "faiss", identity):
        log.info("Index %s: up to date, kept", folder.name)
        return
    with atomic_directory(folder, vectors.nbytes) as temporary:
        FaissIndex.build(vectors).save(temporary / "index.faiss")
        files = describe_files(temporary, ["index.faiss"])
        manifest = Manifest("faiss", *identity, files=files, counts={"units": len(vectors)})
        save_manifest(temporary / MANIFEST_NAME, manifest)
    log.info("Index %s: %d vectors of %d dimensions", folder.name, *vectors.shape)


def _build_bm25(folder: Path, units: Units, plan: IndexPlan, identity: Identity, fresh: bool) -> None:
    if not fresh and _is_current(folder, "bm25", identity):
        log.info("Index %s: up to date, kept", folder.name)
        return
    lists = [terms(text) for text in units.texts]
    if not any(lists):
        raise UserError("no document holds a single word: BM25 has nothing to index. Check CORPUS_COLUMNS.")
    with atomic_directory(folder) as temporary:
        Bm25Index.build(lists, plan.bm25_k1, plan.bm25_b, plan.bm25_backend).save(temporary, lists)
        names = [path.name for path in temporary.iterdir()]
        files = describe_files(temporary, names)
        manifest = Manifest("bm25", *identity, files=files, counts={"units": len(lists)})
        save_manifest(temporary / MANIFEST_NAME, manifest)
    log.info("Index %s: %d units (%s)", folder.name, len(lists), plan.bm25_backend)
