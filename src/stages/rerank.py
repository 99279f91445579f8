"""Rerank: a cross-encoder reads question and passage together; its scores are blended with stage one's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from src.core.errors import UserError
from src.core.pace import Pace
from src.core.pair_scores import Hashes, PairScores, hash_texts
from src.core.spool import Spool, blocks
from src.core.types import PAD, Chunks, Corpus, Floats, Progress, Queries, Rows, Run, passage_text, ranked
from src.engine.memory_limit import PairTooLargeError
from src.engine.pair_scorer import PairScorer
from src.engine.tokens import TokenTable


def unchanged(candidates: Run) -> Run:
    """Reranking is off: the order of stage one stands, under the name of a final run."""
    return replace(candidates, name="rerank-off")


def standardize_rows(scores: Floats, filled: np.ndarray) -> Floats:
    """Z-scores per row over the filled places, float32 [Q, K]; 0 elsewhere and where a row has no spread."""
    counts = np.maximum(filled.sum(axis=1, keepdims=True), 1)
    values = np.where(filled, scores, 0.0).astype(np.float64)
    centred = np.where(filled, values - values.sum(axis=1, keepdims=True) / counts, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / counts)
    result: Floats = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9).astype(np.float32)
    return result


def blend(candidates: Run, pair_scores: Floats, weight: float, name: str, spool: Spool | None = None) -> Run:
    """Order candidates by ``(1 - weight) * z(stage one) + weight * z(cross-encoder)``, z-scores per question.

    Args:
        candidates: [Q, K], scores of stage one.
        pair_scores: float32 [Q, K], scores of the cross-encoder; ignored where there is no candidate.
        weight: 0 keeps the order of stage one, 1 takes the cross-encoder alone.
        spool: where the blended run lies; by default in memory.
    """

    def made(part: slice) -> Run:
        run = candidates.part(part)
        filled = run.doc_rows != PAD
        mixed = (1.0 - weight) * standardize_rows(run.scores, filled) + weight * standardize_rows(
            pair_scores[part], filled
        )
        rows = np.full(run.doc_rows.shape, PAD, dtype=np.int32)
        scores = np.zeros(run.doc_rows.shape, dtype=np.float32)
        for i in range(len(run.query_ids)):
            keep = filled[i]
            rows[i], scores[i] = ranked(run.doc_rows[i][keep], mixed[i][keep].astype(np.float32), run.depth)
        return Run(name, run.query_ids, rows, scores, run.corpus_fingerprint)

    return Run.in_blocks(
        name, candidates.query_ids, candidates.depth, candidates.corpus_fingerprint, spool or Spool(), made
    )


def combine_scores(
    candidates: Run, scores: Sequence[Floats], weights: Sequence[float], spool: Spool | None = None
) -> Floats:
    """One score of several cross-encoders: the weighted mean of their z-scores per question; of one, its own score.

    Args:
        candidates: [Q, K].
        scores: float32 [Q, K] of each cross-encoder.
        weights: one for each, above 0.
        spool: where the result lies; by default in memory.

    Returns:
        float32 [Q, K].
    """
    if len(scores) == 1:
        return scores[0]
    total = sum(weights)

    def made(rows: slice) -> Floats:
        filled = candidates.doc_rows[rows] != PAD
        mixed = sum(
            (weight / total * standardize_rows(of[rows], filled) for of, weight in zip(scores, weights, strict=True)),
            start=np.zeros(filled.shape),
        )
        result: Floats = mixed.astype(np.float32)
        return result

    return (spool or Spool()).filled(len(candidates.query_ids), (candidates.depth,), np.float32, made)


@dataclass(frozen=True)
class PassageTexts:
    """The distinct passages that a run's candidates are read by.

    Attributes:
        texts: distinct passages, title included.
        chosen: int32 [Q, K, m], chunks of each candidate; -1 where there is none.
        text_of: int32 [C + 1], row of ``texts`` of each chunk; the last, which -1 finds, is -1.
    """

    texts: tuple[str, ...]
    chosen: Rows
    text_of: Rows

    @classmethod
    def of(cls, corpus: Corpus, chunks: Chunks, chosen: Rows) -> "PassageTexts":
        """Texts of chosen chunks, int32 [Q, K, m], -1 where there is none."""
        used = np.zeros(len(chunks) + 1, dtype=bool)
        for part in blocks(len(chosen)):
            used[chosen[part]] = True
        texts: dict[str, int] = {}
        text_of = np.full(len(chunks) + 1, PAD, dtype=np.int32)
        for chunk in np.flatnonzero(used[:-1]).tolist():
            text = passage_text(corpus.titles[int(chunks.doc_rows[chunk])], chunks.text(corpus, chunk))
            text_of[chunk] = texts.setdefault(text, len(texts))
        return cls(tuple(texts), chosen, text_of)

    def rows(self, questions: Sequence[int]) -> Rows:
        """Rows of ``texts`` of the candidates of some questions, int32 [n, K, m]; -1 where there is none."""
        found: Rows = self.text_of[self.chosen[list(questions)]]
        return found


class CandidateScorer:
    """Scores (question, passage) pairs; equal pairs of a block once.

    Args:
        scorer: the cross-encoder.
        passages: what it reads of each candidate; a document scores as its best passage (MaxP).
        kept: scores of earlier runs; pairs found there are not scored again, and new ones are saved there as the run
            goes on, so that an interrupted run loses little more than a block.
        save_seconds: least time between two saves.
        block: questions per block; within one, pairs are sorted by length across questions. It paces the progress
            bar and bounds memory; scores do not depend on it.

    Attributes:
        reused, scored: pairs found among the kept ones, and pairs that the model has read.
        tokens, squared_tokens: of the pairs that the model has read, and the sum of their squares.
    """

    def __init__(
        self,
        scorer: PairScorer,
        passages: PassageTexts,
        kept: PairScores | None = None,
        block: int = 16,
        save_seconds: float = 1.0,
    ) -> None:
        self.scorer = scorer
        self.passages = passages
        self.kept = kept
        self.arithmetic = scorer.arithmetic
        self.block = block
        self.save_seconds = save_seconds
        self.query_ids: tuple[str, ...] = ()
        # Of each question, the first one with the same text.
        self._first_of = np.zeros(0, dtype=np.int64)
        self.reused = 0
        self.scored = 0
        self.tokens = 0
        self.squared_tokens = 0

    def tokenize(self, queries: Queries) -> tuple[TokenTable, TokenTable]:
        """Token tables of the questions and of the passages.

        Raises:
            UserError: where a question is too long for the model; it names the question.
        """
        questions = self.scorer.tokenize(queries.texts)
        lengths = questions.lengths
        if len(lengths) and int(lengths.max()) > self.scorer.longest_question:
            worst = int(lengths.argmax())
            raise UserError(
                f"question {queries.query_ids[worst]!r} has {int(lengths[worst])} tokens; the cross-encoder reads at "
                f"most {self.scorer.longest_question}. Shorten it, or run with --no-rerank."
            )
        return questions, self.scorer.tokenize(self.passages.texts)

    def pair_scores(
        self,
        queries: Queries,
        candidates: Run,
        progress: Progress | None = None,
        tables: tuple[TokenTable, TokenTable] | None = None,
        spool: Spool | None = None,
    ) -> Floats:
        """The cross-encoder's own score of each candidate, float32 [Q, K]; equal questions are scored once.

        Args:
            spool: where the scores lie.
            progress: is told how many questions' worth of the work is done, by the tokens that are still to be read:
                questions differ in length, and kept scores cost nothing.
        """
        questions, passages = tables or self.tokenize(queries)
        self.query_ids = queries.query_ids
        seen: dict[str, int] = {}
        self._first_of = np.array([seen.setdefault(text, i) for i, text in enumerate(queries.texts)], dtype=np.int64)
        hashes = (hash_texts(queries.texts), hash_texts(self.passages.texts)) if self.kept is not None else None
        spool = spool or Spool()
        scores: Floats = spool.array(candidates.doc_rows.shape, np.float32)
        groups = _equal_rows(queries.texts, candidates)
        done = self._shares_done(questions, passages, groups, hashes)
        told = 0
        pace = Pace(self.save_seconds)
        try:
            for rows in blocks(len(groups), self.block):
                part = groups[rows]
                best = self._score_block(questions, passages, [group[0] for group in part], hashes)
                for values, group in zip(best, part, strict=True):
                    scores[list(group)] = values
                if self.kept is not None and pace.due:
                    with pace.saving():
                        self.kept.save()
                if progress is not None:
                    worth = round(float(done[rows.stop - 1]) * len(queries))
                    progress(worth - told)
                    told = worth
        finally:
            if self.kept is not None:
                self.kept.save()
        return scores

    def _shares_done(
        self,
        questions: TokenTable,
        passages: TokenTable,
        groups: Sequence[Sequence[int]],
        hashes: tuple[Hashes, Hashes] | None,
    ) -> npt.NDArray[np.float64]:
        """Share of the tokens to be read that is read after each group, float64 [groups], rising to 1."""
        cost = np.zeros(len(groups))
        for rows in blocks(len(groups), self.block):
            leaders = [group[0] for group in groups[rows]]
            present, pairs = self._pairs_of(leaders)
            tokens = self.scorer.pair_lengths(questions, passages, pairs)
            if self.kept is not None and len(self.kept) and hashes is not None:
                tokens = tokens * np.isnan(self.kept.lookup(hashes[0][pairs[:, 0]], hashes[1][pairs[:, 1]]))
            cost[rows] = np.bincount(np.nonzero(present)[0], tokens, len(leaders))
        total = float(cost.sum())
        if total == 0.0:
            cost, total = np.ones(len(groups)), float(len(groups))
        return np.cumsum(cost) / max(total, 1.0)

    def _pairs_of(self, leaders: Sequence[int]) -> tuple[npt.NDArray[np.bool_], Rows]:
        """Where some questions have passages, bool [len(leaders), K, m], and the pairs there, int32 [P, 2]."""
        rows = self.passages.rows(leaders)
        present = rows != PAD
        owners = np.broadcast_to(np.array(leaders, dtype=np.int32)[:, None, None], rows.shape)
        return present, np.stack([owners[present], rows[present]], axis=1)

    def _score_block(
        self,
        questions: TokenTable,
        passages: TokenTable,
        leaders: Sequence[int],
        hashes: tuple[Hashes, Hashes] | None,
    ) -> Floats:
        """Best pair score of each candidate, float32 [len(leaders), K]; without a passage, the row's lowest."""
        present, pairs = self._pairs_of(leaders)
        keys = self._first_of[pairs[:, 0]] * max(1, len(self.passages.texts)) + pairs[:, 1]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        values = np.full(present.shape, -np.inf, dtype=np.float32)
        values[present] = self._score_pairs(questions, passages, pairs[first], hashes)[inverse]
        best = values.max(axis=2)
        known = np.isfinite(best)
        lowest = np.where(known, best, np.inf).min(axis=1, keepdims=True)
        return np.where(known, best, np.where(np.isfinite(lowest), lowest, 0.0)).astype(np.float32)

    def _score_pairs(
        self, questions: TokenTable, passages: TokenTable, pairs: Rows, hashes: tuple[Hashes, Hashes] | None
    ) -> Floats:
        if self.kept is None or hashes is None:
            self.scored += len(pairs)
            return self._score_missing(questions, passages, pairs)
        question_keys, passage_keys = hashes[0][pairs[:, 0]], hashes[1][pairs[:, 1]]
        scores = self.kept.lookup(question_keys, passage_keys)
        missing = np.isnan(scores)
        scores[missing] = self._score_missing(questions, passages, pairs[missing])
        if self.scorer.arithmetic == self.arithmetic:  # else it had to leave float16, which the kept scores are of
            self.kept.add(question_keys[missing], passage_keys[missing], scores[missing])
        self.reused += int((~missing).sum())
        self.scored += int(missing.sum())
        return scores

    def _score_missing(self, questions: TokenTable, passages: TokenTable, pairs: Rows) -> Floats:
        lengths = self.scorer.pair_lengths(questions, passages, pairs)
        self.tokens += int(lengths.sum())
        self.squared_tokens += int((lengths**2).sum())
        try:
            return self.scorer.score(questions, passages, pairs)
        except PairTooLargeError as error:
            raise UserError(
                f"question {self.query_ids[error.question]!r} with the passage "
                f"{self.passages.texts[error.passage][:60]!r}: this one pair of {error.tokens} tokens does not fit "
                f"into the memory of {error.device}. Free some, lower RERANKER_MAX_LENGTH, or name a smaller "
                "CROSS_ENCODER_MODEL."
            ) from error


def _equal_rows(texts: Sequence[str], candidates: Run) -> list[tuple[int, ...]]:
    """Numbers of the questions, grouped where text and candidates are equal; groups of one text stand side by side."""
    asked = Counter(texts)
    repeated: dict[str, dict[bytes, list[int]]] = {}
    order: list[int | str] = []
    for i, text in enumerate(texts):
        if asked[text] == 1:
            order.append(i)
            continue
        if text not in repeated:
            order.append(text)
        repeated.setdefault(text, {}).setdefault(candidates.doc_rows[i].tobytes(), []).append(i)
    groups: list[tuple[int, ...]] = []
    for item in order:
        groups += [(item,)] if isinstance(item, int) else map(tuple, repeated[item].values())
    return groups
