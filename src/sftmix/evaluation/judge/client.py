"""A server that calls go to, and the client of the package openai for it.

The client sends another server nothing that is meant for OpenAI's, follows no redirect to another address, and bounds
the size of a reply while it is received.
"""

import ipaddress
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from sftmix.evaluation.judge.scrubbing import Scrubber, secrets_of

if TYPE_CHECKING:
    import openai

PREFIX = "OPENAI_"  # of the variables that the package reads as a client is made
DOMAIN = "openai.com"
OPENAI = "https://api.openai.com/v1"
MOST_BYTES = 16 * 2**20  # of a reply, decompressed: a reply of 100,000 tokens has less than 1 MiB
MOST_ERROR_BYTES = 64 * 2**10  # of an error reply; the rest is not read
MOST_REDIRECTS = 3  # of one request, each within the same scheme, host and port


class UnreadableReply(Exception):
    """A reply that is too large, or compressed in a way that was not asked for."""


class Redirected(Exception):
    """A redirect that is not followed.

    Args:
        target: Scheme, host, port and path of the target, or None if the redirect names no address.
        is_elsewhere: Whether the target has another scheme, host or port.
    """

    def __init__(self, target: str | None, is_elsewhere: bool) -> None:
        """Keep both."""
        super().__init__(target)
        self.target, self.is_elsewhere = target, is_elsewhere


@dataclass(frozen=True)
class Server:
    """Where calls go.

    Attributes:
        who: names it in messages: "judge gpt41".
        model: as it is requested.
        base_url: None is OpenAI's.
        api_key: None: the server wants none.
        concurrency: calls at a time.
        max_retries: of a call.
        timeout: seconds of one try.
        extra_body: what this server requires beside the request.
        rename: parameters of the request by the name under which this server takes them.
        drop: parameters of the request that are not sent.
        group: the config group of this server, judge or generate, for messages.
    """

    who: str
    model: str
    base_url: str | None = field(repr=False)  # may hold a password
    api_key: str | None = field(repr=False)
    concurrency: int
    max_retries: int
    timeout: float
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    group: str = "judge"

    @property
    def address(self) -> str:
        """The address for people: without the user, password or query that an address may hold."""
        return shown_address(self.base_url or OPENAI)

    @cached_property
    def scrubber(self) -> Scrubber:
        """Removes the key of this server, and what its address holds, from texts that the server sends."""
        return Scrubber(secrets_of(self.base_url, self.api_key))


def shown_address(url: str) -> str:
    """Return an address by scheme, host, port and path only."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def make_client(base_url: str, api_key: str | None, timeout: float) -> "openai.AsyncOpenAI":
    """A client that makes one try a call.

    Args:
        base_url: of the server.
        api_key: None: the server wants none.
        timeout: seconds of a read.
    """
    import openai

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        """Reads replies up to a bound, and leaves redirects to `_followed`."""

        async def send(self, request: Any, **options: Any) -> Any:
            """Send a request and return the reply, read whole; of an error reply the beginning."""
            options |= {"stream": True, "follow_redirects": False}
            response = await super().send(request, **options)
            try:
                for _ in range(MOST_REDIRECTS):
                    if not response.has_redirect_location:
                        break
                    target = _followed(response)
                    await response.aclose()
                    response = await super().send(target, **options)
                content = await _content(response)
            finally:
                await response.aclose()
            headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in OF_TRANSFER]
            return type(response)(response.status_code, headers=headers, content=content, request=response.request)

    with _environment_of(base_url):
        return openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            timeout=timeout,
            http_client=BoundedClient(
                trust_env=not is_loopback(base_url),  # a proxy has another localhost than this machine
                headers={"Accept-Encoding": "identity"},
            ),
            max_retries=0,  # an empty reply has to count among the tries, which the package's own retries cannot do
        )


OF_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")  # not true of a reply that was read


def _followed(response: Any) -> Any:
    """Return the request that a redirect leads to, if the redirect stays at the same address and repeats the question.

    Raises:
        Redirected: The target has another scheme, host or port, is not an address, or would be asked by GET.
    """
    request, target = response.request, response.next_request
    if target is None:
        raise Redirected(None, is_elsewhere=True)
    is_elsewhere = _origin(request.url) != _origin(target.url)
    if is_elsewhere or target.method != request.method:
        raise Redirected(shown_address(str(target.url)), is_elsewhere)
    return target


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


async def _content(response: Any) -> bytes:
    """Return the decompressed body of a reply, and of an error reply at most its first `MOST_ERROR_BYTES` bytes.

    Raises:
        UnreadableReply: The body is too large, or its compression is unknown or broken.
    """
    is_error = response.status_code >= 300
    most = MOST_ERROR_BYTES if is_error else MOST_BYTES
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise UnreadableReply(f"a reply with Content-Encoding {encoding[:40]!r}, although identity was asked for")
    inflate = zlib.decompressobj(wbits=47) if encoding not in ("", "identity") else None
    content = bytearray()
    try:
        async for chunk in response.aiter_raw():
            content += chunk if inflate is None else inflate.decompress(chunk, most + 1 - len(content))
            if len(content) > most:
                break
    except zlib.error as error:
        raise UnreadableReply(f"a reply that cannot be decompressed ({error})") from None
    if len(content) > most and not is_error:
        raise UnreadableReply(f"a reply of more than {most / 2**20:g} MiB, expected at most that")
    return bytes(content[:most])


def is_openai(base_url: str) -> bool:
    """Whether an address is one of OpenAI's own."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == DOMAIN or host.endswith(f".{DOMAIN}"))


def is_loopback(base_url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


@contextmanager
def _environment_of(base_url: str) -> Iterator[None]:
    """The environment, for another server than OpenAI's without the variables that are meant for that one.

    The package adds organization, project and headers of its variables to the calls of any server, and has no switch.
    """
    hidden = {} if is_openai(base_url) else {k: v for k, v in os.environ.items() if k.startswith(PREFIX)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
