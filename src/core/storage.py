"""Where everything lies in a data folder, and how types become files."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    atomic_directory,
    atomic_path,
    describe_files,
    save_manifest,
)
from src.core.errors import StaleArtifactError
from src.core.spool import blocks
from src.core.types import PAD, Chunks, Corpus, Floats, Qrels, Queries, Run, TokenVectors, offsets_of

_RUN_SCHEMA = pa.schema([("q_id", pa.string()), ("web_id", pa.string()), ("rank", pa.int32()), ("score", pa.float32())])


@dataclass(frozen=True)
class DataFolder:
    """The folder of one corpus."""

    root: Path

    @property
    def raw(self) -> Path:
        """The users' files."""
        return self.root / "raw"

    @property
    def corpus(self) -> Path:
        """Cleaned documents and chunks."""
        return self.root / "processed" / "corpus"

    @property
    def questions(self) -> Path:
        """Cleaned questions and labels."""
        return self.root / "processed" / "questions"

    @property
    def runs(self) -> Path:
        """One parquet file and one manifest per stage."""
        return self.root / "runs"

    def embeddings(self, name: str) -> Path:
        """Vectors of one encoder over one unit."""
        return self.root / "embeddings" / name

    def tokens(self, name: str) -> Path:
        """Token vectors of one encoder over one unit."""
        return self.root / "embeddings" / f"{name}-tokens"

    def parts(self, name: str) -> Path:
        """Finished blocks of the embedding of that name, while it is being made."""
        return self.root / "embeddings" / f"{name}.parts"

    def index(self, name: str) -> Path:
        """One index."""
        return self.root / "indices" / name


def _read(path: Path, fix: str) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StaleArtifactError(f"{path}: cannot be read ({str(error).splitlines()[0]}). Run: {fix}") from error


