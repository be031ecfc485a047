"""A server that calls go to, and the client of the package openai for it.

The client is kept from telling a server what is meant for OpenAI's.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    import openai

PREFIX = "OPENAI_"  # of the variables that the package reads as a client is made
DOMAIN = "openai.com"
OPENAI = "https://api.openai.com/v1"


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
        extra_body: what this server wants beside the request.
    """

    who: str
    model: str
    base_url: str | None
    api_key: str | None = field(repr=False)
    concurrency: int
    max_retries: int
    timeout: float
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where it is, for people: without the user, password or query that an address may hold."""
        parts = urlsplit(self.base_url or OPENAI)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def without_key(self, text: str) -> str:
        """A text from outside, in which a server may repeat the key, without it."""
        return text.replace(self.api_key, "(the key)") if self.api_key else text


def make_client(base_url: str, api_key: str | None, timeout: float) -> "openai.AsyncOpenAI":
    """A client that makes one try a call.

    Args:
        base_url: of the server.
        api_key: None: the server wants none.
        timeout: seconds of a read.
    """
    import openai

    with _environment_of(base_url):
        return openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            timeout=timeout,
            # A proxy has another localhost than this machine.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if is_loopback(base_url) else None,
            max_retries=0,  # an empty reply has to count among the tries, which the package's own retries cannot do
        )


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
