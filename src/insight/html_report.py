"""The report of a run: one HTML file that needs nothing beside itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.core.artifacts import atomic_path
from src.core.text import terms
from src.core.types import PAD, Chunks, Corpus, Qrels, Queries, Rows, Run, passage_text
from src.insight.explain import marked
from src.insight.losses import MEANING, ORDER, rank_in
from src.insight.printable import one_line, printable, title_of
from src.insight.report_plots import origins, rank_moves, recall_curve
from src.insight.run_facts import Measured, furthest, hits_of, measure, moved, places_of, worst
from src.quality.statistics import Interval

TEMPLATE = Path(__file__).with_name("report.html.j2")
NAME = "report.html"
MOST_LOSSES = 20
MOST_MOVES = 50
MOST_QUESTIONS = 20
_QUESTION, _TITLE, _PASSAGE = 300, 100, 900


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report tells of a run.

    Attributes:
        name: of the run, such as ``rerank-on``.
        created: when, for people.
        no_labels: why nothing was measured, where that is so.
        indices: the run of each index.
        fused: the candidates in the order of the fusion.
        before: the candidates in stage one's final order, [Q, K].
        after: the final run.
        passages: int32 [Q, K, m], chunks that were read of each candidate of ``before``; -1 pads.
        metrics_before, metrics_after: name -> mean; ``None`` without labels.
        reranked: whether a cross-encoder had a say.
        lines: what ran, in words.
        notes: fitted weights and the like, in words.
        warnings: to stand above everything else.
        models: records of the models, as in the manifests.
        settings: constant -> value.
        profile: times and memory per stage, as :meth:`src.insight.profile.Profiler.record` gives them.
    """

    name: str
    created: str
    corpus: Corpus
    chunks: Chunks
    queries: Queries
    qrels: Qrels | None
    no_labels: str
    indices: tuple[Run, ...]
    fused: Run
    before: Run
    after: Run
    passages: Rows
    metrics_before: Mapping[str, float] | None
    metrics_after: Mapping[str, float] | None
    reranked: bool
    lines: Sequence[str]
    notes: Sequence[str]
    warnings: Sequence[str]
    models: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    profile: Mapping[str, Any]

    @cached_property
    def facts(self) -> Measured | None:
        """What labels show; ``None`` without any."""
        if self.qrels is None:
            return None
        return measure(self.indices, self.fused, self.before, self.after, self.corpus, self.queries, self.qrels)


def write_report(folder: Path, record: RunRecord) -> Path:
    """Write ``report.html`` into a folder, atomically; returns its path."""
    path = folder / NAME
    with atomic_path(path) as temporary:
        temporary.write_text(render(record), encoding="utf-8")
    return path


