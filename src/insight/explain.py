"""One question through every stage: ranks, scores, the passages that were read, and where a right page was lost."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from src.core.text import spans_of_terms, terms
from src.core.types import PAD, Chunks, Corpus, Floats, Rows, Run, passage_text, ranked
from src.insight.losses import MEANING, ORDER, Lost, rank_in, where_lost
from src.insight.printable import title_of

FUSION, LATE, STAGE_ONE = "fusion", "late interaction", "stage one"
CROSS_ENCODER, BLEND = "cross-encoder", "blend"


@dataclass(frozen=True)
class Trace:
    """What the stages made of one question; every run holds that question alone.

    Attributes:
        query_id: ``None`` for a question that was typed.
        indices: the run of each index.
        deep: the same runs, each as long as its index allows; empty where nobody had to look that far.
        fused: the candidates in the order of the fusion.
        late_scores: float32 [1, K], of the candidates of ``fused``; ``None`` where late interaction is off.
        candidates: the candidates in stage one's final order.
        passages: int32 [1, K, m], chunks of each of ``candidates`` that were read, best first; -1 pads.
        pair_scores: float32 [1, K], the cross-encoder's own score of each of ``candidates``; ``None``: reranking off.
        final: the order that is handed in.
        top_k: pages that are handed in.
        warnings: model swaps and the like.
        variants: other wordings of the question that were searched too.
    """

    query_id: str | None
    question: str
    indices: tuple[Run, ...]
    deep: tuple[Run, ...]
    fused: Run
    late_scores: Floats | None
    candidates: Run
    passages: Rows
    pair_scores: Floats | None
    final: Run
    top_k: int
    warnings: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Rank (from 1) and score of a page in a stage.

    Attributes:
        listed: false where the page is not in the list that the stage handed on, and was found by looking deeper.
    """

    rank: int
    score: float
    listed: bool = True


@dataclass(frozen=True)
class Entry:
    """A page in the list of a stage; ``title`` is the beginning of its text where it has none."""

    rank: int
    score: float
    doc_id: str
    title: str


