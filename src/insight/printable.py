"""User text on its way to a terminal or a page."""


def printable(text: str) -> str:
    """The text with control characters made visible: sent as they are, they would steer the terminal."""
    return "".join(_visible(char) for char in text)


def one_line(text: str, limit: int = 0) -> str:
    """The text on one line, printable; cut after ``limit`` characters where that is above 0."""
    text = printable(" ".join(text.split()))
    return f"{text[: limit - 1]}…" if 0 < limit < len(text) else text


def title_of(title: str, text: str, limit: int = 100) -> str:
    """What a page is called in a list: its title, else the beginning of its text, on one line."""
    return one_line(title, limit) or one_line(text[: 10 * limit], limit) or "(empty)"


def _visible(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or 0x20 <= code < 0x7F or code > 0x9F:
        return char
    return (
        chr(0x2400 + code) if code < 0x20 else "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
    )