def render(record: RunRecord) -> str:
    """The report as HTML; all text of users is escaped by the template engine."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(TEMPLATE.name).render(
        run=record,
        warnings=[printable(warning) for warning in record.warnings],
        measured=None if record.facts is None else _measured(record, record.facts),
        moved=_moved(record),
        times=_times(record.profile),
        models=record.models,
        settings=[(name, str(value)) for name, value in record.settings.items()],
        K=record.before.depth,
    )


def _measured(record: RunRecord, facts: Measured) -> dict[str, Any]:
    counts = {lost: facts.lost.count(lost) for lost in ORDER}
    assert record.metrics_before is not None
    assert record.metrics_after is not None
    return {
        "questions": len(facts.rows),
        "hit": _figure(facts.hit),
        "before": float(hits_of(facts.before).mean()),
        "change": _points(facts.change),
        "shown": facts.change.shown,
        "p": facts.p,
        "ceiling": facts.ceiling,
        "curve": recall_curve(facts.before, facts.after if record.reranked else None, record.before.depth),
        "moves": rank_moves(facts.before, facts.after, record.before.depth) if record.reranked else None,
        "counts": {
            "up": int((_low(facts.after) < _low(facts.before)).sum()),
            "down": int((_low(facts.after) > _low(facts.before)).sum()),
            "won": int((hits_of(facts.after) > hits_of(facts.before)).sum()),
            "lost": int((hits_of(facts.after) < hits_of(facts.before)).sum()),
            "absent": int((facts.before == 0).sum()),
        },
        "lost": [(MEANING[lost], count, count / len(facts.lost)) for lost, count in counts.items() if count],
        "groups": [
            (title, [_group(group) for group in groups])
            for title, groups in (("question length in words", facts.lengths), ("language", facts.languages))
        ],
        "metrics": [(name, record.metrics_before[name], mean) for name, mean in record.metrics_after.items()],
        "losses": [_loss(record, facts, place) for place in worst(facts, MOST_LOSSES)],
        "misses": len(facts.lost) - counts["found"],
        "far": [_move(record, facts, place) for place in furthest(facts, MOST_MOVES)] if record.reranked else [],
    }


def _low(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks == 0, np.iinfo(np.int64).max, ranks)


def _figure(value: Interval) -> dict[str, Any]:
    # Resampling equal values gives an interval of width 0, which says nothing.
    return {"mean": value.mean, "low": value.low, "high": value.high, "known": value.low < value.high}


def _points(value: Interval) -> dict[str, Any]:
    return _figure(Interval(100 * value.mean, 100 * value.low, 100 * value.high))


def _group(group: Any) -> dict[str, Any]:
    return {
        "name": group.name, "questions": group.questions, "before": group.before.mean, "after": _figure(group.after),
    }  # fmt: skip


def _loss(record: RunRecord, facts: Measured, place: int) -> dict[str, Any]:
    """A question without a right page in the first five: the right page that came furthest, and what stands first."""
    assert record.qrels is not None
    row = int(facts.rows[place])
    query_id, question = record.queries.query_ids[row], record.queries.texts[row]
    right = sorted(record.corpus.row_of[doc_id] for doc_id in record.qrels.relevant[query_id])
    listed = {page: rank_in(record.before, row, page) for page in right}
    best = min(right, key=lambda page: listed[page] or np.inf)
    first = int(record.after.doc_rows[places_of(record.after, [query_id])[0], 0])
    return {
        "id": one_line(query_id, _TITLE),
        "question": one_line(question, _QUESTION),
        "lost": MEANING[facts.lost[place]],
        "before": _rank(facts.before[place]),
        "after": _rank(facts.after[place]),
        "right": _page(record, row, question, best),
        "others": len(right) - 1,
        "first": None if first == PAD else _page(record, row, question, first),
    }


def _move(record: RunRecord, facts: Measured, place: int) -> dict[str, Any]:
    row = int(facts.rows[place])
    return {
        "id": one_line(record.queries.query_ids[row], _TITLE),
        "question": one_line(record.queries.texts[row], _QUESTION),
        "before": _rank(facts.before[place]),
        "after": _rank(facts.after[place]),
        "up": bool(_low(facts.after)[place] < _low(facts.before)[place]),
    }


def _rank(rank: Any) -> str:
    return str(rank) if rank else "not among the candidates"


def _page(record: RunRecord, question_row: int, question: str, row: int) -> dict[str, Any]:
    """A page with the passage of it that was read, or its beginning where nothing was."""
    corpus = record.corpus
    rank = rank_in(record.before, question_row, row)
    chunk = PAD if rank is None else int(record.passages[question_row, rank - 1, 0])
    title, text = corpus.titles[row], corpus.texts[row] if chunk == PAD else record.chunks.text(corpus, chunk)
    passage = passage_text(title, text)
    return {
        "id": one_line(corpus.doc_ids[row], _TITLE),
        "title": title_of(title, corpus.texts[row], _TITLE),
        "read": chunk != PAD,
        "parts": _parts(passage, question),
    }


def _parts(passage: str, question: str) -> list[tuple[str, bool]]:
    """The passage in pieces, (text, whether it is a word of the question); cut where it is very long."""
    cut = passage if len(passage) <= _PASSAGE else passage[: passage.rfind(" ", 0, _PASSAGE)] + " …"
    parts, at = [], 0
    for start, end in marked(cut, terms(question), len(cut)).marks:
        parts += [(printable(cut[at:start]), False), (printable(cut[start:end]), True)]
        at = end
    return [*parts, (printable(cut[at:]), False)]


def _moved(record: RunRecord) -> dict[str, Any]:
    """What can be said of any run: how far the pages moved, and which questions were decided by little."""
    found = moved(record.before, record.after)
    order = np.lexsort((np.arange(len(found.new)), found.gap, -found.new))[:MOST_QUESTIONS]
    return {
        "picture": origins(found.origins) if record.reranked else None,
        "first_changed": found.first_changed,
        "kept": found.kept,
        "questions": [_changed(record, int(row), found.new[row], found.gap[row]) for row in order.tolist()],
    }


def _changed(record: RunRecord, row: int, new: Any, gap: Any) -> dict[str, Any]:
    corpus = record.corpus

    def first(run: Run) -> str:
        page = int(run.doc_rows[row, 0])
        return (
            "-"
            if page == PAD
            else f"{one_line(corpus.doc_ids[page])} {title_of(corpus.titles[page], corpus.texts[page], _TITLE)}"
        )

    return {
        "id": one_line(record.queries.query_ids[row], _TITLE),
        "question": one_line(record.queries.texts[row], _QUESTION),
        "before": first(record.before),
        "after": first(record.after),
        "new": int(new),
        "gap": f"{gap:.3f}" if np.isfinite(gap) else "-",
    }


def _times(profile: Mapping[str, Any]) -> dict[str, Any]:
    total = max(float(profile["total_seconds"]), 1e-9)
    stages = [
        {
            "name": stage["name"],
            "seconds": stage["seconds"],
            "share": stage["seconds"] / total,
            "rate": f"{stage['items'] / stage['seconds']:,.1f} {stage['unit']}/s"
            if stage["items"] and stage["seconds"] > 0
            else "-",
            "peak": stage["peak_mib"],
            "gpu": stage["gpu_peak_mib"],
        }
        for stage in profile["stages"]
    ]
    other = total - sum(stage["seconds"] for stage in stages)
    return {
        "stages": stages, "other": other, "other_share": other / total, "total": total,
        "gpu": any(stage["gpu"] > 0 for stage in stages),
    }  # fmt: skip
