"""What an error reply of an OpenAI-compatible server means: come again, not this request, or never."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sftmix.errors import InputError
from sftmix.evaluation.call import Request

if TYPE_CHECKING:
    import openai

    from sftmix.evaluation.client import Server

MOST_RETRY_AFTER_SECONDS = 120.0  # that a server may ask to wait
PASSING = {408, 409, 425, 429}  # statuses below 500 that a later try may not meet
OF_ONE_REQUEST = {400, 413, 422}  # it may be this request that is wrong, for instance too long
# How vLLM, SGLang, TGI, llama.cpp and OpenAI say that a prompt is too long. A word alone would be too little: that
# max_tokens is no parameter of a model is said with tokens too, and is no prompt's fault.
OF_LENGTH = re.compile(
    r"context (length|size|window)|maximum (input|prompt|sequence|model) length"
    r"|(prompt|input|request)\b.{0,40} too long|too many (input |prompt )?tokens|tokens?\b.* must be (<=|less)"
    r"|exceed.{0,40} tokens|tokens?\b.{0,40} exceed",
    re.IGNORECASE | re.DOTALL,
)


class Unanswered(Exception):
    """A try that brought no reply that can be used.

    Args:
        cause: for people.
        passes: whether a later try may bring one.
        is_paid: whether there was a reply.
        is_silence: whether nothing came within the time of a try.
        wait: seconds that the server asks for, or None.
    """

    def __init__(
        self,
        cause: str,
        passes: bool = True,
        is_paid: bool = False,
        is_silence: bool = False,
        wait: float | None = None,
    ) -> None:
        """Keep the five."""
        super().__init__(cause)
        self.cause, self.passes, self.is_paid, self.is_silence, self.wait = cause, passes, is_paid, is_silence, wait


class TooLong(Unanswered):
    """A request that does not fit the model's positions."""


def refusal(
    error: "openai.APIStatusError", server: "Server", request: Request, allow_partial: bool
) -> InputError | Unanswered:
    """What an error reply of a server means: the end of all calls, or of one try."""
    status = error.status_code
    if status in (401, 403):
        return InputError(f"{server.who}: the server at {server.address} refuses the key (status {status})")
    said = error.body.get("message") if isinstance(error.body, Mapping) else None
    cause = f"status {status}" + (f": {server.without_key(str(said))[:300]}" if said else "")
    if error.code == "insufficient_quota":
        return InputError(f"{server.who}: nothing is left to pay calls with ({cause})")
    if status >= 500 or status in PASSING:
        wait = _retry_after(error.response.headers.get("retry-after"))
        if wait is not None and wait > MOST_RETRY_AFTER_SECONDS:
            return Unanswered(f"{cause}, to be asked again after {wait:g} s", passes=False)
        return Unanswered(cause, wait=wait)
    if status in OF_ONE_REQUEST and (error.code == "context_length_exceeded" or OF_LENGTH.search(str(said))):
        return TooLong(cause, passes=False)
    if status in OF_ONE_REQUEST and allow_partial:
        return Unanswered(cause, passes=False)
    return refused(server, request, cause)


def refused(server: "Server", request: Request, cause: str) -> InputError:
    """The end of all calls, since the same would be said of the others."""
    return InputError(f"{server.who}: the server refuses model {server.model}, {request.name} ({cause})")


def _retry_after(header: str | None) -> float | None:
    """Seconds that a server asks to wait; None where it names none, or a time of day."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
