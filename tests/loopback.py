"""An OpenAI-compatible server on this machine's loopback, whose faults are scripted by the place of a request.

`with loopback({0: Fault.status(429), 3: EMPTY}) as server:` is at `server.base_url`, and `server.bodies` are what came.
"""

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "loopback-2026-01-01"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request.

    Attributes:
        code: the HTTP status of the reply.
        hangs: the server takes the request and says nothing until the context ends.
        closes: the server closes the connection without a reply.
        body: of the reply, in the place of what belongs there.
        changes: keys of a good reply, with other values: text, finish, model, logprobs, usage.
        retry_after: seconds that the header of this name says.
        edit: changes a good reply in place.
        headers: of the reply, beside or instead of the usual ones.
        drip: seconds between the bytes of the body.
    """

    code: int = 200
    hangs: bool = False
    closes: bool = False
    body: bytes | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None
    edit: Callable[[dict[str, Any]], object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drip: float = 0.0

    @staticmethod
    def status(code: int, message: str = "scripted", error: str | None = None, wait: float | None = None) -> "Fault":
        """An error reply as the real server's look."""
        body = json.dumps({"error": {"message": message, "code": error}}).encode()
        return Fault(code=code, body=body, retry_after=wait)


HANGS = Fault(hangs=True)
CLOSES = Fault(closes=True)
EMPTY = Fault(changes={"text": ""})
WITHOUT_LOGPROBS = Fault(changes={"logprobs": None})
NO_JSON = Fault(body=b"<html>busy</html>")

Script = Mapping[int, Fault] | Callable[[int, Mapping[str, Any]], Fault | None]


@dataclass
class Loopback:
    """What the server has seen.

    Attributes:
        base_url: where it is.
        bodies: of the requests, in the order in which they came, those with faults included.
        keys: of the requests' headers.
        headers: of the requests, by their names in lower case.
        most_at_once: requests that were there at the same time.
        answered: good replies that were sent whole.
    """

    base_url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    answered: int = 0

    def counts(self) -> Counter[str]:
        """How often each body came."""
        return Counter(json.dumps(body, sort_keys=True) for body in self.bodies)


@contextmanager
def loopback(
    faults: Script | None = None,
    *,
    model: str = MODEL,
    text: Callable[[Mapping[str, Any]], str] | None = None,
    seconds: float = 0.0,
) -> Iterator[Loopback]:
    """A server that answers chat completions until the context ends.

    Args:
        faults: by the place of a request, counted from 0; or a function of that place and the request's body.
        model: that it says it runs.
        text: of a reply to a body; by default a rating that depends on the messages alone.
        seconds: that a reply takes.
    """
    find = faults if callable(faults) else lambda place, _: (faults or {}).get(place)
    ended, lock = threading.Event(), threading.Lock()
    now = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):  # a killed client
                self.close_connection = True

        def do_POST(self) -> None:
            nonlocal now
            length = int(self.headers["Content-Length"])
            content = self.rfile.read(length)
            if len(content) < length:  # a client that was killed while it asked
                self.close_connection = True
                return
            body = json.loads(content)
            with lock:
                place = len(seen.bodies)
                seen.bodies.append(body)
                seen.keys.append(self.headers.get("Authorization"))
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                now += 1
                seen.most_at_once = max(seen.most_at_once, now)
            try:
                self._reply(find(place, body) or Fault(), body)
            finally:
                with lock:
                    now -= 1

        def _reply(self, fault: Fault, body: Mapping[str, Any]) -> None:
            time.sleep(seconds)
            if fault.hangs:
                ended.wait()
            if fault.hangs or fault.closes:
                self.close_connection = True
                return
            content = fault.body
            if content is None:
                reply = completion(body, model, text, fault.changes)
                if fault.edit is not None:
                    fault.edit(reply)
                content = json.dumps(reply).encode()
            self.send_response(fault.code)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            for name, value in (headers | fault.headers).items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(len(content)) if fault.drip else ():
                if ended.wait(fault.drip):
                    return
                self.wfile.write(content[start : start + 1])
            if not fault.drip:
                self.wfile.write(content)
            with lock:
                seen.answered += fault.code == 200 and fault.body is None

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    seen = Loopback(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def completion(
    body: Mapping[str, Any],
    model: str = MODEL,
    text: Callable[[Mapping[str, Any]], str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A chat completion as the protocol has it; the same messages always bring the same."""
    digest = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()
    p = (digest[0] + 0.5) / 256
    reply = {
        "text": text(body) if text is not None else f"Fair enough. Rating: [[{1 + digest[1] % 10}]]",
        "finish": "stop",
        "model": model,
        "logprobs": None,
        "usage": {"prompt_tokens": sum(len(m["content"]) for m in body["messages"]) // 5, "completion_tokens": 9},
    }
    if body.get("logprobs"):
        reply["text"] = "m" if p > 0.5 else "M"
        best = [{"token": t, "logprob": math.log(x), "bytes": None} for t, x in (("m", p), ("M", 1 - p))]
        reply["logprobs"] = {"content": [{**best[0], "top_logprobs": best[: body["top_logprobs"]]}]}
    reply |= changes or {}
    usage = reply["usage"]
    return {
        "id": f"chatcmpl-{digest.hex()[:8]}",
        "object": "chat.completion",
        "created": 0,
        "model": reply["model"],
        "system_fingerprint": "fp_loopback",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply["text"]},
                "finish_reason": reply["finish"],
                "logprobs": reply["logprobs"],
            }
        ],
        "usage": usage and usage | {"total_tokens": sum(usage.values())},
    }