def save_corpus(
    folder: Path,
    corpus: Corpus,
    chunks: Chunks,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> None:
    """Write documents, chunks and their manifest, all or nothing."""
    with atomic_directory(folder) as temporary:
        table = pa.table({"web_id": corpus.doc_ids, "title": corpus.titles, "text": corpus.texts})
        pq.write_table(table, temporary / "corpus.parquet", compression="zstd")
        table = pa.table({"doc_row": chunks.doc_rows, "start": chunks.starts, "end": chunks.ends})
        pq.write_table(table, temporary / "chunks.parquet", compression="zstd")
        manifest = Manifest(
            kind="corpus",
            inputs=inputs,
            settings=settings,
            files=describe_files(temporary, ["corpus.parquet", "chunks.parquet"]),
            counts={"documents": len(corpus), "chunks": len(chunks)},
            extra=extra,
        )
        save_manifest(temporary / MANIFEST_NAME, manifest)


def load_corpus(folder: Path, fix: str) -> tuple[Corpus, Chunks]:
    """Read what :func:`save_corpus` wrote. Check the manifest first."""
    table = _read(folder / "corpus.parquet", fix)
    corpus = Corpus(*(tuple(table.column(name).to_pylist()) for name in ("web_id", "title", "text")))
    table = _read(folder / "chunks.parquet", fix)
    columns = (table.column(name).to_numpy().astype(np.int32) for name in ("doc_row", "start", "end"))
    return corpus, Chunks(*columns)


def save_questions(
    folder: Path, queries: Queries, qrels: Qrels | None, inputs: Mapping[str, str], extra: Mapping[str, Any]
) -> None:
    """Write questions, labels where there are any, and their manifest, all or nothing."""
    names = ["questions.parquet"]
    with atomic_directory(folder) as temporary:
        pq.write_table(pa.table({"q_id": queries.query_ids, "query": queries.texts}), temporary / names[0])
        if qrels is not None:
            pairs = [(q, d) for q, docs in sorted(qrels.relevant.items()) for d in sorted(docs)]
            table = pa.table({"q_id": [q for q, _ in pairs], "web_id": [d for _, d in pairs]})
            names.append("qrels.parquet")
            pq.write_table(table, temporary / names[1])
        manifest = Manifest(
            kind="questions",
            inputs=inputs,
            settings={},
            files=describe_files(temporary, names),
            counts={"questions": len(queries), "labelled": 0 if qrels is None else len(qrels)},
            extra=extra,
        )
        save_manifest(temporary / MANIFEST_NAME, manifest)


def load_questions(folder: Path, fix: str) -> tuple[Queries, Qrels | None]:
    """Read what :func:`save_questions` wrote. Check the manifest first."""
    table = _read(folder / "questions.parquet", fix)
    queries = Queries(tuple(table.column("q_id").to_pylist()), tuple(table.column("query").to_pylist()))
    if not (folder / "qrels.parquet").is_file():
        return queries, None
    table = _read(folder / "qrels.parquet", fix)
    relevant: dict[str, set[str]] = {}
    for query_id, doc_id in zip(table.column("q_id").to_pylist(), table.column("web_id").to_pylist(), strict=True):
        relevant.setdefault(query_id, set()).add(doc_id)
    return queries, Qrels({query_id: frozenset(docs) for query_id, docs in relevant.items()})


def save_vectors(
    folder: Path, vectors: Floats, inputs: Mapping[str, str], settings: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Write float32 [N, D] and its manifest, all or nothing."""
    with atomic_directory(folder, vectors.nbytes) as temporary:
        np.save(temporary / "vectors.npy", vectors, allow_pickle=False)
        manifest = Manifest(
            kind="embeddings",
            inputs=inputs,
            settings=settings,
            files=describe_files(temporary, ["vectors.npy"]),
            counts={"vectors": len(vectors), "dimension": vectors.shape[1]},
            extra=extra,
        )
        save_manifest(temporary / MANIFEST_NAME, manifest)


def load_vectors(folder: Path, rows: int, fix: str) -> Floats:
    """Read float32 [N, D].

    Raises:
        StaleArtifactError: where the file cannot be read, has not ``rows`` rows, or holds a value that is not finite.
    """
    path = folder / "vectors.npy"
    try:
        vectors: Floats = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StaleArtifactError(f"{path}: cannot be read ({error}). Run: {fix}") from error
    if vectors.ndim != 2 or len(vectors) != rows or vectors.dtype != np.float32:
        raise StaleArtifactError(
            f"{path}: holds {vectors.dtype} {vectors.shape}, float32 with {rows} rows expected. Run: {fix}"
        )
    if not np.isfinite(vectors).all():
        raise StaleArtifactError(f"{path}: holds values that are not finite. Run: {fix}")
    return vectors


def save_token_vectors(
    folder: Path,
    filled: Path,
    counts: npt.NDArray[np.int64],
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """Make an artefact of filled token vectors, all or nothing.

    Args:
        filled: npy file of float16 [sum of counts, D]; it stays where it is, as a second name of the same bytes.
        counts: int64 [N], tokens of each text.
    """
    offsets = offsets_of(counts)
    dimension = int(np.load(filled, mmap_mode="r", allow_pickle=False).shape[1])
    with atomic_directory(folder, filled.stat().st_size) as temporary:
        try:
            (temporary / "tokens.npy").hardlink_to(filled)
        except OSError:  # a file system without hard links
            shutil.copyfile(filled, temporary / "tokens.npy")
        np.save(temporary / "offsets.npy", offsets, allow_pickle=False)
        files = describe_files(temporary, ["tokens.npy", "offsets.npy"])
        manifest = Manifest(
            kind="token vectors",
            inputs=inputs,
            settings=settings,
            files=files,
            counts={"texts": len(counts), "tokens": int(offsets[-1]), "dimension": dimension},
        )
        save_manifest(temporary / MANIFEST_NAME, manifest)


def load_token_vectors(folder: Path, texts: int, fix: str) -> TokenVectors:
    """What :func:`save_token_vectors` wrote, mapped from disk. Check the manifest first.

    Raises:
        StaleArtifactError: where a file cannot be read, or does not hold the vectors of ``texts`` texts.
    """
    try:
        values = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StaleArtifactError(f"{folder}: cannot be read ({error}). Run: {fix}") from error
    whole = offsets.shape == (texts + 1,) and values.ndim == 2 and offsets[-1] == len(values)
    if not whole or values.dtype != np.float16 or (np.diff(offsets) < 0).any():
        raise StaleArtifactError(f"{folder}: does not hold the token vectors of {texts} texts. Run: {fix}")
    return TokenVectors(values, offsets)


def save_run(folder: Path, run: Run, corpus: Corpus, manifest_extra: Mapping[str, Any]) -> Path:
    """Write ``<run name>.parquet`` (q_id, web_id, rank from 1, score) and ``<run name>.manifest.json``."""
    path = folder / f"{run.name}.parquet"
    ids = np.array(corpus.doc_ids, dtype=object)
    rows = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _RUN_SCHEMA, compression="zstd") as writer:
        # In blocks: as columns of strings a run is many times what it is as rows.
        for part in blocks(len(run.query_ids)):
            doc_rows, scores = run.doc_rows[part], run.scores[part]
            filled = doc_rows != PAD
            questions = np.repeat(np.array(run.query_ids[part], dtype=object), filled.sum(axis=1))
            ranks = np.broadcast_to(np.arange(1, run.depth + 1, dtype=np.int32), doc_rows.shape)[filled]
            columns = [questions, ids[doc_rows[filled]], ranks, scores[filled]]
            arrays = [pa.array(values, kind) for values, kind in zip(columns, _RUN_SCHEMA.types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_RUN_SCHEMA))
            rows += len(questions)
    manifest = Manifest(
        kind="run",
        inputs={"corpus": run.corpus_fingerprint},
        settings={},
        files=describe_files(folder, [path.name]),
        counts={"questions": len(run.query_ids), "depth": run.depth, "rows": rows},
        extra=manifest_extra,
    )
    save_manifest(folder / f"{run.name}.manifest.json", manifest)
    return path


def load_run(path: Path, corpus: Corpus, query_ids: tuple[str, ...]) -> Run:
    """Read a saved run, for a given order of the questions.

    Raises:
        StaleArtifactError: where it names a question or document that is not there.
    """
    table = _read(path, "python scripts/03_run_search.py")
    row_of_query = {query_id: row for row, query_id in enumerate(query_ids)}
    ranks = table.column("rank").to_numpy()
    depth = int(ranks.max()) if len(ranks) else 1
    rows = np.full((len(query_ids), depth), PAD, dtype=np.int32)
    scores = np.zeros((len(query_ids), depth), dtype=np.float32)
    try:
        queries = [row_of_query[q] for q in table.column("q_id").to_pylist()]
        docs = [corpus.row_of[d] for d in table.column("web_id").to_pylist()]
    except KeyError as error:
        raise StaleArtifactError(f"{path}: names {error}, which is not in this corpus or these questions.") from error
    rows[queries, ranks - 1] = docs
    scores[queries, ranks - 1] = table.column("score").to_numpy()
    return Run(path.stem, query_ids, rows, scores, corpus.fingerprint)
