"""Labels by hand: which questions to ask first, which pages to show, where the answers are kept."""

import csv
import io
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from src.core.artifacts import atomic_path
from src.core.errors import UserError
from src.core.types import PAD, Corpus, Qrels, Queries, Run
from src.quality.compare import first_relevant_ranks
from src.quality.statistics import Values, bootstrap_mean
from src.stages.preprocess import decode, parse_id_list, read_qrels, read_table

TOP = 5
MAIN_RUNS = ("rerank-on", "rerank-off")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Page:
    """A page to judge: nothing of it says which run found it, or where."""

    doc_id: str
    title: str
    text: str


@dataclass(frozen=True)
class Task:
    """A question to label.

    Attributes:
        pages: distinct pages, in the order in which they are shown; empty where no run found any.
    """

    query_id: str
    question: str
    pages: tuple[Page, ...]


def pooled(runs: Sequence[Run], place: int, depth: int) -> tuple[int, ...]:
    """Rows of the documents among the first ``depth`` of any run for the question at ``place``, ascending."""
    found = {int(row) for run in runs for row in run.doc_rows[place, :depth] if row != PAD}
    return tuple(sorted(found))


def disagreement(runs: Sequence[Run]) -> Values:
    """How far the runs differ on each question: 1 - the mean overlap of the top 5 over all pairs of runs.

    The overlap of two lists is the number of common documents over the length of the longer one; that of two empty
    lists is 1.

    Args:
        runs: at least one, over the same Q questions.

    Returns:
        float64 [Q] in [0, 1]; 0 where there is one run alone.
    """
    tops = [[frozenset(row for row in rows if row != PAD) for rows in run.cut(TOP).doc_rows.tolist()] for run in runs]
    values = np.zeros(len(runs[0].query_ids))
    for place in range(len(values)):
        overlaps = [
            len(a & b) / max(len(a), len(b)) if a or b else 1.0 for a, b in combinations([t[place] for t in tops], 2)
        ]
        if overlaps:
            values[place] = 1 - sum(overlaps) / len(overlaps)
    return values


def choose_questions(
    query_ids: Sequence[str], answered: Collection[str], count: int, scores: Values | None, seed: int = 0
) -> tuple[int, ...]:
    """Places of the questions to ask, in the order in which they are asked.

    Args:
        query_ids: Q ids.
        answered: ids that are left out.
        count: at most so many.
        scores: float64 [Q]: the highest come first, ties in the order of the questions. ``None``: a random sample.
        seed: of the random sample.
    """
    if scores is None:
        # All questions are shuffled, answered or not: a resumed session goes on with the same sample.
        order = list(range(len(query_ids)))
        random.Random(f"sample {seed}").shuffle(order)
    else:
        order = np.lexsort((np.arange(len(query_ids)), -scores)).tolist()
    return tuple([place for place in order if query_ids[place] not in answered][:count])


def make_task(runs: Sequence[Run], corpus: Corpus, queries: Queries, place: int, depth: int) -> Task:
    """The question at ``place`` with its pooled pages, shuffled by a seed that is the question's id."""
    rows = list(pooled(runs, place, depth))
    random.Random(queries.query_ids[place]).shuffle(rows)
    pages = tuple(Page(corpus.doc_ids[row], corpus.titles[row], corpus.texts[row]) for row in rows)
    return Task(queries.query_ids[place], queries.texts[place], pages)


def main_run(runs: Sequence[Run]) -> Run:
    """The run that the progress line speaks of: ``rerank-on``, else ``rerank-off``, else the first."""
    by_name = {run.name: run for run in reversed(runs)}
    return next((by_name[name] for name in MAIN_RUNS if name in by_name), runs[0])


