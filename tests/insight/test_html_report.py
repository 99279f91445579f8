import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from src.core.types import PAD, Chunks, Corpus, Qrels, Queries, Run
from src.insight.html_report import MOST_LOSSES, RunRecord, render, write_report
from src.quality.evaluate import evaluate

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SCRIPT = "<script>document.title='run';alert(1)</script>"
WARNING = "cross-encoder 'a' could not be had; 'b' stands in for it"
MEASURE = """
onload = () => {
    const inner = document.getElementById("f").contentDocument, images = [...inner.images];
    const drawn = images.filter(image => image.naturalWidth > 0);
    document.title = [inner.documentElement.scrollWidth, images.length, drawn.length].join(" ");
};
"""
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--window-size=390,800",
]  # fmt: skip


def means_of(runs: tuple[Run, ...], corpus: Corpus, qrels: Qrels | None) -> list[Mapping[str, float] | None]:
    if qrels is not None and len(qrels) > 100:
        return [{"Hit@5": 0.5}, {"Hit@5": 0.5}]  # slow, and no matter where size is looked at
    found = [None if qrels is None else evaluate(run, corpus, qrels) for run in runs]
    return [None if item is None else item.metrics for item in found]


def make(questions: int = 12, documents: int = 40, depth: int = 20, labelled: bool = True, seed: int = 1) -> RunRecord:
    """A run with lists drawn at random; question 0 and its right page hold a script."""
    draw = np.random.default_rng(seed)
    titles = [f"Карта {i}" for i in range(documents)]
    texts = [f"Снятие наличных с карты {i}. {SCRIPT if i == 3 else ''}" for i in range(documents)]
    titles[3] = f"Тариф {SCRIPT}"
    ids = tuple(f"{i:05}" for i in range(documents))
    corpus = Corpus(ids, tuple(titles), tuple(texts))
    asked = [f"как снять наличные с карты номер {i} " + "в банке " * (i % 7) for i in range(questions)]
    asked[0] = f"какой тариф {SCRIPT} \"'><b>"
    queries = Queries(tuple(f"q{i}<i>" for i in range(questions)), tuple(asked))
    rows = np.stack([draw.permutation(documents)[:depth] for _ in range(questions)]).astype(np.int32)
    scores = np.broadcast_to(np.arange(depth, 0, -1, dtype=np.float32), rows.shape).copy()
    before = Run("fused", queries.query_ids, rows, scores, corpus.fingerprint)
    order = np.argsort(np.arange(depth) + draw.normal(0, 4, rows.shape), axis=1)
    after = Run("rerank-on", queries.query_ids, np.take_along_axis(rows, order, axis=1), scores, corpus.fingerprint)
    labels = {query_id: frozenset([ids[int(draw.integers(documents))]]) for query_id in queries.query_ids}
    labels[queries.query_ids[0]] = frozenset([ids[3]])
    qrels = Qrels(labels) if labelled else None
    means = means_of((before, after), corpus, qrels)
    starts = np.zeros(documents, dtype=np.int32)
    chunks = Chunks(np.arange(documents, dtype=np.int32), starts, np.array([len(t) for t in texts], dtype=np.int32))
    stage = {"name": "rerank", "seconds": 3.0, "items": 240, "unit": "pairs", "peak_mib": 512.0, "gpu_peak_mib": 0.0}
    return RunRecord(
        name="rerank-on", created="today", corpus=corpus, chunks=chunks, queries=queries, qrels=qrels,
        no_labels=f"data/raw/{SCRIPT}.csv", indices=(before,), fused=before, before=before, after=after,
        passages=rows[:, :, None], metrics_before=means[0], metrics_after=means[1],
        reranked=True, lines=["Fusion: rrf"], notes=[], warnings=[f"{WARNING} {SCRIPT}"],
        models=[{"used": "b", "role": "cross-encoder", "requested": "a", "source": "embedded", "revision": SCRIPT}],
        settings={"TOP_K": 5, "ENCODERS": [{"model": SCRIPT}]}, profile={"total_seconds": 4.0, "stages": [stage]},
    )  # fmt: skip


