import io
import json
from dataclasses import asdict, replace

import numpy as np
from rich.console import Console

from src.core.types import Chunks, Corpus, Run
from src.insight.explain import Trace, explain, marked, missing_from_an_index, stages_of
from src.insight.explain_text import show

# Rows 0 to 5; page f is empty.
CORPUS = Corpus(
    ("a", "b", "c", "d", "e", "f"),
    ("Вклад", "Карта", "Кредит", "[red]Офис[/red]", "Ипотека", ""),
    ("Ставка по вкладам.", "Снятие наличных с карты.", "Срок кредита.", "Часы \x1b[31mработы.", "Первый взнос.", ""),
)
CHUNKS = Chunks(*(np.array(column, dtype=np.int32) for column in ([0, 1, 2, 3, 4], [0] * 5, [18, 24, 13, 17, 13])))


def run(name: str, rows: list[int], scores: list[float]) -> Run:
    return Run(name, ("7",), np.array([rows], dtype=np.int32), np.array([scores], dtype=np.float32), CORPUS.fingerprint)


# Two indices; the fusion has c, b, a; late interaction swaps b and c; the cross-encoder puts a first.
TRACE = Trace(
    query_id="7",
    question="снять наличные с карт в отделении",
    indices=(run("dense", [2, 1, 0, 3], [0.9, 0.8, 0.7, 0.6]), run("bm25", [1], [3.5])),
    deep=(run("dense", [2, 1, 0, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5]), run("bm25", [1, 4], [3.5, 0.1])),
    fused=run("fused", [2, 1, 0], [3, 2, 1]),
    late_scores=np.array([[0.2, 0.6, 0.1]], dtype=np.float32),
    candidates=run("fused", [1, 2, 0], [1.5, 1.25, -1]),
    passages=np.array([[[1], [2], [0]]], dtype=np.int32),
    pair_scores=np.array([[-4, -2, 8]], dtype=np.float32),
    final=run("rerank-on", [0, 2, 1], [2, 1, 0.5]),
    top_k=2,
)


def test_every_stage_in_its_order() -> None:
    found = explain(TRACE, CORPUS, CHUNKS, [], top=2)
    lists = [(stage.name, stage.size, [entry.doc_id for entry in stage.entries]) for stage in found.stages]
    assert lists == [
        ("dense", 4, ["c", "b"]),
        ("bm25", 1, ["b"]),
        ("fusion", 3, ["c", "b"]),
        ("late interaction", 3, ["b", "c"]),
        ("stage one", 3, ["b", "c"]),
        ("cross-encoder", 3, ["a", "c"]),
        ("blend", 3, ["a", "c"]),
    ]
    late = found.stages[3].entries[0]
    assert (late.rank, round(late.score, 4), late.title) == (1, 0.6, "Карта")
    assert found.lost is None
    assert found.candidates == 3
    assert [page.doc_id for page in found.pages] == ["a", "c"]


def test_stages_that_are_off_are_not_listed() -> None:
    bare = replace(TRACE, late_scores=None, pair_scores=None)
    assert [stage.name for stage in stages_of(bare)] == ["dense", "bm25", "fusion"]
    found = explain(replace(bare, candidates=bare.fused, final=bare.fused), CORPUS, CHUNKS, ["a"], top=5)
    assert found.right[0].says == "among the candidates, but no stage lifted it: rank 3 of stage one, reranking off"


def test_where_each_right_page_went() -> None:
    found = explain(TRACE, CORPUS, CHUNKS, ["a", "b", "d", "e", "f", "zz"], top=2)
    says = {page.doc_id: (page.lost, page.says) for page in found.right}
    assert says == {
        "a": ("found", "found: rank 3 -> 1 (cross-encoder alone: 1)"),
        "b": ("reranker", "dropped by the reranker: rank 1 -> 3 (cross-encoder alone: 3)"),
        "d": ("stage one", "not in the top K of any index: no rank in the 3 candidates; dense 4, bm25 not found"),
        "e": ("stage one", "not in the top K of any index: no rank in the 3 candidates; dense 5, bm25 2"),
        "f": ("empty page", "the page has neither title nor text, so nothing was indexed"),
        "zz": ("not in the corpus", "not in the corpus (6 pages)"),
    }
    assert found.lost == "found"
    assert explain(TRACE, CORPUS, CHUNKS, ["zz", "b"], top=2).lost == "reranker"