@dataclass(frozen=True)
class StageList:
    """The first pages of a stage.

    Attributes:
        size: length of the whole list.
    """

    name: str
    size: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Passage:
    """A text that was read.

    Attributes:
        read: characters of ``text`` that were read; the rest was cut off, because pair and model have a limit.
        marks: (start, end) in the part that was read of the words that the question has too, by stem.
        words: those words as they are written here, each once.
    """

    text: str
    read: int
    marks: tuple[tuple[int, int], ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class PageTrace:
    """One page through the stages.

    Attributes:
        title: the beginning of its text where it has none.
        places: stage -> its place; ``None`` where the stage does not have it.
        passages: what was read of it; empty where it was no candidate.
        missing: stems of the question that stand nowhere on the page.
        unread: stems of the question that stand on the page, but in nothing that was read of it; empty where it was
            no candidate.
    """

    doc_id: str
    title: str
    places: Mapping[str, Place | None]
    passages: tuple[Passage, ...]
    missing: tuple[str, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class RightPage:
    """A page that should have been found.

    Attributes:
        lost: where it was lost, or ``found``.
        says: the same in words, with its ranks.
        page: ``None`` where the corpus does not have it.
    """

    doc_id: str
    lost: Lost
    says: str
    page: PageTrace | None


@dataclass(frozen=True)
class Explanation:
    """What happened to a question.

    Attributes:
        stages: in the order of the search.
        pages: the first pages in the end.
        right: the pages that should have been found; empty where that is not known.
        lost: of the right page that came furthest; ``None`` where none is known.
        variants: other wordings of the question that were searched too.
    """

    query_id: str | None
    question: str
    top_k: int
    candidates: int
    stages: tuple[StageList, ...]
    pages: tuple[PageTrace, ...]
    right: tuple[RightPage, ...]
    lost: Lost | None
    warnings: tuple[str, ...]
    variants: tuple[str, ...]


def by_scores(name: str, run: Run, scores: Floats) -> Run:
    """The candidates of a run of one question in the order of other scores, float32 [1, K]."""
    filled = run.doc_rows[0] != PAD
    rows, values = ranked(run.doc_rows[0][filled], scores[0][filled], run.depth)
    return Run(name, run.query_ids, rows[None], values[None], run.corpus_fingerprint)


def stages_of(trace: Trace) -> tuple[Run, ...]:
    """The runs of a trace in the order of the search, named as its stages."""
    runs = [*trace.indices, replace(trace.fused, name=FUSION)]
    if trace.late_scores is not None:
        runs.append(by_scores(LATE, trace.fused, trace.late_scores))
        runs.append(replace(trace.candidates, name=STAGE_ONE))
    if trace.pair_scores is not None:
        runs.append(by_scores(CROSS_ENCODER, trace.candidates, trace.pair_scores))
        runs.append(replace(trace.final, name=BLEND))
    return tuple(runs)


def missing_from_an_index(runs: Sequence[Run], rows: Collection[int]) -> bool:
    """Whether one of the documents is not in the list of one of the runs (of one question)."""
    return any(rank_in(run, 0, row) is None for run in runs for row in rows)


def explain(
    trace: Trace,
    corpus: Corpus,
    chunks: Chunks,
    right: Collection[str],
    top: int,
    characters_read: Callable[[str], int] = len,
) -> Explanation:
    """Say what happened to a question.

    Args:
        right: ids of the pages that should have been found; some may not be in the corpus.
        top: pages of each stage that are listed.
        characters_read: how many characters of a passage the reranker reads; all by default.
    """

    def page_of(row: int) -> PageTrace:
        return _page(trace, stages, corpus, chunks, row, characters_read)

    stages = stages_of(trace)
    first = [row for row in trace.final.doc_rows[0][:top].tolist() if row != PAD]
    followed = tuple(_right_page(trace, corpus, doc_id, page_of) for doc_id in sorted(right))
    return Explanation(
        trace.query_id,
        trace.question,
        trace.top_k,
        int((trace.candidates.doc_rows[0] != PAD).sum()),
        tuple(_stage_list(run, corpus, top) for run in stages),
        tuple(page_of(row) for row in first),
        followed,
        min((page.lost for page in followed), key=ORDER.index, default=None),
        trace.warnings,
        trace.variants,
    )


def _stage_list(run: Run, corpus: Corpus, top: int) -> StageList:
    filled = run.doc_rows[0] != PAD
    found = zip(run.doc_rows[0][filled].tolist(), run.scores[0][filled].tolist(), strict=True)
    entries = [
        Entry(rank, score, corpus.doc_ids[row], title_of(corpus.titles[row], corpus.texts[row]))
        for rank, (row, score) in enumerate(found, start=1)
    ]
    return StageList(run.name, len(entries), tuple(entries[:top]))


def _place(run: Run, row: int, listed: bool = True) -> Place | None:
    rank = rank_in(run, 0, row)
    return None if rank is None else Place(rank, float(run.scores[0][rank - 1]), listed)


def _page(
    trace: Trace,
    stages: Sequence[Run],
    corpus: Corpus,
    chunks: Chunks,
    row: int,
    characters_read: Callable[[str], int],
) -> PageTrace:
    places = {run.name: _place(run, row) for run in stages}
    for run in trace.deep:
        if places.get(run.name) is None:
            places[run.name] = _place(run, row, listed=False)
    rank = rank_in(trace.candidates, 0, row)
    read = [] if rank is None else [chunk for chunk in trace.passages[0][rank - 1].tolist() if chunk != PAD]
    title, text = corpus.titles[row], corpus.texts[row]
    asked = tuple(dict.fromkeys(terms(trace.question)))
    texts = [passage_text(title, chunks.text(corpus, chunk)) for chunk in read]
    passages = tuple(marked(passage, asked, characters_read(passage)) for passage in texts)
    on_page = set(terms(passage_text(title, text)))
    seen = {term for passage in passages for term in terms(passage.text[: passage.read])}
    return PageTrace(
        corpus.doc_ids[row],
        title_of(title, text),
        places,
        passages,
        tuple(term for term in asked if term not in on_page),
        tuple(term for term in asked if term in on_page and term not in seen) if passages else (),
    )


def marked(text: str, wanted: Sequence[str], read: int) -> Passage:
    """A passage with the words marked whose stems are ``wanted``, among the first ``read`` characters."""
    spans = spans_of_terms(text[:read], frozenset(wanted))
    words = dict.fromkeys(text[start:end].casefold() for start, end in spans)
    return Passage(text, read, tuple(spans), tuple(words))


def _right_page(trace: Trace, corpus: Corpus, doc_id: str, page_of: Callable[[int], PageTrace]) -> RightPage:
    row = corpus.row_of.get(doc_id)
    if row is None:
        return RightPage(doc_id, "not in the corpus", f"{MEANING['not in the corpus']} ({len(corpus):,} pages)", None)
    page = page_of(row)
    if not corpus.titles[row] and not corpus.texts[row]:
        return RightPage(doc_id, "empty page", MEANING["empty page"], page)
    indices = [rank_in(run, 0, row) for run in trace.indices]
    fused, candidate, final = (rank_in(run, 0, row) for run in (trace.fused, trace.candidates, trace.final))
    depth = trace.candidates.depth
    lost = where_lost(indices, fused, candidate, final, depth, trace.top_k)
    return RightPage(doc_id, lost, f"{MEANING[lost]}: {_ranks(trace, page, lost)}", page)


def _ranks(trace: Trace, page: PageTrace, lost: Lost) -> str:
    """The ranks that prove where a page was lost."""
    depth = trace.candidates.depth
    if lost in {"stage one", "fusion"}:
        best = [f"{run.name} {_rank(page.places[run.name])}" for run in trace.indices]
        return f"no rank in the {depth} candidates; {', '.join(best)}"
    before = page.places.get(STAGE_ONE, page.places[FUSION])
    fused, last = _rank(page.places[FUSION]), page.places.get(BLEND, before)
    if lost == "late interaction":
        return f"rank {fused} after the fusion -> {_rank(before)} with late interaction -> {_rank(last)} in the end"
    if trace.pair_scores is None:
        return f"rank {_rank(before)} of stage one, reranking off"
    alone = _rank(page.places[CROSS_ENCODER])
    return f"rank {_rank(before)} -> {_rank(last)} (cross-encoder alone: {alone})"


def _rank(place: Place | None) -> str:
    return "not found" if place is None else str(place.rank)