class Page(HTMLParser):
    """Elements and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_headline_and_warning() -> None:
    record = make()
    page = Page(render(record))
    assert record.metrics_after is not None
    assert re.search(
        rf"Hit@5\s+{record.metrics_after['Hit@5']:.4f}\s+95 % interval \[0\.\d{{4}}, \d\.\d{{4}}\]", page.text
    )
    assert page.text.index("WARNING: " + WARNING) < page.text.index("95 % interval")
    assert "bootstrap over 12 labelled questions" in page.text
    assert "rerank" in page.text
    assert "80.0 pairs/s" in page.text


def test_nothing_of_the_users_becomes_markup() -> None:
    page = Page(render(make()))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "b>", "i>", "iframe", "object"}
    assert page.text.count(SCRIPT) >= 5
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]


def test_it_needs_nothing_beside_itself() -> None:
    html = render(make())
    for tag, attributes in Page(html).tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, value)
    assert "url(" not in html
    assert "@import" not in html
    images = [attributes for tag, attributes in Page(html).tags if tag == "img"]
    assert len(images) == 3
    assert all(attributes["alt"] for attributes in images)


def test_words_of_the_question_are_marked_in_the_passage() -> None:
    html = render(make())
    assert "<mark>Снятие</mark> <mark>наличных</mark> <mark>с</mark> <mark>карты</mark>" in html


def test_without_labels_nothing_is_measured() -> None:
    page = Page(render(make(labelled=False)))
    assert re.search(r"Hit@5\s+not measured", page.text)
    assert "interval" not in page.text
    assert "of all questions have another first page" in page.text
    assert "rerank" in page.text


def test_reranking_off() -> None:
    record = make()
    page = Page(render(replace(record, after=record.before, reranked=False)))
    assert "Reranking was off" in page.text
    assert "Before and after reranking" not in page.text


def test_one_labelled_question_has_no_interval() -> None:
    record = make()
    assert record.qrels is not None
    one = Qrels({"q1<i>": record.qrels.relevant["q1<i>"]})
    means = means_of((record.before, record.after), record.corpus, one)
    page = Page(
        render(
            replace(
                record,
                qrels=one,
                metrics_before=means[0],
                metrics_after=means[1],
            )
        )
    )
    assert "No 95 % interval: it needs both hits and misses. 1 labelled question." in page.text


def test_lists_with_holes() -> None:
    record = make()
    rows, scores = record.before.doc_rows.copy(), record.before.scores.copy()
    rows[0, 0:], scores[0, 0:] = PAD, 0
    rows[1, 3:], scores[1, 3:] = PAD, 0
    holes = Run("fused", record.before.query_ids, rows, scores, record.before.corpus_fingerprint)
    page = Page(
        render(
            replace(
                record,
                indices=(holes,),
                fused=holes,
                before=holes,
                after=holes,
                passages=np.full((12, 20, 1), PAD, dtype=np.int32),
            )
        )
    )
    assert "Not read by any model: no candidate. It begins:" in page.text


def test_many_questions_stay_small_and_quick(tmp_path: Path) -> None:
    import time

    record = make(questions=7000, documents=500, depth=30)
    begin = time.perf_counter()
    path = write_report(tmp_path / "results" / "rerank-on", record)
    seconds = time.perf_counter() - begin
    assert path.stat().st_size < 2_000_000
    assert seconds < 20
    assert path.read_text(encoding="utf-8").count('class="loss"') == MOST_LOSSES
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_report(tmp_path, make())
    before = path.read_bytes()
    with pytest.raises(KeyError):
        write_report(tmp_path, replace(make(), profile={}))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def browse(page: Path, *more: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={page.parent / 'profile'}", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(tmp_path: Path) -> None:
    path = write_report(tmp_path, make())
    done = browse(path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    loud = tmp_path / "loud.html"
    loud.write_text("<script>console.error('heard')</script>", encoding="utf-8")
    assert "CONSOLE" in browse(loud, "--dump-dom").stderr  # so its absence says something
    assert "<title>Report: rerank-on</title>" in done.stdout
    assert "<script" not in done.stdout
    # No wider than a phone: tables scroll in boxes of their own. A page of the test's own measures the report.
    html = path.read_text(encoding="utf-8").replace("<details>", "<details open>")
    frame = f'<iframe id="f" style="width:390px;height:800px;border:0" srcdoc="{escape(html)}"></iframe>'
    outer = tmp_path / "outer.html"
    outer.write_text(f"<title>-</title>{frame}<script>{MEASURE}</script>", encoding="utf-8")
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", browse(outer, "--dump-dom").stdout)
    assert found is not None
    assert int(found[1]) <= 390
    assert found[2] == found[3] == "3"
