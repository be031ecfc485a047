"""A server, and a client of the package `openai` for it.

The client sends OpenAI's headers only to OpenAI, follows no redirect, and limits the size of a reply
while receiving it. `openai` has no settings for these.
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

PREFIX = "OPENAI_"  # of the environment variables that `openai` reads when a client is created
DOMAIN = "openai.com"
OPENAI = "https://api.openai.com/v1"
MOST_BYTES = 16 * 2**20  # of a reply, decompressed: a reply of 100,000 tokens has less than 1 MiB
MOST_ERROR_BYTES = 64 * 2**10  # of an error reply; further bytes are not read
OF_TRANSFER = (
    "content-encoding",
    "content-length",
    "transfer-encoding",
)  # wrong for a body that was read


class UnreadableReply(Exception):
    """A reply that is too large, or has an unknown compression."""


@dataclass(eq=False)
class Redirected(Exception):
    """A redirect that is not followed."""

    target: str | None  # scheme, host, port and path; None if the redirect names no address


@dataclass(frozen=True)
class Server:
    """A server that is called."""

    who: str  # Name in messages, such as "judge gpt41"
    model: str
    base_url: str | None = field(repr=False)  # Address, which may hold a password; None for OpenAI
    api_key: str | None = field(repr=False)  # None if the server requires no key
    concurrency: int  # Maximum number of calls at a time
    max_retries: int  # Maximum number of retries of a call
    timeout: float  # Seconds of one try
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # Further fields of each request
    # New names of parameters of the request on this server
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()  # Parameters of the request that are not sent
    group: str = "judge"  # Config group of this server (judge or generate), for messages

    @property
    def address(self) -> str:
        """The address for messages, without user, password and query."""
        return shown_address(self.base_url or OPENAI)

    @cached_property
    def scrubber(self) -> Scrubber:
        """Removes the key of this server and the secrets in its address from texts."""
        return Scrubber(secrets_of(self.base_url, self.api_key))


def shown_address(url: str) -> str:
    """Return the scheme, host, port and path of an address."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def make_client(base_url: str, api_key: str | None, timeout: float) -> "openai.AsyncOpenAI":
    """Return a client that tries each call once. `timeout` is in seconds and applies to one read."""
    import openai

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        """Limits the size of replies, and follows no redirect: a question is sent to no other address."""

        async def send(self, request: Any, **options: Any) -> Any:
            """Send a request and return the whole reply, or the beginning of an error reply."""
            options |= {"stream": True, "follow_redirects": False}
            response = await super().send(request, **options)
            try:
                if response.has_redirect_location:
                    target = response.next_request
                    raise Redirected(None if target is None else shown_address(str(target.url)))
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
                trust_env=not is_loopback(base_url),  # for a proxy, localhost is another machine
                headers={"Accept-Encoding": "identity"},
            ),
            # Retries of the package ignore empty replies, and repeat calls after the quota is used up
            max_retries=0,
        )


async def _content(response: Any) -> bytes:
    """Return the decompressed body of a reply, for an error reply at most its first `MOST_ERROR_BYTES` bytes.

    Raises:
        UnreadableReply: If the body is too large, or its compression is unknown or broken.
    """
    is_error = response.status_code >= 300
    most = MOST_ERROR_BYTES if is_error else MOST_BYTES
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise UnreadableReply(f"a reply with Content-Encoding {encoding[:40]!r}, expected identity")
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
    """Return whether an address belongs to OpenAI."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == DOMAIN or host.endswith(f".{DOMAIN}"))


def is_loopback(base_url: str) -> bool:
    """Return whether an address belongs to this machine."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


@contextmanager
def _environment_of(base_url: str) -> Iterator[None]:
    """Hide the environment variables of OpenAI while a client of another server is created.

    `openai` sends the organization, project and headers of these variables to any server.
    """
    hidden = {} if is_openai(base_url) else {k: v for k, v in os.environ.items() if k.startswith(PREFIX)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
