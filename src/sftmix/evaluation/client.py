"""The client of the package openai, kept from telling a server what is meant for OpenAI's."""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import openai

PREFIX = "OPENAI_"  # of the variables that the package reads as a client is made
DOMAIN = "openai.com"


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
