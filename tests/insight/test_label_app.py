import asyncio
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from src.core.errors import UserError
from src.core.types import Corpus, Queries
from src.insight.label_app import LabelApp, run_in_terminal
from src.insight.printable import printable
from src.quality.labels import LabelStore, Page, Task

LONG = "word " * 200 + "the end"
PAGES = (
    Page("a", "[bold]Title[/bold] [/x]", "[red]not red[/] [link=http://x]y[/link] [@click=app.quit]z"),
    Page("b", "", ""),
    Page("c", "Long", LONG),
)
MANY = tuple(Page(f"d{i:02}", f"Page {i}", "text") for i in range(12))
TASKS = (
    Task("q0", "what is [/x] and [bold]?", PAGES),
    Task("q1", "second", PAGES[:2]),
    Task("q2", "many", MANY),
    Task("q3", "nothing found", ()),
)
DOC_IDS = ("a", "b", "c", *(page.doc_id for page in MANY))
CORPUS = Corpus(DOC_IDS, ("",) * len(DOC_IDS), ("x",) * len(DOC_IDS))
QUERIES = Queries(tuple(task.query_id for task in TASKS), tuple(task.question for task in TASKS))


def open_store(folder: Path) -> LabelStore:
    columns = {"query_id": "q_id", "doc_id": "web_id"}
    return LabelStore.open(folder / "qrels.csv", folder / "labels-none.csv", columns, QUERIES, CORPUS)


def shown(app: LabelApp, selector: str) -> list[str]:
    return [str(widget.render()) for widget in app.query(selector).results(Static)]


def make_app(folder: Path, tasks: tuple[Task, ...] = TASKS) -> LabelApp:
    store = open_store(folder)
    return LabelApp(
        [t for t in tasks if t.query_id not in store.answered], store, lambda: f"{len(store.answered)} done"
    )


def press(folder: Path, *keys: str) -> tuple[LabelApp, dict[str, list[str]]]:
    """Press keys in a new session; what is on the screen after the last one."""

    async def drive() -> tuple[LabelApp, dict[str, list[str]]]:
        app = make_app(folder)
        async with app.run_test(size=(100, 40)) as pilot:
            await _press(pilot, keys)
            if not app.is_running:
                return app, {}
            names = ("#place", "#question", ".page", "#message", "#progress", ".cursor", ".ticked")
            return app, {name: shown(app, name) for name in names}

    return asyncio.run(drive())


async def _press(pilot: Pilot[None], keys: tuple[str, ...]) -> None:
    for key in keys:
        await pilot.press(key)
    await pilot.pause()


def labels(folder: Path) -> str:
    return (folder / "qrels.csv").read_text(encoding="utf-8")


def test_user_text_is_shown_as_it_stands(tmp_path: Path) -> None:
    _, screen = press(tmp_path)
    assert screen["#question"] == ["what is [/x] and [bold]?"]
    assert screen[".page"][0] == (
        "[ ] 1. [bold]Title[/bold] [/x]\n[red]not red[/] [link=http://x]y[/link] [@click=app.quit]z"
    )
    assert screen[".page"][1] == "[ ] 2. (no title)\n(no text)"
    assert screen["#place"] == ["Question 1 of 4, 3 pages"]


