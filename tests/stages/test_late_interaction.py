import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.types import Rows, Run, TokenVectors
from src.stages.late_interaction import late_scores, late_scores_in_blocks, maxsim, maxsim_over
from src.stages.retrieve import follow_documents


def tokens(*texts: list[list[float]]) -> TokenVectors:
    lengths = [len(text) for text in texts]
    rows = [row for text in texts for row in text]
    values = np.array(rows, np.float16).reshape(len(rows), 2)
    return TokenVectors(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


EAST, NORTH, WEST, BETWEEN = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]
PASSAGES = tokens([EAST], [WEST, NORTH], [], [BETWEEN, WEST, EAST])


def test_maxsim_by_hand() -> None:
    question = np.array([EAST, NORTH], np.float32)
    found = maxsim(question, PASSAGES, np.array([0, 1, 2, 3], np.int32))
    # passage 0: 1 and 0; passage 1: max(-1, 0) and max(0, 1); no token: -1; passage 3: 1 and 0.8
    assert found.tolist() == pytest.approx([0.5, 0.5, -1.0, 0.9], abs=1e-3)


def test_question_without_tokens() -> None:
    assert maxsim(np.zeros((0, 2), np.float32), PASSAGES, np.array([0], np.int32)).tolist() == [-1.0]


def test_the_best_passage_of_a_candidate_counts() -> None:
    rows = np.array([[[0, 3], [1, -1], [-1, -1]]], np.int32)
    found = late_scores(tokens([EAST, NORTH]), maxsim_over(PASSAGES, "cpu"), rows)
    assert found[0].tolist() == pytest.approx([0.9, 0.5, -1.0], abs=1e-3)


def test_passages_follow_their_documents() -> None:
    scores = np.array([[3, 2, 1], [2, 1, 0]], np.float32)
    before = Run("a", ("q0", "q1"), np.array([[4, 2, 9], [7, 1, -1]], np.int32), scores, "c")
    after = Run("b", ("q0", "q1"), np.array([[9, 4, 2], [1, 7, -1]], np.int32), scores, "c")
    passages = np.array([[[40, 41], [20, -1], [90, 91]], [[70, 71], [10, 11], [-1, -1]]], np.int32)
    assert follow_documents(passages, before, after).tolist() == [
        [[90, 91], [40, 41], [20, -1]],
        [[10, 11], [70, 71], [-1, -1]],
    ]


@given(st.integers(1, 5), st.lists(st.lists(st.integers(-1, 3), min_size=2, max_size=2), min_size=1, max_size=6))
def test_blocks_change_nothing(most: int, chosen: list[list[int]]) -> None:
    rows = np.array(chosen, np.int32)[:, :, None]
    questions = tokens(*([[EAST], [NORTH, WEST], [BETWEEN]] * 2)[: len(rows)])
    asked: list[int] = []

    def encode(wanted: Rows) -> TokenVectors:
        asked.append(len(wanted))
        return tokens(*(PASSAGES[row].tolist() for row in wanted.tolist()))

    found = late_scores_in_blocks(questions, rows, encode, most)
    np.testing.assert_array_equal(found, late_scores(questions, maxsim_over(PASSAGES, "cpu"), rows))
    assert max(asked) <= max(most, 2)
