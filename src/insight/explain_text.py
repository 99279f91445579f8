"""An explanation on the terminal, by rich."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from src.insight.explain import Explanation, PageTrace, Passage, Place, RightPage, StageList
from src.insight.printable import one_line, printable

WIDTH_OF_A_FILE = 120
_TITLE = 60
_PASSAGE = 1_500
_MARK = "bold green"
# Where there are no colours, marks are brackets.
_OPEN, _CLOSE = "‹", "›"


def show(explanation: Explanation, console: Console) -> None:
    """Print an explanation. All text of users is shown as it stands: nothing in it is read as markup."""
    for part in _parts(explanation, coloured=console.is_terminal):
        console.print(part)


def make_console() -> Console:
    """Standard output; a file or a pipe gets lines of :data:`WIDTH_OF_A_FILE` characters."""
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    return console


def _parts(explanation: Explanation, coloured: bool) -> Iterator[RenderableType]:
    name = "" if explanation.query_id is None else f" {explanation.query_id}"
    yield Text.assemble((f"Question{printable(name)}: ", "bold"), printable(explanation.question))
    for variant in explanation.variants:
        yield Text(f"  searched too: {printable(variant)}")
    for warning in explanation.warnings:
        yield Text(f"WARNING: {one_line(warning)}", "bold red")
    yield from _verdict(explanation)
    yield Text("")
    yield _ranks(explanation)
    for stage in explanation.stages:
        yield _stage(stage)
    yield Text("What was read (words of the question are marked)", "bold")
    shown = {page.doc_id for page in explanation.pages}
    for page in explanation.pages:
        yield _passages(page, coloured)
    for right in explanation.right:
        if right.page is not None and right.doc_id not in shown:
            yield _passages(right.page, coloured)


def _verdict(explanation: Explanation) -> Iterator[RenderableType]:
    if explanation.lost is None:
        yield Text("No right page is known: give labels, or --page ID, to see where one was lost.", "yellow")
        return
    for right in explanation.right:
        yield _right(right)


def _right(right: RightPage) -> Text:
    title = "" if right.page is None else f" {one_line(right.page.title, _TITLE)}"
    style = "bold green" if right.lost == "found" else "bold red"
    text = Text.assemble(f"Right page {printable(right.doc_id)}{title}: ", (right.says, style))
    if right.page is not None:
        for what, stems in (("lacks", right.page.missing), ("has where nothing was read", right.page.unread)):
            if stems:
                text.append(f"\n  Stems of the question that the page {what}: {printable(', '.join(stems))}")
    return text


def _ranks(explanation: Explanation) -> Group:
    """Ranks of the first and the right pages in every stage; the stages are numbered to keep the table narrow."""
    legend = [
        Text(f"  {number}  {printable(stage.name)}: {stage.size:,} pages")
        for number, stage in enumerate(explanation.stages, start=1)
    ]
    table = Table(title_justify="left", title="Rank in each stage (in brackets: only when searched deeper)")
    table.add_column("page", no_wrap=True)
    table.add_column("title", no_wrap=True, overflow="ellipsis", ratio=1)
    for number in range(1, len(explanation.stages) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    right = {page.doc_id for page in explanation.right}
    pages = list(explanation.pages)
    shown = {page.doc_id for page in pages}
    pages += [found.page for found in explanation.right if found.page is not None and found.doc_id not in shown]
    for page in pages:
        style = _MARK if page.doc_id in right else ""
        mark = "* " if page.doc_id in right else ""
        cells = [_cell(page.places[stage.name]) for stage in explanation.stages]
        table.add_row(Text(mark + printable(page.doc_id)), Text(one_line(page.title, _TITLE)), *cells, style=style)
    if right:
        table.caption, table.caption_justify = "* a right page", "left"
    return Group(*legend, table)


def _cell(place: Place | None) -> Text:
    if place is None:
        return Text("-")
    return Text(str(place.rank) if place.listed else f"({place.rank})")


def _stage(stage: StageList) -> Table:
    table = Table(title=Text(f"{stage.name}: first {len(stage.entries)} of {stage.size:,}"), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("page", no_wrap=True)
    table.add_column("title", no_wrap=True, overflow="ellipsis")
    for entry in stage.entries:
        title = Text(one_line(entry.title, _TITLE))
        table.add_row(str(entry.rank), f"{entry.score:.4f}", Text(printable(entry.doc_id)), title)
    return table


def _passages(page: PageTrace, coloured: bool) -> Group:
    head = Text(f"Page {printable(page.doc_id)} {one_line(page.title, _TITLE)}", "bold")
    if not page.passages:
        return Group(head, Text("  not read: it was no candidate"))
    return Group(head, *(_passage(passage, coloured) for passage in page.passages))


def _passage(passage: Passage, coloured: bool) -> Text:
    text, at = Text("  "), 0
    for start, end in passage.marks:
        word = printable(passage.text[start:end])
        text.append(printable(passage.text[at:start]))
        text.append(*((word, _MARK) if coloured else (f"{_OPEN}{word}{_CLOSE}",)))
        at = end
    text.append(printable(passage.text[at : passage.read]))
    if passage.read < len(passage.text):
        text.append(f" [cut here: {len(passage.text) - passage.read:,} characters were not read]", "yellow")
    if len(text) > _PASSAGE:
        text.truncate(_PASSAGE, overflow="ellipsis")
    return text