def test_the_drawn_screen_holds_the_brackets(tmp_path: Path) -> None:
    async def drive() -> str:
        app = make_app(tmp_path)
        async with app.run_test(size=(100, 40)) as pilot:
            await pilot.pause()
            return "\n".join(
                "".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()
            )

    drawn = asyncio.run(drive())
    assert "what is [/x] and [bold]?" in drawn
    assert "[ ] 1. [bold]Title[/bold] [/x]" in drawn


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\tc\nd\x7f\x9b\x00é") == "a␛[31mb\tc\nd␡\ufffd␀é"


def test_enter_saves_at_once(tmp_path: Path) -> None:
    _, screen = press(tmp_path, "space", "down", "j", "space", "k", "3", "3", "enter")
    assert labels(tmp_path) == "q_id,web_id\nq0,a\nq0,c\n"
    assert screen["#question"] == ["second"]
    assert screen["#progress"] == ["1 done"]
    assert screen[".ticked"] == []


def test_the_cursor_stays_inside(tmp_path: Path) -> None:
    _, screen = press(tmp_path, "up", "down", "down", "down", "down", "space")
    assert [text.splitlines()[0] for text in screen[".cursor"]] == ["[x] 3. Long"]
    assert screen[".ticked"] == screen[".cursor"]


def test_digits_reach_ten_pages_and_the_cursor_the_rest(tmp_path: Path) -> None:
    press(tmp_path, "s", "s", "1", "0", *["down"] * 11, "space", "enter")
    assert labels(tmp_path) == "q_id,web_id\nq2,d00\nq2,d09\nq2,d11\n"


def test_enter_without_a_tick_saves_nothing(tmp_path: Path) -> None:
    _, screen = press(tmp_path, "9", "enter")
    assert screen["#place"] == ["Question 1 of 4, 3 pages"]
    assert screen["#message"][0].startswith("No page is ticked. n: none of these")
    assert list(tmp_path.iterdir()) == []


def test_none_of_these_and_skip(tmp_path: Path) -> None:
    press(tmp_path, "1", "n", "2", "s")
    assert [path.name for path in tmp_path.iterdir()] == ["labels-none.csv"]
    assert (tmp_path / "labels-none.csv").read_text() == "q_id\nq0\n"


def test_a_question_without_pages(tmp_path: Path) -> None:
    press(tmp_path, "s", "s", "s", "space", "down", "w", "1", "enter", "n")
    assert (tmp_path / "labels-none.csv").read_text() == "q_id\nq3\n"


def test_the_whole_text(tmp_path: Path) -> None:
    _, before = press(tmp_path)
    assert before[".page"][2] == f"[ ] 3. Long\n{LONG[:500]}… (w: whole text, 1,007 characters)"
    _, after = press(tmp_path, "down", "down", "w", "pagedown", "pageup")
    assert after[".page"][2] == f"[ ] 3. Long\n{LONG}"
    _, again = press(tmp_path, "down", "down", "w", "w")
    assert again[".page"] == before[".page"]


def test_back_corrects_an_answer(tmp_path: Path) -> None:
    _, screen = press(tmp_path, "1", "enter", "2", "b")
    assert screen["#place"] == ["Question 1 of 4, 3 pages (saved: 1 relevant)"]
    assert [text[:6] for text in screen[".ticked"]] == ["[x] 1."]
    (tmp_path / "qrels.csv").unlink()
    # Ticks that were not saved are still there after going back and on; an answer is replaced, not added to.
    press(tmp_path, "1", "enter", "2", "b", "b", "1", "2", "enter", "enter")
    assert labels(tmp_path) == "q_id,web_id\nq0,b\nq1,b\n"


def test_back_from_none_and_skip_keeps_what_was_saved(tmp_path: Path) -> None:
    _, screen = press(tmp_path, "n", "b")
    assert screen["#place"] == ["Question 1 of 4, 3 pages (saved: none of these)"]
    (tmp_path / "labels-none.csv").unlink()
    press(tmp_path, "1", "enter", "b", "2", "s", "b", "s")
    assert labels(tmp_path) == "q_id,web_id\nq0,a\n"


def test_a_second_session_asks_the_rest(tmp_path: Path) -> None:
    app, _ = press(tmp_path, "1", "enter", "n", "q")
    assert app.failure is None
    assert app.return_code == 0
    _, screen = press(tmp_path)
    assert screen["#question"] == ["many"]
    assert screen["#place"] == ["Question 1 of 2, 12 pages"]
    press(tmp_path, "4", "enter", "q")
    assert labels(tmp_path) == "q_id,web_id\nq0,a\nq2,d03\n"


def test_after_the_last_question(tmp_path: Path) -> None:
    keys = ("1", "enter", "1", "enter", "1", "enter", "n")
    _, screen = press(tmp_path, *keys, "space", "down", "w", "n", "s")
    assert screen["#place"] == ["All 4 questions of this session are done."]
    assert screen[".page"] == []
    for name in ("qrels.csv", "labels-none.csv"):
        (tmp_path / name).unlink()
    _, screen = press(tmp_path, *keys, "b")
    assert screen["#question"] == ["nothing found"]
    for name in ("qrels.csv", "labels-none.csv"):
        (tmp_path / name).unlink()
    app, _ = press(tmp_path, *keys, "enter")
    assert app.return_code == 0


def test_an_answer_that_cannot_be_kept_stops_the_app(tmp_path: Path) -> None:
    async def drive() -> LabelApp:
        app = make_app(tmp_path)
        async with app.run_test() as pilot:
            (tmp_path / "qrels.csv").write_text("q_id,web_id\nq3,a\n")
            await _press(pilot, ("1", "enter"))
        return app

    app = asyncio.run(drive())
    assert isinstance(app.failure, UserError)
    assert "changed by another program" in str(app.failure)
    assert labels(tmp_path) == "q_id,web_id\nq3,a\n"


def test_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "answers.txt").open("w+") as handle:
        monkeypatch.setattr("sys.__stdin__", handle)
        with pytest.raises(UserError, match="standard input is not a terminal"):
            run_in_terminal(make_app(tmp_path / "raw"))
