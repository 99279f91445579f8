"""The labelling app: one question after another in the terminal, keyboard only."""

import sys
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from src.core.errors import UserError
from src.insight.printable import printable
from src.quality.labels import LabelStore, Page, Task

PREVIEW = 500
HELP = (
    "up/down or j/k: move   space or 1-9, 0: relevant or not   w: whole text   enter: save, next   n: none of these\n"
    "s: skip   b: back   PgUp/PgDn: scroll   q: quit (every answer is on disk already)"
)


def _page_content(number: int, page: Page, ticked: bool, whole: bool) -> Content:
    text = printable(page.text)
    if not whole and len(text) > PREVIEW:
        text = f"{text[:PREVIEW]}… (w: whole text, {len(text):,} characters)"
    mark = "[x]" if ticked else "[ ]"
    # Content takes strings as they are: brackets in a page are text, not markup.
    return Content.assemble(
        (f"{mark} {number}. {printable(page.title) or '(no title)'}", "bold"), "\n", text or "(no text)"
    )


class LabelApp(App[None]):
    """Asks the tasks in turn and keeps every answer in the store at once.

    Attributes:
        failure: why the app stopped by itself: an answer could not be kept.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #place { color: $text-muted; padding: 0 1; }
    #question { text-style: bold; padding: 0 1; margin-bottom: 1; }
    #pages { height: 1fr; }
    #message { color: $warning; padding: 0 1; }
    #progress { padding: 0 1; }
    #help { color: $text-muted; padding: 0 1; }
    .page { padding: 0 1; margin-bottom: 1; border-left: blank; }
    .cursor { border-left: thick $accent; background: $boost; }
    .ticked { color: $success; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "next page"),
        Binding("up,k", "move(-1)", "previous page"),
        Binding("space", "tick", "relevant or not"),
        *(Binding(str(digit), f"tick({(digit - 1) % 10})", f"page {digit or 10}") for digit in range(10)),
        Binding("w", "whole", "whole text"),
        Binding("enter", "keep", "save"),
        Binding("n", "none", "none of these"),
        Binding("s", "skip", "skip"),
        Binding("b", "previous", "back"),
        Binding("pagedown", "scroll(1)", "scroll down"),
        Binding("pageup", "scroll(-1)", "scroll up"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", priority=True),
    ]

    def __init__(self, tasks: Sequence[Task], store: LabelStore, progress: Callable[[], str]) -> None:
        """Args:
        tasks: the questions, in the order in which they are asked.
        store: takes the answers.
        progress: a line on what has been reached; asked for anew after every answer.
        """
        super().__init__()
        self.tasks = tasks
        self.store = store
        self.failure: UserError | None = None
        self._progress = progress
        self._place = 0
        self._cursor = 0
        self._whole: set[str] = set()
        self._ticks: dict[str, set[str]] = {}

    def compose(self) -> ComposeResult:
        """Place, question, pages, message, progress, keys."""
        yield Static(id="place", markup=False)
        yield Static(id="question", markup=False)
        # Without focus all keys come to the app: up and down move from page to page instead of scrolling.
        yield VerticalScroll(id="pages", can_focus=False)
        yield Static(id="message", markup=False)
        yield Static(self._progress(), id="progress", markup=False)
        yield Static(HELP, id="help", markup=False)

    async def on_mount(self) -> None:
        """Show the first question."""
        await self._show()

    @property
    def _asked(self) -> Task | None:
        return self.tasks[self._place] if self._place < len(self.tasks) else None

    def _ticked(self, task: Task) -> set[str]:
        return self._ticks.setdefault(task.query_id, set(self.store.session.get(task.query_id, ())))

    def _write(self, name: str, text: str) -> None:
        self.query_one(f"#{name}", Static).update(text)

    async def _show(self) -> None:
        """Draw the question at the present place; after the last one, the end."""
        self._cursor = 0
        self._whole.clear()
        pages = self.query_one("#pages", VerticalScroll)
        await pages.remove_children()
        self._write("message", "")
        task = self._asked
        if task is None:
            self._write("place", f"All {len(self.tasks)} questions of this session are done.")
            self._write("question", "b: back to the last question. q or enter: quit.")
            return
        answer = self.store.session.get(task.query_id)
        saved = "" if answer is None else f" (saved: {len(answer)} relevant)" if answer else " (saved: none of these)"
        self._write("place", f"Question {self._place + 1} of {len(self.tasks)}, {len(task.pages)} pages{saved}")
        self._write("question", printable(task.question))
        await pages.mount_all(Static(classes="page", markup=False) for _ in task.pages)
        pages.scroll_home(animate=False)
        for number in range(len(task.pages)):
            self._draw(number)

    def _draw(self, number: int) -> None:
        task = self._asked
        if task is None:
            return
        page = task.pages[number]
        ticked = page.doc_id in self._ticked(task)
        widget = list(self.query(".page").results(Static))[number]
        widget.update(_page_content(number + 1, page, ticked, page.doc_id in self._whole))
        widget.set_class(ticked, "ticked")
        widget.set_class(number == self._cursor, "cursor")

    def action_move(self, step: int) -> None:
        """Go to the next or previous page of the question."""
        task = self._asked
        if task is not None and 0 <= self._cursor + step < len(task.pages):
            self._cursor += step
            self._draw(self._cursor - step)
            self._draw(self._cursor)
            list(self.query(".page"))[self._cursor].scroll_visible(animate=False)

    def action_tick(self, number: int | None = None) -> None:
        """Tick a page or take its tick away; without a number, the page under the cursor."""
        task = self._asked
        number = self._cursor if number is None else number
        if task is not None and number < len(task.pages):
            self._ticked(task).symmetric_difference_update({task.pages[number].doc_id})
            self._write("message", "")
            self._draw(number)

    def action_whole(self) -> None:
        """Show the whole text of the page under the cursor, or its beginning again."""
        task = self._asked
        if task is not None and task.pages:
            self._whole.symmetric_difference_update({task.pages[self._cursor].doc_id})
            self._draw(self._cursor)

    def action_scroll(self, direction: int) -> None:
        """Scroll the pages by a screen."""
        pages = self.query_one("#pages", VerticalScroll)
        pages.scroll_relative(y=direction * max(1, pages.size.height - 1), animate=False)

    async def action_keep(self) -> None:
        """Save the ticked pages and go on."""
        task = self._asked
        if task is None:
            self.exit()
        elif self._ticked(task):
            await self._answer(task)
        else:
            # An empty answer must be meant: enter alone is too easily pressed twice.
            self._write("message", "No page is ticked. n: none of these is relevant. s: skip this question.")

    async def action_none(self) -> None:
        """Save that none of the pages is relevant and go on."""
        task = self._asked
        if task is not None:
            self._ticked(task).clear()
            await self._answer(task)

    async def action_skip(self) -> None:
        """Go on without an answer; one that was saved before stays."""
        task = self._asked
        if task is not None:
            self._ticks.pop(task.query_id, None)
            self._place += 1
            await self._show()

    async def action_previous(self) -> None:
        """Go to the question before."""
        if self._place:
            self._place -= 1
            await self._show()

    async def _answer(self, task: Task) -> None:
        try:
            self.store.save(task.query_id, self._ticked(task))
        except UserError as error:
            self.failure = error
            self.exit()
            return
        self._write("progress", self._progress())
        self._place += 1
        await self._show()


def run_in_terminal(app: LabelApp) -> None:
    """Run the app until the person quits.

    Raises:
        UserError: where there is no terminal, or an answer could not be kept.
        RuntimeError: where the app itself failed; its traceback is on the screen.
    """
    # The screen is drawn on standard error, so that standard output may go through a pipe.
    for name, stream in (("input", sys.__stdin__), ("error", sys.__stderr__)):
        if stream is None or not stream.isatty():
            raise UserError(
                f"standard {name} is not a terminal, but labels are given by hand. Run this in a terminal, without "
                "redirecting it."
            )
    app.run(mouse=False)
    if app.failure is not None:
        raise app.failure
    if app.return_code:
        raise RuntimeError("the labelling app failed; every answer given before is on disk")
