import io
import re

from src.insight.progress import progress_bar

LAST = re.compile(r"^Processing queries: 100%\|#+\| 6977/6977 \[.*\]$")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    with progress_bar("Processing queries", 6977, stream) as progress:
        for _ in range(6977):
            progress(1)
    text = stream.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) <= 2
    assert sum("100%" in line for line in lines) == 1
    assert LAST.match(lines[-1]), lines[-1]


def test_a_terminal_gets_a_live_bar() -> None:
    stream = Terminal()
    with progress_bar("Encoding", 2, stream) as progress:
        progress(2)
    assert "\r" in stream.getvalue()
    assert "2/2" in stream.getvalue()
