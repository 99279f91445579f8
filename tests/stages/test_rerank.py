from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import UserError
from src.core.pair_scores import PairScores, hash_texts
from src.core.types import Chunks, Corpus, Queries, Run
from src.engine.tokens import TokenTable
from src.stages.rerank import CandidateScorer, PassageTexts, blend, combine_scores, standardize_rows, unchanged


class WordOverlap:
    """A pair scorer that needs no model: shared letters of question and passage; it counts the pairs it is given."""

    longest_question = 20
    joint = True
    arithmetic = "float16"

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def tokenize(self, texts: tuple[str, ...]) -> TokenTable:
        ids = [np.frombuffer(text.encode("latin-1"), dtype=np.uint8).astype(np.int32) for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
        return TokenTable(np.concatenate([*ids, np.zeros(0, np.int32)]).astype(np.int32), offsets)

    def pair_lengths(self, questions: TokenTable, passages: TokenTable, pairs: np.ndarray) -> np.ndarray:
        return questions.lengths[pairs[:, 0]] + passages.lengths[pairs[:, 1]]

    def score(self, questions: TokenTable, passages: TokenTable, pairs: np.ndarray) -> np.ndarray:
        self.pairs.extend(map(tuple, pairs.tolist()))
        shared = [len(set(questions[q].tolist()) & set(passages[p].tolist())) for q, p in pairs.tolist()]
        return np.array(shared, dtype=np.float32)


CORPUS = Corpus(("a", "b", "c"), ("", "", ""), ("xyz", "abc abd", "xyz"))
CHUNKS = Chunks(*(np.array(v, dtype=np.int32) for v in ([0, 1, 1, 2], [0, 0, 4, 0], [3, 3, 7, 3])))


def candidates(rows: list[list[int]], scores: list[list[float]]) -> Run:
    ids = tuple(f"q{i}" for i in range(len(rows)))
    return Run("fused", ids, np.array(rows, np.int32), np.array(scores, np.float32), CORPUS.fingerprint)


def passages(chosen: list[list[list[int]]]) -> PassageTexts:
    return PassageTexts.of(CORPUS, CHUNKS, np.array(chosen, np.int32))


def test_equal_passages_are_one_text() -> None:
    found = passages([[[0, -1], [1, 2], [3, -1]]])
    assert found.texts == ("xyz", "abc", "abd")
    assert found.rows([0]).tolist() == [[[0, -1], [1, 2], [0, -1]]]


def test_best_passage_counts_and_equal_pairs_are_scored_once() -> None:
    scorer = WordOverlap()
    reranker = CandidateScorer(scorer, passages([[[0, -1], [1, 2], [3, -1]]] * 2))
    queries = Queries(("q0", "q1"), ("abd", "abd"))
    done: list[int] = []
    found = candidates([[0, 1, 2]] * 2, [[3.0, 2.0, 1.0]] * 2)
    run = blend(found, reranker.pair_scores(queries, found, done.append), 1.0, "rerank-on")
    # Document b: passages "abc" (2 shared letters) and "abd" (3); a and c share none and tie, in row order.
    assert run.name == "rerank-on"
    assert run.doc_rows.tolist() == [[1, 0, 2], [1, 0, 2]]
    assert scorer.pairs == [(0, 0), (0, 1), (0, 2)]
    assert sum(done) == 2


def test_one_text_with_other_candidates_is_read_once() -> None:
    scorer = WordOverlap()
    reranker = CandidateScorer(scorer, passages([[[0], [1]], [[1], [3]], [[1], [0]]]))
    queries = Queries(("q0", "q1", "q2"), ("abd", "xyz", "abd"))
    found = candidates([[0, 1], [1, 2], [1, 0]], [[2.0, 1.0]] * 3)
    scores = reranker.pair_scores(queries, found)
    # "abd" shares nothing with "xyz" and two letters with "abc"; "xyz" the other way about.
    assert scores.tolist() == [[0.0, 2.0], [0.0, 3.0], [2.0, 0.0]]
    assert sorted(scorer.pairs) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (reranker.scored, len(scorer.pairs)) == (4, 4)


def test_progress_goes_by_the_tokens_that_are_left_to_read(tmp_path: Path) -> None:
    chosen, own = np.array([[[0]], [[1]], [[2]]], np.int32), np.array([0, 1, 2, -1], np.int32)
    texts = PassageTexts(("x", "y" * 4, "z" * 9), chosen, own)
    queries, run = Queries(("q0", "q1", "q2"), ("a", "b", "c")), candidates([[0], [1], [2]], [[1.0]] * 3)

    def told(kept: PairScores | None) -> tuple[list[int], CandidateScorer]:
        done: list[int] = []
        scorer = CandidateScorer(WordOverlap(), texts, kept, block=1)
        scorer.pair_scores(queries, run, done.append)
        return done, scorer

    # Pairs of 2, 5 and 10 tokens: after each, 3 * 2/17 = 0.35, 3 * 7/17 = 1.24 and 3 questions' worth.
    done, scorer = told(None)
    assert done == [0, 1, 2]
    assert (scorer.tokens, scorer.squared_tokens) == (17, 4 + 25 + 100)
    # Where the longest is kept, the other two are all the work: 3 * 2/7 = 0.86 and 3.
    kept = PairScores(tmp_path)
    kept.add(hash_texts(["c"]), hash_texts(["z" * 9]), np.ones(1, np.float32))
    kept.save()
    assert told(PairScores(tmp_path))[0] == [1, 2, 0]
    # Where all are kept, questions count alike.
    assert told(PairScores(tmp_path))[0] == [1, 1, 1]


def test_blend_by_hand() -> None:
    run = candidates([[0, 1, 2]], [[3.0, 2.0, 1.0]])
    # stage one z = 1.22474, 0, -1.22474; cross-encoder 0, 0, 6: mean 2, deviation sqrt(8),
    # z = -.70711, -.70711, 1.41421
    mixed = blend(run, np.array([[0.0, 0.0, 6.0]], np.float32), 0.75, "x")
    assert mixed.doc_rows.tolist() == [[2, 0, 1]]
    assert mixed.scores[0].tolist() == pytest.approx([0.75447, -0.22415, -0.53033], abs=1e-4)


@given(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3))
def test_weight_zero_keeps_the_order_of_stage_one(scores: list[float]) -> None:
    run = candidates([[2, 0, 1]], [[3.0, 2.0, 1.0]])
    assert blend(run, np.array([scores], np.float32), 0.0, "x").doc_rows.tolist() == [[2, 0, 1]]


