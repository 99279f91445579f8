"""A language model behind HTTP: any server that speaks OpenAI's chat completions (vLLM, llama.cpp, ...)."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from src.core.errors import UserError

Messages = Sequence[dict[str, str]]

_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
EXAMPLE_URL = "http://127.0.0.1:8000/v1"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

log = logging.getLogger(__name__)


class ChatFailure(Exception):  # noqa: N818  (not an error of the run: the caller counts it)
    """A request that got no answer in all its attempts; the message says what the last one met.

    Attributes:
        retry_after: seconds that the server asks to wait; 0 where it does not say.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AnswerCut(ChatFailure):
    """An answer that ended at the limit of tokens; asking again would pay for the same once more."""

    def __init__(self, max_tokens: int | None) -> None:
        limit = "the server's own limit" if max_tokens is None else f"max_tokens = {max_tokens}"
        super().__init__(
            f"its answer was cut short (finish_reason 'length', {limit}). Give more with --max-tokens, ask for fewer "
            "variants with --number, or switch off the model's thinking"
        )


@dataclass(frozen=True)
class ChatServer:
    """A server and how it is asked.

    Attributes:
        url: up to ``/v1``; the path of the chat completions is added where it is missing.
        model: its name on the server.
        key: sent as bearer token where there is one; never logged, never part of a message.
        timeout: seconds for one answer.
        concurrency: requests under way at a time.
        attempts: requests per question, the first one included.
        backoff: seconds before the second attempt; they double, with some chance in them, up to ``longest_wait``.
        longest_wait: also the longest wait that a server may ask for (Retry-After); one that asks for more gets no
            further attempt.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    concurrency: int = 8
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 120.0

    @property
    def endpoint(self) -> str:
        """URL of the chat completions."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


class ChatClient:
    """Asks a server, several questions at a time.

    Args:
        server: the server.
        options: further fields of each request, such as ``temperature``.
    """

    def __init__(self, server: ChatServer, options: dict[str, Any] | None = None) -> None:
        self.server = server
        self.options = options or {}
        self._stopped = threading.Event()
        # The library would show an unusable key in its message.
        if server.key is not None and not (server.key.isascii() and server.key.isprintable()):
            raise UserError("LLM_API_KEY holds characters that no key has (blanks, line ends or letters beyond ASCII).")
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        try:
            host = httpx2.URL(server.endpoint).host
        except httpx2.InvalidURL as error:
            raise UserError(f"LLM_URL = {server.url!r} is no URL ({error}). Give one such as {EXAMPLE_URL}") from error
        # Proxies of the environment are for other machines, not for a server on this one.
        far = host not in _LOOPBACK
        limits = httpx2.Limits(max_connections=server.concurrency)
        self._http = httpx2.Client(headers=headers, timeout=server.timeout, limits=limits, trust_env=far)

    def ask(self, messages: Messages) -> str:
        """The text of one answer.

        Raises:
            AnswerCut: the answer ended at the limit of tokens.
            ChatFailure: no answer in all attempts.
            UserError: the server refuses such requests (a wrong URL, model or key).
        """
        server = self.server
        growing = wait_exponential_jitter(multiplier=server.backoff, max=server.longest_wait, jitter=server.backoff / 2)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(growing(state), getattr(error, "retry_after", 0.0))

        def hopeless(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, AnswerCut):
                return True
            return self._stopped.is_set() or getattr(error, "retry_after", 0.0) > server.longest_wait

        retrying = Retrying(
            retry=retry_if_exception_type(ChatFailure),
            stop=lambda state: stop_after_attempt(server.attempts)(state) or hopeless(state),
            wait=wait,
            sleep=sleep_using_event(self._stopped),
            reraise=True,
        )
        return str(retrying(self._ask_once, messages))

    def ask_all(
        self, requests: Sequence[Messages], on_answer: Callable[[int, str], None], give_up_after: int = 10
    ) -> Iterator[tuple[int, str | ChatFailure]]:
        """Ask many questions; yields the number of each with its answer or failure, as they come.

        Where this ends early (an error, an interrupt), what is under way is still waited for and handed to
        ``on_answer``: it has been paid for. Nothing new is asked.

        Args:
            on_answer: called with number and text of every answer, from the thread that got it.
            give_up_after: failures one after another at which the server counts as down. A cut answer is none of
                them: the server is up.

        Raises:
            UserError: the server refuses every request, or is down.
        """

        def work(number: int) -> str:
            text = self.ask(requests[number])
            on_answer(number, text)
            return text

        pool = ThreadPoolExecutor(self.server.concurrency, thread_name_prefix="chat")
        failed_in_a_row = 0
        try:
            numbers: dict[Future[str], int] = {pool.submit(work, n): n for n in range(len(requests))}
            for future in as_completed(numbers):
                try:
                    outcome: str | ChatFailure = future.result()
                    failed_in_a_row = 0
                except AnswerCut as error:
                    outcome = error
                    failed_in_a_row = 0
                except ChatFailure as error:
                    outcome = error
                    failed_in_a_row += 1
                    if failed_in_a_row >= give_up_after:
                        raise UserError(
                            f"{self.server.endpoint}: {failed_in_a_row} questions in a row got no answer ({error}). "
                            "Mend the server or LLM_URL; the same command goes on where this one ends."
                        ) from error
                yield numbers[future], outcome
        finally:
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._http.close()

    def _ask_once(self, messages: Messages) -> str:
        if self._stopped.is_set():
            raise ChatFailure("stopped")
        body = {"model": self.server.model, "messages": list(messages), **self.options}
        try:
            response = self._http.post(self.server.endpoint, json=body)
        except httpx2.TimeoutException as error:
            raise ChatFailure(f"no answer within {self.server.timeout:g} s") from error
        except httpx2.RequestError as error:
            raise ChatFailure(f"{type(error).__name__}: {error}") from error
        if response.status_code in _WORTH_ANOTHER_TRY:
            wait = _retry_after(response.headers.get("retry-after"))
            asks = f", it asks to wait {wait:.0f} s" if wait else ""
            raise ChatFailure(f"HTTP {response.status_code}{asks}", wait)
        if response.status_code != httpx2.codes.OK:
            said = " ".join(response.text.split())[:200]
            if self.server.key:
                said = said.replace(self.server.key, "***")
            key = "set" if self.server.key else "not set"
            raise UserError(
                f"{self.server.endpoint}: HTTP {response.status_code} for model {self.server.model!r}: {said!r}. "
                f"Check LLM_URL, LLM_MODEL and the environment variable LLM_API_KEY (it is {key})."
            )
        return self._text_of(response)

    def _text_of(self, response: httpx2.Response) -> str:
        try:
            choice = response.json()["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ChatFailure(f"a reply that is no chat completion ({type(error).__name__})") from error
        # First of all: a model that was cut while it thought has no text yet.
        if finish == "length":
            raise AnswerCut(self.options.get("max_tokens"))
        if not isinstance(text, str):
            raise ChatFailure("a reply without text")
        return text


def _retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for: a number or a date; 0 where it is absent or neither."""
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