def test_a_page_that_an_index_has_and_the_fusion_has_not() -> None:
    trace = replace(TRACE, indices=(run("dense", [2, 3, 1, 0], [0.9, 0.85, 0.8, 0.7]), TRACE.indices[1]))
    (right,) = explain(trace, CORPUS, CHUNKS, ["d"], top=2).right
    assert right.says == "pushed out by the fusion: no rank in the 3 candidates; dense 2, bm25 not found"


def test_places_found_by_looking_deeper_are_told_apart() -> None:
    (right,) = explain(TRACE, CORPUS, CHUNKS, ["e"], top=2).right
    assert right.page is not None
    dense, fusion = right.page.places["dense"], right.page.places["fusion"]
    assert dense is not None
    assert (dense.rank, round(dense.score, 4), dense.listed) == (5, 0.5, False)
    assert fusion is None
    assert right.page.passages == ()
    assert missing_from_an_index(TRACE.indices, [4])
    assert not missing_from_an_index(TRACE.indices, [1])


def test_russian_words_are_marked_by_their_stem() -> None:
    (right,) = explain(TRACE, CORPUS, CHUNKS, ["b"], top=2).right
    assert right.page is not None
    (passage,) = right.page.passages
    assert passage.text == "Карта\nСнятие наличных с карты."
    assert [passage.text[a:b] for a, b in passage.marks] == ["Карта", "Снятие", "наличных", "с", "карты"]
    assert passage.words == ("карта", "снятие", "наличных", "с", "карты")
    assert right.page.missing == ("в", "отделен")


def test_marks_count_from_the_text_as_it_is_written() -> None:
    text = "За́мки и ЁЛКИ, ёлка."
    passage = marked(text, ["замк", "елк"], len(text))
    assert [text[a:b] for a, b in passage.marks] == ["За́мки", "ЁЛКИ", "ёлка"]


def test_what_was_cut_off_is_told() -> None:
    found = explain(TRACE, CORPUS, CHUNKS, ["b"], top=2, characters_read=lambda text: 12)
    assert found.right[0].page is not None
    (passage,) = found.right[0].page.passages
    assert (passage.text[: passage.read], passage.words) == ("Карта\nСнятие", ("карта", "снятие"))
    assert found.right[0].page.unread == ("наличн", "с")
    out = io.StringIO()
    show(found, Console(file=out, width=120, markup=False))
    assert "  Stems of the question that the page has where nothing was read: наличн, с\n" in out.getvalue()
    assert "‹Снятие› [cut here: 18 characters were not read]" in out.getvalue()


def printed(right: list[str], terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=terminal, markup=False, highlight=False, emoji=False)
    show(explain(TRACE, CORPUS, CHUNKS, right, top=2), console)
    return out.getvalue()


def test_on_paper() -> None:
    text = printed(["b", "d"])
    assert "Question 7: снять наличные с карт в отделении\n" in text
    assert "Right page b Карта: dropped by the reranker: rank 1 -> 3 (cross-encoder alone: 3)\n" in text
    assert "  Stems of the question that the page lacks: в, отделен\n" in text
    assert "‹Карта›\n‹Снятие› ‹наличных› ‹с› ‹карты›." in text
    # What users wrote is neither markup nor an order to the terminal.
    assert "Right page d [red]Офис[/red]: not in the top K of any index" in text
    assert "not read: it was no candidate" in text
    assert "\x1b" not in text
    assert "No right page is known" in printed([])


def test_on_a_terminal_marks_are_colours() -> None:
    text = printed(["b"], terminal=True)
    assert "\x1b[1;32mналичных\x1b[0m" in text
    assert "‹" not in text


def test_plain_data() -> None:
    plain = json.loads(json.dumps(asdict(explain(TRACE, CORPUS, CHUNKS, ["b"], top=1))))
    assert plain["lost"] == "reranker"
    assert plain["stages"][1]["entries"] == [{"rank": 1, "score": 3.5, "doc_id": "b", "title": "Карта"}]