def test_short_lists_stay_short() -> None:
    run = candidates([[1, 0, -1]], [[2.0, 1.0, 0.0]])
    mixed = blend(run, np.array([[0.0, 1.0, 99.0]], np.float32), 1.0, "x")
    assert mixed.doc_rows.tolist() == [[0, 1, -1]]


def test_standardize_rows_without_spread() -> None:
    filled = np.array([[True, True, False], [False, False, False]])
    assert standardize_rows(np.full((2, 3), 4.0, np.float32), filled).tolist() == [[0.0] * 3] * 2


def test_document_without_a_passage_scores_as_the_lowest() -> None:
    reranker = CandidateScorer(WordOverlap(), passages([[[-1], [1], [0]]]))
    found = candidates([[0, 1, 2]], [[3.0, 2.0, 1.0]])
    run = blend(found, reranker.pair_scores(Queries(("q0",), ("abz",)), found), 1.0, "x")
    # b shares 2 letters, c shares 1, a has no passage and takes c's score.
    assert run.doc_rows.tolist() == [[1, 0, 2]]


def test_blocks_do_not_change_the_result() -> None:
    queries = Queries(tuple(f"q{i}" for i in range(5)), ("abd", "xyz", "abd", "cc", "z"))
    chosen, rows, scores = [[[0], [1], [3]]] * 5, [[0, 1, 2]] * 5, [[3.0, 2.0, 1.0]] * 5
    found = [
        CandidateScorer(WordOverlap(), passages(chosen), block=block).pair_scores(queries, candidates(rows, scores))
        for block in (1, 2, 64)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_kept_scores_are_not_asked_for_again(tmp_path: Path) -> None:
    queries = Queries(("q0", "q1"), ("abd", "xyz"))
    chosen, run = [[[0], [1], [3]]] * 2, candidates([[0, 1, 2]] * 2, [[3.0, 2.0, 1.0]] * 2)
    first, second = WordOverlap(), WordOverlap()
    one = CandidateScorer(first, passages(chosen), PairScores(tmp_path)).pair_scores(queries, run)
    again = CandidateScorer(second, passages(chosen), PairScores(tmp_path))
    two = again.pair_scores(Queries(("n0", "n1"), ("abd", "xyz")), Run("fused", ("n0", "n1"), *run_arrays(run)))
    assert (len(first.pairs), len(second.pairs)) == (4, 0)
    assert (again.scored, again.reused) == (0, 4)
    np.testing.assert_array_equal(one, two)


def test_scores_of_another_arithmetic_are_not_kept(tmp_path: Path) -> None:
    class Overflows(WordOverlap):
        def score(self, questions: TokenTable, passages: TokenTable, pairs: np.ndarray) -> np.ndarray:
            if self.pairs:
                self.arithmetic = "bfloat16"
            return super().score(questions, passages, pairs)

    queries = Queries(("q0", "q1"), ("abd", "xyz"))
    chosen, run = [[[0], [1], [3]]] * 2, candidates([[0, 1, 2]] * 2, [[3.0, 2.0, 1.0]] * 2)
    CandidateScorer(Overflows(), passages(chosen), PairScores(tmp_path), block=1).pair_scores(queries, run)
    assert len(PairScores(tmp_path)) == 2  # those of the first question


def run_arrays(run: Run) -> tuple[np.ndarray, np.ndarray, str]:
    return run.doc_rows, run.scores, run.corpus_fingerprint


def test_finished_blocks_survive_a_failure(tmp_path: Path) -> None:
    class Breaks(WordOverlap):
        def score(self, questions: TokenTable, passages: TokenTable, pairs: np.ndarray) -> np.ndarray:
            if self.pairs:
                raise UserError("out of memory")
            return super().score(questions, passages, pairs)

    queries = Queries(("q0", "q1"), ("abd", "xyz"))
    run = candidates([[0, 1, 2]] * 2, [[3.0, 2.0, 1.0]] * 2)
    broken = CandidateScorer(Breaks(), passages([[[0], [1], [3]]] * 2), PairScores(tmp_path), block=1)
    with pytest.raises(UserError, match="out of memory"):
        broken.pair_scores(queries, run)
    assert len(PairScores(tmp_path)) == 2


def test_question_that_is_too_long_is_named() -> None:
    reranker = CandidateScorer(WordOverlap(), passages([[[0]]]))
    with pytest.raises(UserError, match="question 'q0' has 30 tokens; the cross-encoder reads at most 20"):
        reranker.pair_scores(Queries(("q0",), ("x" * 30,)), candidates([[0]], [[1.0]]))


def test_identity() -> None:
    run = candidates([[0, 1]], [[2.0, 1.0]])
    same = unchanged(run)
    assert same.name == "rerank-off"
    np.testing.assert_array_equal(same.doc_rows, run.doc_rows)


def test_scores_of_several_cross_encoders_are_standardised_and_averaged() -> None:
    rows = np.array([[0, 1, 2], [4, -1, -1]], dtype=np.int32)
    run = Run("fused", ("a", "b"), rows, np.array([[3, 2, 1], [1, 0, 0]], dtype=np.float32), "c")
    first = np.array([[1, 2, 3], [7, 0, 0]], dtype=np.float32)
    second = np.array([[30, 20, 10], [7, 0, 0]], dtype=np.float32)
    z = 1.2247449  # of 1, 2, 3
    both = combine_scores(run, [first, second], [3.0, 1.0])
    np.testing.assert_allclose(both, [[-z / 2, 0, z / 2], [0, 0, 0]], atol=1e-6)
    assert combine_scores(run, [first], [2.0]) is first
