import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from models.chat_server import Reply, Server, chat_server, completion

from src.core.errors import UserError
from src.models.chat import ChatClient, ChatFailure, ChatServer, _retry_after

GOOD = completion("хорошо")


def client(server: Server, **changes: object) -> ChatClient:
    values: dict[str, object] = {"timeout": 5.0, "backoff": 0.001, "attempts": 3, "concurrency": 4, **changes}
    return ChatClient(ChatServer(server.url, "tiny", **values), {"temperature": 0.3})  # type: ignore[arg-type]


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_what_is_sent_and_what_comes_back() -> None:
    with chat_server(lambda question, before: completion(question.upper())) as server:
        assert client(server, key="secret").ask(ask("карта")) == "КАРТА"
    assert server.requests == [{"model": "tiny", "messages": ask("карта"), "temperature": 0.3}]
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_no_key_no_header() -> None:
    with chat_server(lambda question, before: GOOD) as server:
        client(server).ask(ask("x"))
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=500, body="oops"),
        Reply(status=503),
        Reply(status=429),
        Reply(body="{broken"),
        Reply(body="[]"),
        Reply(body='{"choices": []}'),
        completion(None),
        completion(["a"]),
        Reply(body=GOOD.body, cut="before"),
        Reply(body=GOOD.body, cut="inside"),
        Reply(body=GOOD.body, headers={"content-encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:12]}-{reply.cut or reply.headers}",
)
def test_what_fails_once_or_twice_is_asked_again_and_what_fails_always_is_a_failure(bad: Reply) -> None:
    with chat_server(lambda question, before: bad if before < 2 else GOOD) as server:
        assert client(server).ask(ask("x")) == "хорошо"
        assert len(server.requests) == 3
    with chat_server(lambda question, before: bad) as server:
        with pytest.raises(ChatFailure):
            client(server).ask(ask("x"))
        assert len(server.requests) == 3


@pytest.mark.parametrize("text", ['["a", "b', None])
def test_an_answer_that_was_cut_is_a_failure_of_its_own_and_not_asked_for_again(text: str | None) -> None:
    with chat_server(lambda question, before: completion(text, "length")) as server:
        with pytest.raises(ChatFailure, match=r"cut short .*max_tokens = 7\)\. Give more with --max-tokens"):
            ChatClient(ChatServer(server.url, "tiny", backoff=0.001), {"max_tokens": 7}).ask(ask("x"))
        assert len(server.requests) == 1


def test_a_server_that_cuts_its_answers_is_not_down() -> None:
    def answer(question: str, before: int) -> Reply:
        return GOOD if question == "24" else completion("хоро", "length")

    kept: dict[int, str] = {}
    with chat_server(answer) as server:
        found = dict(client(server).ask_all([ask(str(n)) for n in range(25)], kept.__setitem__))
    assert kept == {24: "хорошо"}
    assert len(found) == 25


def test_a_slow_answer_is_not_waited_for() -> None:
    slow = Reply(body=GOOD.body, delay=5.0)
    with chat_server(lambda question, before: slow if before == 0 else GOOD) as server:
        started = time.monotonic()
        assert client(server, timeout=0.3).ask(ask("x")) == "хорошо"
        assert 0.3 <= time.monotonic() - started < 3
    with chat_server(lambda question, before: slow) as server, pytest.raises(ChatFailure, match=r"within 0\.1 s"):
        client(server, timeout=0.1, attempts=2).ask(ask("x"))


def test_retry_after_is_honoured() -> None:
    busy = Reply(status=429, headers={"retry-after": "1"})
    with chat_server(lambda question, before: busy if before == 0 else GOOD) as server:
        started = time.monotonic()
        assert client(server).ask(ask("x")) == "хорошо"
        assert 1.0 <= time.monotonic() - started < 4
    with chat_server(lambda question, before: Reply(status=429, headers={"retry-after": "3600"})) as server:
        with pytest.raises(ChatFailure, match="HTTP 429, it asks to wait 3600 s"):
            client(server).ask(ask("x"))
        assert len(server.requests) == 1


def test_waits_double() -> None:
    with chat_server(lambda question, before: Reply(status=500)) as server:
        started = time.monotonic()
        with pytest.raises(ChatFailure, match="HTTP 500"):
            client(server, backoff=0.1, attempts=4).ask(ask("x"))
        # .1 + .2 + .4 and at most .05 of chance in each
        assert 0.7 <= time.monotonic() - started < 3


@pytest.mark.parametrize("value", ["soon", "", None, "-5"])
def test_a_retry_after_that_says_nothing(value: str | None) -> None:
    assert _retry_after(value) == 0.0


def test_a_retry_after_with_a_date() -> None:
    when = datetime.now(UTC) + timedelta(seconds=90)
    assert 85 < _retry_after(format_datetime(when, usegmt=True)) <= 90
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_retry_can_mend(status: int) -> None:
    reply = Reply(status=status, body="no such model, key sk-1234 is wrong")
    with chat_server(lambda question, before: reply) as server:
        with pytest.raises(UserError) as error:
            client(server, key="sk-1234").ask(ask("x"))
        assert len(server.requests) == 1
    assert f"HTTP {status} for model 'tiny': 'no such model, key *** is wrong'" in str(error.value)
    assert "LLM_API_KEY (it is set)" in str(error.value)


def test_many_questions_at_once() -> None:
    with chat_server(lambda question, before: Reply(body=completion(question * 2).body, delay=0.05)) as server:
        kept: dict[int, str] = {}
        asked = [ask(str(n)) for n in range(12)]
        found = dict(client(server).ask_all(asked, kept.__setitem__))
    assert found == kept == {n: str(n) * 2 for n in range(12)}
    assert 2 <= server.at_once <= 4


def test_one_bad_question_does_not_stop_the_others() -> None:
    with chat_server(lambda question, before: Reply(status=500) if question == "3" else GOOD) as server:
        found = dict(client(server).ask_all([ask(str(n)) for n in range(6)], lambda n, text: None))
    assert sorted(found) == list(range(6))
    assert [n for n, outcome in found.items() if isinstance(outcome, ChatFailure)] == [3]


def test_a_server_that_is_down_is_not_asked_to_the_end() -> None:
    with chat_server(lambda question, before: Reply(status=503)) as server:
        with pytest.raises(UserError, match=r"10 questions in a row got no answer \(HTTP 503\).*goes on where this"):
            list(client(server, attempts=1).ask_all([ask(str(n)) for n in range(500)], lambda n, text: None))
        assert len(server.requests) < 100
    with pytest.raises(ChatFailure, match="ConnectError"):
        client(server).ask(ask("x"))


def test_what_is_under_way_at_an_interrupt_is_kept() -> None:
    kept: dict[int, str] = {}
    with chat_server(lambda question, before: Reply(body=GOOD.body, delay=0.2 if question != "0" else 0)) as server:
        answers = client(server).ask_all([ask(str(n)) for n in range(40)], kept.__setitem__)
        next(answers)
        with pytest.raises(KeyboardInterrupt):
            answers.throw(KeyboardInterrupt)
        assert 1 < len(kept) == len(server.requests) < 12


def test_urls_and_keys() -> None:
    assert ChatServer("http://h:1/v1/", "m").endpoint == "http://h:1/v1/chat/completions"
    assert ChatServer("http://h/v1/chat/completions", "m").endpoint == "http://h/v1/chat/completions"
    assert "secret" not in repr(ChatServer("http://h/v1", "m", key="secret"))
    with pytest.raises(UserError, match="LLM_URL = 'http://h:port/v1' is no URL"):
        ChatClient(ChatServer("http://h:port/v1", "m"))
    with pytest.raises(UserError, match="LLM_API_KEY holds characters that no key has") as error:
        ChatClient(ChatServer("http://h/v1", "m", key="se\ncret"))
    assert "cret" not in str(error.value).replace("LLM_API_KEY", "")