def progress_line(run: Run, corpus: Corpus, relevant: Mapping[str, frozenset[str]], none: Collection[str]) -> str:
    """How many labels there are, and how wide the 95 % interval of Hit@5 still is.

    Args:
        relevant: question id -> ids of its relevant documents; other questions than the run's are not counted.
        none: ids of the questions with the answer "none of these": counted apart, and not measured.
    """
    known = set(run.query_ids)
    qrels = Qrels({query_id: docs for query_id, docs in relevant.items() if query_id in known})
    pairs = sum(map(len, qrels.relevant.values()))
    skipped = len((set(none) & known) - set(qrels.relevant))
    line = f"Labelled: {len(qrels):,} questions, {pairs:,} relevant pages; none of these: {skipped:,} (not measured). "
    if not qrels:
        return line + f"Hit@5 of {run.name}: nothing to measure yet."
    ranks = first_relevant_ranks(run, corpus, qrels)
    hits = ((ranks > 0) & (ranks <= TOP)).astype(np.float64)
    found = bootstrap_mean(hits)
    line += f"Hit@5 of {run.name}: {found.mean:.2f}, "
    if found.low == found.high:
        # Resampling equal values gives an interval of width 0, which says nothing about the questions not asked.
        return line + "no 95 % interval yet: it needs both hits and misses."
    width = 100 * (found.high - found.low)
    return line + f"95 % interval [{found.low:.2f}, {found.high:.2f}], {width:.0f} points wide."


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _line(cells: Sequence[str], end: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerow(cells)
    return out.getvalue()


def _cell(path: Path, doc_id: str) -> str:
    """A document id as the reader of labels takes it: one in brackets would be read as a list."""
    cell = f'["{doc_id}"]' if doc_id.startswith("[") and doc_id.endswith("]") else doc_id
    if parse_id_list(cell) != [doc_id]:
        raise UserError(
            f"{path}: document id {doc_id!r} reads as a list of ids and cannot be written as a label. Rename it "
            "in the corpus."
        )
    return cell


@dataclass
class LabelStore:
    """The labels file and, beside it, the questions none of whose pages is relevant. Made by :meth:`open`.

    Rows that were there before stay as they are, byte for byte (a Windows-1251 file becomes UTF-8). Every answer is
    written at once, both files atomically.

    Attributes:
        path, none_path: the two files; neither need exist.
        columns: ``query_id`` and ``doc_id`` -> column names.
        relevant: question id -> ids of its relevant documents, earlier ones and those of this session.
        none: ids of the questions with the answer "none of these", earlier ones and those of this session.
        session: answers of this session; an empty set is "none of these".
    """

    path: Path
    none_path: Path
    columns: Mapping[str, str]
    relevant: dict[str, frozenset[str]] = field(default_factory=dict)
    none: set[str] = field(default_factory=set)
    session: dict[str, frozenset[str]] = field(default_factory=dict)
    _kept: str = ""
    _kept_none: tuple[str, ...] = ()
    _on_disk: dict[Path, bytes | None] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: Path,
        none_path: Path,
        columns: Mapping[str, str],
        queries: Queries,
        corpus: Corpus,
        earlier: Qrels | None = None,
    ) -> "LabelStore":
        """Read what is there.

        Args:
            queries, corpus: all that labels may speak of.
            earlier: labels kept elsewhere; where there is no labels file yet, the new one begins with them, so that
                old and new are measured together.

        Raises:
            UserError: where a file cannot be read, or names a question or document that does not exist.
        """
        store = cls(path, none_path, columns)
        if path.is_file():
            store.relevant = dict(read_qrels(path, columns, queries, corpus).relevant)
            store._kept = decode(path)
        elif earlier is not None:
            store.relevant = dict(earlier.relevant)
            store._kept = "".join(_line(row, "\n") for row in (store._names, *store._pairs(earlier.relevant)))
        if none_path.is_file():
            column = columns["query_id"]
            ids = [value.strip() for value in read_table(none_path, {"query_id": column})["query_id"]]
            known = set(queries.query_ids)
            for row, query_id in enumerate(ids, start=1):
                if query_id not in known:
                    raise UserError(
                        f"{none_path}, row {row}: question {query_id!r} is not among the {len(queries)} questions. "
                        "Remove the row, or give the questions it belongs to (--questions)."
                    )
            store._kept_none = tuple(dict.fromkeys(ids))
            store.none = set(ids)
        store._on_disk = {found: _content(found) for found in (path, none_path)}
        return store

    @property
    def answered(self) -> frozenset[str]:
        """Ids of the questions that need not be asked."""
        return frozenset(self.relevant) | self.none

    def save(self, query_id: str, doc_ids: Collection[str]) -> None:
        """Keep an answer, in place of an earlier one of this session; no documents mean "none of these".

        Raises:
            UserError: where a file was changed by another program since it was read, or cannot be written. What was
                on disk stays.
            ValueError: where the question was answered before this session.
        """
        if query_id in self.answered and query_id not in self.session:
            raise ValueError(f"question {query_id!r} was answered before this session")
        session = {**self.session, query_id: frozenset(doc_ids)}
        labels, none = self._labels_file(session), self._none_file(session)
        for path in (self.path, self.none_path):
            self._require_unchanged(path)
        self._write(self.path, labels)
        self._write(self.none_path, none)
        self.session = session
        self.relevant.pop(query_id, None)
        self.none.discard(query_id)
        if doc_ids:
            self.relevant[query_id] = frozenset(doc_ids)
        else:
            self.none.add(query_id)

    @property
    def _names(self) -> tuple[str, str]:
        return self.columns["query_id"], self.columns["doc_id"]

    def _pairs(self, relevant: Mapping[str, frozenset[str]]) -> list[tuple[str, str]]:
        return [(query_id, _cell(self.path, doc)) for query_id, docs in relevant.items() for doc in sorted(docs)]

    def _labels_file(self, session: Mapping[str, frozenset[str]]) -> bytes | None:
        """Kept text and new rows; ``None`` for no row at all: a header alone is no labels file."""
        names, pairs = self._names, self._pairs(session)
        if not self._kept:
            text = "".join(_line(row, "\n") for row in (names, *pairs))
            return text.encode() if pairs else None
        header = [name.strip() for name in next(row for row in csv.reader(io.StringIO(self._kept)) if row)]
        end = "\r\n" if "\r\n" in self._kept else "\n"
        text = self._kept if self._kept.endswith(("\n", "\r")) or not pairs else self._kept + end
        for pair in pairs:
            filled = dict(zip(names, pair, strict=True))
            text += _line([filled.get(name, "") for name in header], end)
        before = self._on_disk[self.path] or b""
        return (_BOM if before.startswith(_BOM) else b"") + text.encode()

    def _none_file(self, session: Mapping[str, frozenset[str]]) -> bytes | None:
        ids = [*self._kept_none, *(query_id for query_id, docs in session.items() if not docs)]
        return "".join(_line([cell], "\n") for cell in (self.columns["query_id"], *ids)).encode() if ids else None

    def _require_unchanged(self, path: Path) -> None:
        if _content(path) != self._on_disk[path]:
            raise UserError(
                f"{path}: changed by another program while you were labelling; this last answer was not written. "
                "Close the other program and start again: all earlier answers are kept."
            )

    def _write(self, path: Path, data: bytes | None) -> None:
        if data == self._on_disk[path]:
            return
        try:
            if data is None:
                path.unlink()
            else:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}). Free space or mend the permissions, then start again: "
                "all earlier answers are kept."
            ) from error
        self._on_disk[path] = data
