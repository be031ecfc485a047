"""What an error reply of an OpenAI-compatible server means: try again, fail this request, or end all calls."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.judge.client import Redirected, Server
from sftmix.evaluation.judge.requests import RENAMED, Request

MOST_RETRY_AFTER_SECONDS = 120.0  # that a server may ask to wait
MOST_SAID = 2000  # characters of an error message that are read
MOST_SHOWN = 300  # characters of an error message that are shown
PASSING = {408, 409, 425, 429}  # statuses below 500 that a later try may not return
OF_ONE_REQUEST = {400, 413, 422}  # this request may be wrong, for instance too long
# How vLLM, SGLang, TGI, llama.cpp and OpenAI say that a prompt is too long. One word would not be enough: that
# max_tokens is not a parameter of a model also names tokens, and does not depend on the prompt.
OF_LENGTH = re.compile(
    r"context (length|size|window)|maximum (input|prompt|sequence|model) length"
    r"|(prompt|input|request)\b.{0,40} too long|too many (input |prompt )?tokens"
    r"|tokens?\b.{0,200} must be (<=|less)|exceed.{0,40} tokens|tokens?\b.{0,40} exceed",
    re.IGNORECASE | re.DOTALL,
)
# Codes of a content filter, by Azure, OpenAI and Alibaba
OF_FILTER = set(
    "content_filter content_policy_violation moderation_blocked responsibleaipolicyviolation "
    "data_inspection_failed".split()
)
# How OpenAI (also under the code invalid_prompt), OpenRouter (status 403), DeepSeek, and LiteLLM say the same in words
FILTER_STATUSES = {400, 403, 422}
FILTER_MESSAGE = re.compile(
    r"(prompt|input|request|content)\b.{0,20} was flagged|content exists risk|contentpolicyviolation"
    r"|rejected.{0,40} safety system",
    re.IGNORECASE,
)
OF_PARAMETER = re.compile(
    r"unsupported|not supported|unrecognized|unknown|not permitted|unexpected|extra inputs|not allowed|only the default"
    r"|does not support|invalid (parameter|argument|value)",
    re.IGNORECASE,
)


@dataclass(eq=False)
class Unanswered(Exception):
    """A try without a reply that can be used."""

    cause: str
    passes: bool = True  # whether a later try may succeed
    is_paid: bool = False  # whether there was a reply
    is_silence: bool = False  # whether nothing was received within the time of a try
    wait: float | None = None  # seconds that the server asks for
    is_of_request: bool = False  # whether the failure is due to this request, and says nothing about others


class TooLong(Unanswered):
    """A request that does not fit the positions of the model."""


def refusal(
    status: int, body: Any, server: Server, request: Request, allow_partial: bool, retry_after: str | None = None
) -> InputError | Unanswered:
    """Return what an error reply of a server means: the end of all calls, or of one try.

    Args:
        status: HTTP status. For an error in a reply of status 200, the status that the error names, or 400.
        body: Body of the reply: the bytes, or a parsed object.
        allow_partial: Whether a request that the server calls wrong fails without ending the other calls.
    """
    codes = _codes(body)
    is_filter = any(code.replace("datainspection", "data_inspection_") in OF_FILTER for code in codes) or (
        status in FILTER_STATUSES and FILTER_MESSAGE.search(_message(body)[:MOST_SAID]) is not None
    )
    if status in (401, 403) and not is_filter:
        return InputError(f"{server.who}: the server at {server.address} refuses the key (status {status})")
    said = printable(server.scrubber.text(_message(body)))[:MOST_SAID]
    cause = f"status {status}" + (f": {said[:MOST_SHOWN]}" if said else "")
    if "insufficient_quota" in codes:
        return InputError(f"{server.who}: nothing is left to pay calls with ({cause})")
    if is_filter:
        return Unanswered(f"the server's content filter refused the prompt ({cause})", passes=False, is_of_request=True)
    if status >= 500 or status in PASSING:
        wait = _retry_after(retry_after)
        if wait is not None and wait > MOST_RETRY_AFTER_SECONDS:
            return Unanswered(f"{cause}, to be asked again after {wait:g} s", passes=False)
        return Unanswered(cause, wait=wait)
    if status in OF_ONE_REQUEST and ("context_length_exceeded" in codes or OF_LENGTH.search(said)):
        return TooLong(cause, passes=False, is_of_request=True)
    if (remedy := _parameter_remedy(said, server)) is not None:
        return refused(server, request, f"{cause}; {remedy}")
    if status in OF_ONE_REQUEST and allow_partial:
        return Unanswered(cause, passes=False)
    return refused(server, request, cause, of_one=status in OF_ONE_REQUEST)


def redirected(error: Redirected, server: Server) -> InputError:
    """Return the error for a redirect that is not followed, with the address that must be set instead."""
    if error.target is None:
        return InputError(f"{server.who}: the server at {server.address} redirects to what is not an address")
    target = server.scrubber.text(error.target)[:MOST_SHOWN]
    base_url = target.removesuffix("/").removesuffix("/chat/completions")
    why = "no question is sent to another server" if error.is_elsewhere else "the redirect does not repeat the question"
    return InputError(
        f"{server.who}: the server at {server.address} redirects to {target}, which is not followed: {why}; if that "
        f"server is meant, set {server.group}.base_url={base_url}"
    )


def refused(server: Server, request: Request, cause: str, of_one: bool = False) -> InputError:
    """Return the error that ends all calls, since the server would refuse the others too.

    Args:
        of_one: Whether the refusal may be due to this request only.
    """
    partial = "; allow_partial=true scores the others" if of_one and server.group == "judge" else ""
    return InputError(f"{server.who}: the server refuses model {server.model}, {request.name} ({cause}){partial}")


def printable(text: str) -> str:
    """Return the text with a space instead of each character that moves a terminal's cursor, except line ends."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def _error(body: Any) -> Any:
    """Return the error in a body: an object, or a text."""
    if isinstance(body, bytes):
        text = body.decode(errors="replace")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            return text.strip()
    return body.get("error", body) if isinstance(body, dict) else body


def _message(body: Any) -> str:
    error = _error(body)
    if isinstance(error, dict):
        error = next((error[name] for name in ("message", "detail", "msg") if error.get(name)), "")
    return error if isinstance(error, str) else "" if error is None else json.dumps(error)


def _codes(body: Any) -> set[str]:
    """Return the codes and types of an error, also those of the error within an error."""
    error = _error(body)
    found = set()
    while isinstance(error, dict):
        found |= {code.lower() for name in ("code", "type") if isinstance(code := error.get(name), str)}
        error = error.get("innererror")
    return found


def _parameter_remedy(said: str, server: Server) -> str | None:
    """Return how to rename or drop the parameter that an error names, or None if the error names none."""
    if not OF_PARAMETER.search(said):
        return None
    name = next((name for name in RENAMED if re.search(rf"(?<![\w.]){name}(?!\w)", said)), None)
    if name is None:
        return None
    if name in ("logprobs", "top_logprobs"):
        return "suite.scoring=vote asks for no log-probabilities"
    to = "max_completion_tokens" if name == "max_tokens" else "NAME"
    return (
        f"{server.group}.rename_parameters='{{{name}: {to}}}' sends the parameter under another name, "
        f"{server.group}.drop_parameters='[{name}]' does not send it"
    )


def _retry_after(header: str | None) -> float | None:
    """Return the seconds that a server asks to wait; None if it names none, or a time of day."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
