"""A made-up corpus with questions, and every stage of the pipeline over it with the two models taken out."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cli  # noqa: F401  (puts the project's folder on the path)

import numpy as np
import numpy.typing as npt
import pandas as pd

from src.core.pair_scores import PairScores
from src.core.storage import save_run
from src.core.text import terms
from src.core.types import Corpus, Floats, Qrels, Queries, TokenVectors, offsets_of, passage_text
from src.engine.batches import TokenBatch
from src.engine.pair_scorer import CrossEncoderScorer
from src.insight.profile import Profiler
from src.quality.evaluate import evaluate
from src.stages.chunk import Chunking, chunk_corpus, sentence_spans
from src.stages.fuse import Weighted, fuse
from src.stages.index import Bm25Index, FaissIndex
from src.stages.late_interaction import late_scores, maxsim_over
from src.stages.preprocess import read_corpus, read_queries
from src.stages.rerank import CandidateScorer, PassageTexts, blend
from src.stages.retrieve import best_chunks, dense_run, follow_documents, lexical_run
from src.stages.submit import write_submission

DIMENSION = 384
DEPTH, CHUNK_DEPTH, CANDIDATES, TOP_K = 200, 600, 100, 5
BATCH_SIZE, MAX_LENGTH = 32, 160
LONGEST = 512  # tokens of a text that have vectors
MADE_UP_VECTORS = 1 << 16  # more than a processor's cache holds
_PAGE = ("web_id", "title", "text")


class NoModel:
    """In the place of a backend: every pair is tokenised, joined and padded, and scored by its length alone."""

    name = "none"
    arithmetic = "none"
    most_tokens: int | None = 2048
    tokens_per_pair: int | None = None

    def load(self) -> None:
        """Nothing to load."""

    def run(self, batches: Iterable[TokenBatch], scores: npt.NDArray[np.float32]) -> None:
        """Take every batch."""
        for batch in batches:
            scores[batch.rows] = batch.inputs["attention_mask"].sum(axis=1)


class RepeatedVectors(TokenVectors):
    """Token vectors of a corpus that would not fit into memory: text i begins anywhere among the same ones.

    ``values`` has at least ``LONGEST`` more rows than ``MADE_UP_VECTORS``.
    """

    def __getitem__(self, row: int) -> npt.NDArray[np.float16]:
        start, stop = self.offsets[row : row + 2].tolist()
        return self.values[start % MADE_UP_VECTORS :][: stop - start]


@dataclass(frozen=True)
class Sizes:
    """What a run was over."""

    questions: int
    documents: int
    chunks: int
    pairs: int
    tokens_encoded: int


def make_files(sample: Path, folder: Path, documents: int, questions: int, seed: int = 0) -> None:
    """CSV files of ``documents`` pages of 3 to 12 sentences of the sample, and ``questions`` questions."""
    generator = random.Random(seed)
    pages = pd.read_csv(sample / "websites_updated.csv", dtype=str, keep_default_na=False)
    sentences = [text[start:end] for text in pages["text"] for start, end in sentence_spans(text)]
    titles = pages["title"].tolist()
    rows = [
        (str(i), generator.choice(titles), " ".join(generator.sample(sentences, generator.randint(3, 12))))
        for i in range(documents)
    ]
    pd.DataFrame(rows, columns=list(_PAGE)).to_csv(folder / "pages.csv", index=False)
    asked = pd.read_csv(sample / "questions_clean.csv", dtype=str)["query"].tolist()
    texts = []
    for i in range(questions):
        words = asked[i % len(asked)].split()
        other = generator.choice(asked).split()
        texts.append(" ".join([*words, *generator.sample(other, min(2, len(other)))]))
    pd.DataFrame({"q_id": [str(i) for i in range(questions)], "query": texts}).to_csv(
        folder / "questions.csv", index=False
    )


def _unit_vectors(count: int, seed: int) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _token_vectors(lengths: npt.NDArray[np.int64], values: npt.NDArray[np.float16]) -> TokenVectors:
    """Made-up vectors for texts of so many tokens, int64 [N]."""
    return RepeatedVectors(values, offsets_of(np.minimum(lengths, LONGEST)))


def run_stages(folder: Path, model: Path, tokenizer: Any, profiler: Profiler) -> Sizes:
    """Every stage from the CSV files to the submission; vectors of texts and tokens are made up, and no pair is read.

    Args:
        folder: with ``pages.csv`` and ``questions.csv``; results go there too.
        model: a cross-encoder's directory, for its tokenizer and its way to join pairs.
        tokenizer: that measures chunks.
    """
    with profiler.stage("preprocess"):
        corpus: Corpus = read_corpus(folder / "pages.csv", dict(zip(("id", "title", "text"), _PAGE, strict=True)))
        queries: Queries = read_queries(folder / "questions.csv", {"id": "q_id", "query": "query"})
        chunks = chunk_corpus(corpus, Chunking("tokens", 80, 16), tokenizer)
    documents = [passage_text(title, text) for title, text in zip(corpus.titles, corpus.texts, strict=True)]
    passages = [passage_text(corpus.titles[d], chunks.text(corpus, i)) for i, d in enumerate(chunks.doc_rows.tolist())]
    units = {
        "document": (documents, np.arange(len(corpus), dtype=np.int32), DEPTH),
        "chunk": (passages, chunks.doc_rows, CHUNK_DEPTH),
    }
    asked = _unit_vectors(len(queries), 1)
    runs: list[Weighted] = []
    vectors: Floats = np.zeros((0, DIMENSION), dtype=np.float32)
    for unit, (texts, docs, depth) in units.items():
        vectors = _unit_vectors(len(texts), 2)
        with profiler.stage("FAISS index"):
            index = FaissIndex.build(vectors)
        with profiler.stage("dense search", len(queries), "questions"):
            runs.append(Weighted(dense_run(f"dense-{unit}", index, asked, docs, queries, corpus, depth, DEPTH), 0.35))
        with profiler.stage("BM25 index"):
            lexical = Bm25Index.build([terms(text) for text in texts], 1.2, 0.75, "bm25s")
        with profiler.stage("BM25 search", len(queries), "questions"):
            found = lexical_run(f"bm25-{unit}", lexical, docs, queries, corpus, depth, DEPTH)
            runs.append(Weighted(found, 0.15, absent_is_zero=True))
    with profiler.stage("fusion", len(queries), "questions"):
        fused = fuse(runs, "convex", 60, CANDIDATES)
    with profiler.stage("passages", len(queries), "questions"):
        chosen = best_chunks(fused, chunks, asked, vectors, 1)
    scorer = CrossEncoderScorer(model, NoModel(), BATCH_SIZE, MAX_LENGTH)
    passage_lengths = scorer.tokenize(passages).lengths
    values = _unit_vectors(MADE_UP_VECTORS + LONGEST, 3).astype(np.float16)
    of_questions, of_passages = (
        _token_vectors(lengths, values) for lengths in (scorer.tokenize(queries.texts).lengths, passage_lengths)
    )
    with profiler.stage("late interaction", len(queries), "questions"):
        before, near = fused, late_scores(of_questions, maxsim_over(of_passages, "cpu"), chosen)
        fused = blend(before, near, 0.15, "fused")
        chosen = follow_documents(chosen, before, fused)
    with profiler.stage("tokenise"):
        read = PassageTexts.of(corpus, chunks, chosen)
        reranker = CandidateScorer(scorer, read, PairScores(folder / "pair_scores"))
        tables = reranker.tokenize(queries)
    with profiler.stage("pairs", len(queries), "questions"):
        scores = reranker.pair_scores(queries, fused, None, tables)
    with profiler.stage("blend", len(queries), "questions"):
        final = blend(fused, scores, 0.35, "rerank-on")
    with profiler.stage("evaluate and write", len(queries), "questions"):
        labels = {q: frozenset([corpus.doc_ids[i % len(corpus)]]) for i, q in enumerate(queries.query_ids)}
        evaluate(fused, corpus, Qrels(labels))
        evaluate(final, corpus, Qrels(labels))
        write_submission(folder / "submission.csv", final, queries, corpus, TOP_K)
        for run in (*(item.run for item in runs), fused, final):
            save_run(folder, run, corpus, {})
    lengths = scorer.tokenize(documents).lengths
    tokens = int(np.minimum(lengths, LONGEST).sum()) + int(passage_lengths.sum())
    return Sizes(
        len(queries), len(corpus), len(chunks), int((chosen >= 0).sum()), tokens + int(tables[0].lengths.sum())
    )
