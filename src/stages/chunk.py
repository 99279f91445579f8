"""Chunk: documents are cut into passages of whole sentences, measured in tokens or in characters."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.core.types import Chunks, Corpus

Span = tuple[int, int]

RULES = 2  # of cutting; a corpus that was cut by others is cut anew

_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"'»”)\]]*[ \t]+(?=[\"'«“(\[—–-]?\s?[A-ZА-ЯЁ\d])|\n+)")
# What a full stop after does not end a sentence: initials, and what stands before a name or a number.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(«\"'.])(?:[A-ZА-ЯЁ]|(?i:г|ул|д|стр|ст|п|пп|им|корп|кв|обл|пр|просп|пер|пл|тел|рис|табл|см|"
    r"ср|ред|св|мин|макс|напр|т\. ?[екн]|mr|mrs|ms|dr|st|no|fig|vs|min|max|e\.g|i\.e))\.[ \t]+$"
)
# A shorter overlap than this cuts no long sentence into parts of its own size.
_SMALLEST_PART = 8


@dataclass(frozen=True)
class Chunking:
    """How documents are cut.

    Attributes:
        unit: what the sizes count, ``tokens`` or ``characters``; ``whole``: one passage per document.
        limit: largest chunk.
        overlap: how much of a chunk the next one may repeat, in whole sentences.
        minimum: a last chunk below this size joins the one before it, unless white space between them would make the
            two longer than ``limit + minimum``.
    """

    unit: Literal["tokens", "characters", "whole"]
    limit: int = 0
    overlap: int = 0
    minimum: int = 0


def sentence_spans(text: str) -> list[Span]:
    """Spans of the sentences (and lines) of a text, in order, without white space at their ends."""
    spans: list[Span] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text, max(0, match.end() - 12), match.end()):
            continue
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(text)))
    return [span for span in (_trim(text, *span) for span in spans) if span[0] < span[1]]


def _trim(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def chunk_spans(
    text: str, token_spans: Sequence[Span], limit: int, overlap: int, count_between: bool = False
) -> list[Span]:
    """Cut a text into chunks of whole sentences.

    Args:
        text: the text.
        token_spans: start and end of each token, in characters, ascending.
        limit: most tokens in a chunk. A sentence longer than that is cut into parts, before a word where there is one.
        overlap: a chunk starts with the last sentences (or parts) of the one before it, as far as they fit into this
            many tokens.
        count_between: whether tokens between two sentences count; where a token is a character, white space does.

    Returns:
        Spans in characters, ascending; together they cover every token. Empty for a text without tokens.
    """
    if not token_spans:
        return []
    starts = [start for start, _ in token_spans]
    # A token's start may be that of the blank before it, which lies in no sentence; its end never does.
    ends = np.array([end for _, end in token_spans], dtype=np.int64)
    pieces: list[tuple[Span, int, int]] = []  # span in characters; first and one past the last of its tokens
    for start, end in sentence_spans(text):
        first, last = np.searchsorted(ends, [start, end], side="right").tolist()
        part = overlap if last - first > limit and overlap >= _SMALLEST_PART else limit
        cut = first
        while cut < last:
            upto = _before_a_word(text, starts, cut, min(cut + part, last)) if cut + part < last else last
            span_start = start if cut == first else starts[cut]
            span_end = end if upto == last else starts[upto]
            pieces.append((_trim(text, span_start, span_end), cut, upto))
            cut = upto

    def size(begin: int, stop: int) -> int:
        if count_between:
            return pieces[stop - 1][2] - pieces[begin][1]
        return sum(upto - first for _, first, upto in pieces[begin:stop])

    chunks: list[Span] = []
    begin = 0
    while begin < len(pieces):
        stop = begin + 1
        while stop < len(pieces) and size(begin, stop + 1) <= limit:
            stop += 1
        chunks.append((pieces[begin][0][0], pieces[stop - 1][0][1]))
        if stop == len(pieces):
            break
        step_back = stop
        # Repeating so much that the next sentence no longer fits would repeat it for nothing.
        while step_back - 1 > begin and size(step_back - 1, stop) <= overlap and size(step_back - 1, stop + 1) <= limit:
            step_back -= 1
        begin = step_back
    return chunks


def _before_a_word(text: str, starts: Sequence[int], cut: int, upto: int) -> int:
    """The last token of those after ``cut`` up to ``upto`` that begins a word; ``upto`` where none does."""
    for token in range(upto, cut, -1):
        at = starts[token]
        if not text[at - 1 : at].strip() or text[at].isspace():
            return token
    return upto


def chunk_corpus(
    corpus: Corpus, chunking: Chunking, tokenizer: Any = None, progress: Callable[[int], None] | None = None
) -> Chunks:
    """Chunks of every document; see :func:`chunk_spans`.

    A document with a title and no text has one empty chunk (its passage is the title); one with neither has none.

    Args:
        tokenizer: a fast Hugging Face tokenizer, that of the bi-encoder; needed where sizes are in tokens.
    """
    doc_rows: list[int] = []
    spans: list[Span] = []
    for first in range(0, len(corpus), 64):
        texts = corpus.texts[first : first + 64]
        for offset, (text, units) in enumerate(zip(texts, _units(texts, chunking, tokenizer), strict=True)):
            row = first + offset
            found = _with_minimum(
                chunk_spans(text, units, chunking.limit, chunking.overlap, chunking.unit == "characters"),
                chunking,
            )
            if not found and (text or corpus.titles[row]):
                found = [(0, len(text))]
            doc_rows.extend([row] * len(found))
            spans.extend(found)
        if progress is not None:
            progress(len(texts))
    columns = np.array(spans, dtype=np.int32).reshape(-1, 2)
    return Chunks(np.array(doc_rows, dtype=np.int32), columns[:, 0].copy(), columns[:, 1].copy())


def _units(texts: Sequence[str], chunking: Chunking, tokenizer: Any) -> list[list[Span]]:
    """Spans of what the sizes count, for each text; none where documents stay whole."""
    if chunking.unit == "whole":
        return [[] for _ in texts]
    if chunking.unit == "characters":
        return [[(place, place + 1) for place in range(len(text))] for text in texts]
    spans: list[list[Span]] = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )["offset_mapping"]
    return spans


def _with_minimum(spans: list[Span], chunking: Chunking) -> list[Span]:
    """The spans, a last one below the minimum joined to the one before it; see :class:`Chunking`."""
    if len(spans) > 1 and spans[-1][1] - spans[-1][0] < chunking.minimum:
        joined = spans[-2][0], spans[-1][1]
        if joined[1] - joined[0] <= chunking.limit + chunking.minimum:
            return [*spans[:-2], joined]
    return spans
