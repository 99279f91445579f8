from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import UserError
from src.core.types import Corpus, Qrels, Queries, Run
from src.engine.encoder import SentenceEncoder
from src.quality.mining import Example, Miner, labelled_examples, mine_negatives, read_pairs


def test_negatives_by_hand() -> None:
    passages = ["right", "Right", "near", "nearer than right", "far", "in words"]
    cosines = np.array([[0.80, 0.79, 0.75, 0.90, 0.10, 0.20]], np.float32)
    found = mine_negatives(
        ["q"], [frozenset({0})], passages, lambda a, b: cosines[a:b], lambda a, b: [[5, 0]], dense_depth=3
    )
    # Row 0 is the positive, row 1 repeats it, row 3 lies above 0.80 + 0.03, row 4 is not among the 3 + 1 nearest.
    assert found == [(2, 5)]
    complete = mine_negatives(
        ["q"], [frozenset({0})], passages, lambda a, b: cosines[a:b], lambda a, b: [[5, 0]], 3, np.inf
    )
    assert complete == [(3, 2, 5)]


def test_read_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": " a ", "passage": "b"}\n\n{"question": "c", "passage": "d"}\n', encoding="utf-8")
    assert read_pairs(path) == [("a", "b"), ("c", "d")]
    path.write_text('{"questions": ["a", "b "], "passage": "c"}\n{"question": "d", "passage": "e"}\n', encoding="utf-8")
    assert read_pairs(path) == [("a", "c"), ("b", "c"), ("d", "e")]
    path.write_text('{"questions": "ab", "passage": "c"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: .*questions is not a list of texts"):
        read_pairs(path)
    path.write_text('{"question": "a", "passage": "b"}\n{"question": "c"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 2: expected"):
        read_pairs(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="no training pairs"):
        read_pairs(path)
    with pytest.raises(UserError, match="no such file"):
        read_pairs(tmp_path / "absent.jsonl")


def test_the_miner_keeps_what_it_found(bi_encoder: Path, tmp_path: Path) -> None:
    pairs = [("ставка", "ставка по вкладу"), ("карта", "карта бесплатна"), ("ставка", "ставка по кредиту")]
    calls: list[str] = []

    def bars(name: str, total: int) -> nullcontext:  # type: ignore[type-arg]
        calls.append(name)
        return nullcontext(lambda count: None)

    miner = Miner(SentenceEncoder(bi_encoder), "fingerprint", tmp_path, bars)
    first = miner.examples(pairs, ["лишний отрывок"])
    assert [(e.question, e.positive) for e in first] == [("ставка", "ставка по вкладу"), ("карта", "карта бесплатна")]
    assert "ставка по кредиту" not in first[0].negatives
    assert len(calls) == 2
    assert miner.examples(pairs, ["лишний отрывок"]) == first
    assert len(calls) == 2
    miner.examples(pairs)
    assert len(calls) == 4
    miner.examples(pairs, margin=float("inf"))
    assert len(calls) == 6


def test_similarities_are_means_of_cosine_and_late_interaction(bi_encoder: Path, tmp_path: Path) -> None:
    pairs = [("ставка", "ставка по вкладу"), ("карта", "карта бесплатна")]
    encoder = SentenceEncoder(bi_encoder)
    calls: list[str] = []

    def bars(name: str, total: int) -> nullcontext:  # type: ignore[type-arg]
        calls.append(name)
        return nullcontext(lambda count: None)

    miner = Miner(encoder, "fingerprint", tmp_path, bars)
    plain = miner.examples(pairs, margin=float("inf"))
    assert plain[0].similarities == ()
    assert len(calls) == 2
    (found, _) = miner.examples(pairs, margin=float("inf"), similarities=True)
    assert (found.question, found.positive, found.negatives) == ("ставка", "ставка по вкладу", ("карта бесплатна",))
    asked, asked_tokens = encoder.encode_tokens(["ставка"], "query")
    read, read_tokens = encoder.encode_tokens(["ставка по вкладу", "карта бесплатна"], "document")
    for i, similarity in enumerate(found.similarities):
        cosines = asked_tokens[0].astype(np.float32) @ read_tokens[i].astype(np.float32).T
        expected = (float(asked[0] @ read[i]) + float(cosines.max(axis=1).mean())) / 2
        assert similarity == pytest.approx(expected, abs=2e-3)
    assert len(calls) == 4
    assert miner.examples(pairs, margin=float("inf"), similarities=True)[0] == found
    assert len(calls) == 4


def test_labelled_examples_by_hand() -> None:
    corpus = Corpus(("a", "b", "c"), ("", "", ""), ("A", "B", "C"))
    queries = Queries(("q1", "q2", "q3"), ("one", "two", "three"))
    rows = np.array([[1, 0, 2], [0, 1, 2], [2, 0, 1]], np.int32)
    scores = np.tile(np.array([3.0, 2.0, 1.0], np.float32), (3, 1))
    run = Run("fused", queries.query_ids, rows, scores, corpus.fingerprint)
    read = rows[:, :, None].copy()
    read[2, 0, 0] = -1  # no passage of document c is read for q3
    found = labelled_examples(
        queries, Qrels({"q1": frozenset("a"), "q3": frozenset("c")}), run, corpus, ["A", "B", "C"], read, depth=2
    )
    assert found == [Example("one", "A", ("B",))]
