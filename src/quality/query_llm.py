"""Other wordings of a question by a language model; answers are kept as they come, so that none is asked for twice."""

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.artifacts import fingerprint
from src.core.errors import UserError
from src.core.text import normalize
from src.core.types import Progress
from src.models.chat import AnswerCut, ChatClient, ChatFailure, ChatServer, Messages

PROMPT = (
    "You help a search engine. Given a user's question, write {number} other wordings of it that a page with the "
    "answer could be found with: mend slips, spell out abbreviations, replace slang by the words of an official page, "
    "use synonyms. Keep the language and the meaning of the question. Add no facts and no answer. "
    "Reply with a JSON array of {number} strings and nothing else."
)
MAX_TOKENS = 2048
OPTIONS: Mapping[str, Any] = {"temperature": 0.3, "max_tokens": MAX_TOKENS}
LONGEST_VARIANT = 500  # characters; what is longer is no wording of a question

_NAMED = re.compile(r'"variants"\s*:\s*\[')
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)

log = logging.getLogger(__name__)


def messages_for(question: str, number: int) -> Messages:
    """What the model is asked."""
    return [{"role": "system", "content": PROMPT.format(number=number)}, {"role": "user", "content": question}]


def parse_answer(answer: str, question: str, number: int) -> list[str]:
    """The variants in an answer: the last usable JSON array of strings in it, thoughts aside.

    An array under the key ``variants`` goes before others, then one of ``number`` strings: models also add notes, and
    quote words, or the question, in brackets.

    Returns:
        At most ``number`` texts, none empty, equal to the question or to another; none at all where the answer is
        malformed: it holds no array of strings with anything usable in it.
    """
    spoken = _THOUGHTS.sub("", answer)
    named = [_array_at(spoken, match.end() - 1)[0] for match in _NAMED.finditer(spoken)]
    arrays = [array for array in named or _arrays_of_strings(spoken) if _usable(array, question)]
    as_asked = [array for array in arrays if len(array) == number]
    return _usable((as_asked or arrays)[-1], question)[:number] if arrays else []


def _arrays_of_strings(text: str) -> Iterator[list[str]]:
    start = text.find("[")
    while start >= 0:
        found, after = _array_at(text, start)
        if found:
            yield found
        start = text.find("[", after)


def _array_at(text: str, start: int) -> tuple[list[str], int]:
    """The array of strings that begins at a place, and where it ends; an empty one, and the next place, otherwise."""
    try:
        found, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return [], start + 1
    strings = bool(found) and all(isinstance(item, str) for item in found)
    return (found, end) if strings else ([], start + 1)


def _usable(array: Sequence[str], question: str) -> list[str]:
    cleaned = (" ".join(normalize(item).split()) for item in array)
    return list(dict.fromkeys(item for item in cleaned if item and item != question and len(item) <= LONGEST_VARIANT))


class AnswerCache:
    """Answers on disk, one JSON object per line, each written before the next question is counted as done.

    A line that an interruption cut short is left where it is and not used.

    Args:
        path: the file; made with the first answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, str] = {}
        self._lock = threading.Lock()
        data = path.read_bytes() if path.is_file() else b""
        self._mend = bool(data) and not data.endswith(b"\n")
        damaged = 0
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                self.answers[str(entry["key"])] = str(entry["answer"])
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            log.warning("WARNING: %s: %d damaged lines are not used; those questions are asked again.", path, damaged)

    def add(self, key: str, question: str, model: str, answer: str) -> None:
        """Keep one answer; it is on disk when this returns."""
        entry = {"key": key, "question": question, "model": model, "answer": answer}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                handle.write((b"\n" if self._mend else b"") + json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
            self._mend = False
            self.answers[key] = answer


@dataclass(frozen=True)
class LlmResult:
    """What came of asking.

    Attributes:
        variants: of each question; empty where there are none.
        asked, kept: distinct questions asked now, and those answered from the cache.
        malformed: distinct questions whose answer holds no usable variants.
        failed: distinct questions that the server did not answer.
        last_failure: what the last of those met.
        cut: distinct questions whose answer ended at the limit of tokens.
    """

    variants: tuple[tuple[str, ...], ...]
    asked: int
    kept: int
    malformed: int
    failed: int
    last_failure: str = ""
    cut: int = 0


def cache_key(question: str, model: str, number: int) -> str:
    """Key of an answer: question, model, prompt and default options; a changed prompt asks anew."""
    return fingerprint([question, model, messages_for(question, number)[0]["content"], dict(OPTIONS)])


def ask_for_variants(
    questions: Sequence[str],
    number: int,
    server: ChatServer,
    cache: AnswerCache,
    progress: Progress,
    max_tokens: int = MAX_TOKENS,
) -> LlmResult:
    """Ask a model for ``number`` variants of each question; equal questions are asked once.

    A malformed answer is kept too: the same question would be answered alike. A question that the server did not
    answer, or whose answer was cut, is not, so that the next run asks it again.

    Args:
        progress: called with the number of further distinct questions done.
        max_tokens: limit of an answer. It is no part of the key of an answer: a whole one is the same under any limit.

    Raises:
        UserError: the server refuses every request, is down, or cuts every answer; the answers that came are kept.
    """
    distinct = list(dict.fromkeys(questions))
    keys = {question: cache_key(question, server.model, number) for question in distinct}
    missing = [question for question in distinct if keys[question] not in cache.answers]
    progress(len(distinct) - len(missing))
    failed, last_failure, cut, last_cut = 0, "", 0, ""
    if missing:
        client = ChatClient(server, {**OPTIONS, "max_tokens": max_tokens})

        def keep(place: int, answer: str) -> None:
            cache.add(keys[missing[place]], missing[place], server.model, answer)

        for place, outcome in client.ask_all([messages_for(question, number) for question in missing], keep):
            if isinstance(outcome, AnswerCut):
                # Said at once: where every answer is cut, going on to the end costs much.
                if not cut:
                    log.warning("WARNING: %r has no variants: %s. The next run asks it again.", missing[place], outcome)
                cut, last_cut = cut + 1, str(outcome)
            elif isinstance(outcome, ChatFailure):
                failed, last_failure = failed + 1, str(outcome)
            progress(1)
    if missing and failed + cut == len(distinct):
        met = f"{last_failure}). Mend the server or LLM_URL." if failed else f"{last_cut})."
        raise UserError(f"{server.endpoint}: none of {failed + cut} questions got a whole answer ({met}")
    found = {
        question: tuple(parse_answer(cache.answers[keys[question]], question, number))
        for question in distinct
        if keys[question] in cache.answers
    }
    malformed = sum(not variants for variants in found.values())
    return LlmResult(
        tuple(found.get(question, ()) for question in questions),
        len(missing),
        len(distinct) - len(missing),
        malformed,
        failed,
        last_failure,
        cut,
    )
