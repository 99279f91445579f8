"""A chat server on this machine that answers as it is told, well or badly."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request: a status, headers and a body, or a connection that is cut."""

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: str = ""  # "before" or "inside" the answer


def completion(text: object, finish: str = "stop") -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply(json.dumps({"choices": [choice]}, ensure_ascii=False))


@dataclass
class Server:
    """Attributes: url; requests, the bodies in order of arrival; headers of each; most requests at the same time."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0

    def questions(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


@contextmanager
def chat_server(answer: Callable[[str, int], Reply]) -> Iterator[Server]:
    """Serve on a free port; ``answer`` gets the question and how often it was asked before."""
    lock, stop, under_way = threading.Lock(), threading.Event(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = body["messages"][-1]["content"]
            with lock:
                before = server.questions().count(question)
                server.requests.append(body)
                server.headers.append({key.lower(): value for key, value in self.headers.items()})
                under_way += 1
                server.at_once = max(server.at_once, under_way)
            try:
                self._reply(answer(question, before) if self.path == "/v1/chat/completions" else Reply(status=404))
            finally:
                with lock:
                    under_way -= 1

        def _reply(self, reply: Reply) -> None:
            stop.wait(reply.delay)
            data = reply.body.encode()
            try:
                if reply.cut != "before":
                    self.send_response(reply.status)
                    for key, value in ({"content-length": str(len(data))} | reply.headers).items():
                        self.send_header(key, value)
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if reply.cut else data)
            except OSError:  # the client did not wait
                self.close_connection = True
            if reply.cut:
                self.close_connection = True
                # A reset, not an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        stop.set()
        http.shutdown()
        http.server_close()
