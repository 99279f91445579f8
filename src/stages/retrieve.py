"""Retrieve: questions against one index; scores of chunks become scores of documents by maximum."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from src.core.spool import Spool
from src.core.text import terms
from src.core.types import PAD, Chunks, Corpus, DenseIndex, Floats, LexicalIndex, Queries, Rows, Run, ranked

PassageChoice = Literal["best", "first"]


def to_documents(units: Rows, scores: Floats, unit_docs: Rows, depth: int) -> tuple[Rows, Floats]:
    """Ranked units become ranked documents; a document scores as its best unit (MaxP; Dai & Callan 2019).

    Args:
        units: int32 [Q, k], rows of units; -1 pads.
        scores: float32 [Q, k].
        unit_docs: int32 [U], row of the document of each unit.
        depth: documents to keep per question.

    Returns:
        int32 [Q, depth] padded with -1, float32 [Q, depth], in order of (-score, row).
    """
    doc_rows = np.full((len(units), depth), PAD, dtype=np.int32)
    doc_scores = np.zeros((len(units), depth), dtype=np.float32)
    for i in range(len(units)):
        found = units[i] != PAD
        docs, values = unit_docs[units[i][found]], scores[i][found]
        order = np.lexsort((docs, -values))
        best, first = np.unique(docs[order], return_index=True)
        doc_rows[i], doc_scores[i] = ranked(best.astype(np.int32), values[order][first], depth)
    return doc_rows, doc_scores


def dense_run(
    name: str,
    index: DenseIndex,
    query_vectors: Floats,
    unit_docs: Rows,
    queries: Queries,
    corpus: Corpus,
    unit_depth: int,
    depth: int,
    spool: Spool | None = None,
) -> Run:
    """Search unit vectors.

    Args:
        query_vectors: float32 [Q, D], unit norm.
        unit_docs: int32 [U], document of each indexed unit.
        unit_depth: units to fetch per question.
        depth: documents to keep per question.
        spool: where the run lies; by default in memory.
    """
    return _documents_run(
        name, lambda rows: index.search(query_vectors[rows], unit_depth), unit_docs, queries, corpus, depth, spool
    )


def lexical_run(
    name: str,
    index: LexicalIndex,
    unit_docs: Rows,
    queries: Queries,
    corpus: Corpus,
    unit_depth: int,
    depth: int,
    spool: Spool | None = None,
) -> Run:
    """Search stemmed terms; documents without a matching term do not enter. Arguments as in :func:`dense_run`."""
    return _documents_run(
        name, lambda rows: index.search([terms(text) for text in queries.texts[rows]], unit_depth), unit_docs, queries,
        corpus, depth, spool,
    )  # fmt: skip


def _documents_run(
    name: str,
    search: Callable[[slice], tuple[Rows, Floats]],
    unit_docs: Rows,
    queries: Queries,
    corpus: Corpus,
    depth: int,
    spool: Spool | None,
) -> Run:
    """What a search of units finds, as documents; in blocks, as units are many more."""

    def made(rows: slice) -> Run:
        found = to_documents(*search(rows), unit_docs, depth)
        return Run(name, queries.query_ids[rows], *found, corpus.fingerprint)

    return Run.in_blocks(name, queries.query_ids, depth, corpus.fingerprint, spool or Spool(), made)


def best_chunks(run: Run, chunks: Chunks, query_vectors: Floats, chunk_vectors: Floats, count: int) -> Rows:
    """The ``count`` chunks of each candidate document that lie nearest to the question.

    Args:
        run: candidates, [Q, K].
        query_vectors: float32 [Q, D], unit norm.
        chunk_vectors: float32 [C, D], unit norm.

    Returns:
        int32 [Q, K, count] rows of chunks, best first; -1 where a document has fewer, or the list is shorter.
    """
    first = np.searchsorted(chunks.doc_rows, run.doc_rows.ravel(), side="left").reshape(run.doc_rows.shape)
    last = np.searchsorted(chunks.doc_rows, run.doc_rows.ravel(), side="right").reshape(run.doc_rows.shape)
    chosen = np.full((*run.doc_rows.shape, count), PAD, dtype=np.int32)
    for i in range(len(run.query_ids)):
        spans = [np.arange(a, b, dtype=np.int32) for a, b in zip(first[i], last[i], strict=True)]
        lengths = [len(span) if doc != PAD else 0 for span, doc in zip(spans, run.doc_rows[i], strict=True)]
        members = np.concatenate([s for s, n in zip(spans, lengths, strict=True) if n] or [np.zeros(0, np.int32)])
        cosines = chunk_vectors[members] @ query_vectors[i]
        start = 0
        for k, length in enumerate(lengths):
            rows, _ = ranked(members[start : start + length], cosines[start : start + length], count)
            chosen[i, k] = rows
            start += length
    return chosen


def first_chunks(run: Run, chunks: Chunks, count: int) -> Rows:
    """The first ``count`` chunks of each candidate document (FirstP): int32 [Q, K, count], -1 pads."""
    flat = run.doc_rows.ravel()
    first = np.searchsorted(chunks.doc_rows, flat, side="left")
    last = np.searchsorted(chunks.doc_rows, flat, side="right")
    rows = first[:, None] + np.arange(count)
    rows = np.where((rows < last[:, None]) & (flat != PAD)[:, None], rows, PAD)
    return rows.reshape(*run.doc_rows.shape, count).astype(np.int32)


def choose_passages(
    run: Run, chunks: Chunks, nearest: tuple[Floats, Floats] | None, choice: PassageChoice, count: int
) -> Rows:
    """Chunks that stand for each candidate: int32 [Q, K, count], -1 pads.

    Args:
        nearest: vectors of questions and chunks; without them the first chunks are taken.
        choice: ``best`` chunks by those vectors, or the ``first`` ones of the document.
    """
    if nearest is None or choice == "first":
        return first_chunks(run, chunks, count)
    return best_chunks(run, chunks, *nearest, count)


def follow_documents(passages: Rows, before: Run, after: Run) -> Rows:
    """Passages of the candidates of ``before``, int32 [Q, K, m], in the order in which ``after`` has the documents."""
    old, new = (np.argsort(run.doc_rows, axis=1, kind="stable") for run in (before, after))
    places = np.empty_like(old)
    np.put_along_axis(places, new, old, axis=1)
    return np.take_along_axis(passages, places[:, :, None], axis=1)
