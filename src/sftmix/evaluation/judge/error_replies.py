"""Classify an error reply of an OpenAI-compatible server: try again, fail this request, or end all calls."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.judge.client import Redirected, Server
from sftmix.evaluation.judge.requests import RENAMED, Request

MOST_RETRY_AFTER_SECONDS = 120.0  # longest wait that a server may request
MOST_READ = 2000  # characters of an error message that are read
MOST_SHOWN = 300  # characters of an error message that are shown
PASSING = {408, 409, 425, 429}  # statuses below 500 after which a later try may succeed
OF_ONE_REQUEST = {400, 413, 422}  # only this request may be wrong, for instance too long
# Messages of vLLM, SGLang, TGI, llama.cpp and OpenAI about a prompt that is too long. The word "tokens" by
# itself would also match a message about the parameter max_tokens, which does not depend on the prompt.
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
# Messages of a content filter by OpenAI (also with code invalid_prompt), OpenRouter (status 403), DeepSeek and LiteLLM
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
    """A try without a usable reply."""

    cause: str
    passes: bool = True  # Whether a later try may succeed
    is_paid: bool = False  # Whether a reply was received
    is_silence: bool = False  # Whether nothing was received within the time of a try
    wait: float | None = None  # Seconds that the server asks to wait
    is_of_request: bool = False  # Whether only this request causes the failure, so that others may succeed


class TooLong(Unanswered):
    """A request that does not fit the positions of the model."""


def refusal(
    status: int, body: Any, server: Server, request: Request, allow_partial: bool, retry_after: str | None = None
) -> InputError | Unanswered:
    """Return the error that an error reply of a server means: it ends all calls (InputError) or one try (Unanswered).

    Args:
        status: HTTP status. For an error in a reply of status 200, the status that the error names, or 400.
        body: Body of the reply: the bytes, or a parsed object.
        allow_partial: Do not end the other calls if the server rejects this request.
    """
    codes = _codes(body)
    is_filter = any(code.replace("datainspection", "data_inspection_") in OF_FILTER for code in codes) or (
        status in FILTER_STATUSES and FILTER_MESSAGE.search(_message(body)[:MOST_READ]) is not None
    )
    if status in (401, 403) and not is_filter:
        return InputError(f"{server.who}: the server at {server.address} refuses the key (status {status})")
    message = printable(server.scrubber.text(_message(body)))[:MOST_READ]
    cause = f"status {status}" + (f": {message[:MOST_SHOWN]}" if message else "")
    if "insufficient_quota" in codes:
        return InputError(f"{server.who}: the quota of the account is used up ({cause})")
    if is_filter:
        return Unanswered(f"the server's content filter refused the prompt ({cause})", passes=False, is_of_request=True)
    if status >= 500 or status in PASSING:
        wait = _retry_after(retry_after)
        if wait is not None and wait > MOST_RETRY_AFTER_SECONDS:
            return Unanswered(f"{cause}, the server asks to wait {wait:g} s", passes=False)
        return Unanswered(cause, wait=wait)
    if status in OF_ONE_REQUEST and ("context_length_exceeded" in codes or OF_LENGTH.search(message)):
        return TooLong(cause, passes=False, is_of_request=True)
    if (remedy := _parameter_remedy(message, server)) is not None:
        return refused(server, request, f"{cause}; {remedy}")
    if status in OF_ONE_REQUEST and allow_partial:
        return Unanswered(cause, passes=False)
    return refused(server, request, cause, of_one=status in OF_ONE_REQUEST)


def redirected(error: Redirected, server: Server) -> InputError:
    """Return the error for a redirect that is not followed, with the address that must be set instead."""
    if error.target is None:
        return InputError(f"{server.who}: the server at {server.address} redirects to an invalid address")
    target = server.scrubber.text(error.target)[:MOST_SHOWN]
    base_url = target.removesuffix("/").removesuffix("/chat/completions")
    return InputError(
        f"{server.who}: the server at {server.address} redirects to {target}, which is not followed; if that "
        f"address is meant, set {server.group}.base_url={base_url}"
    )


def refused(server: Server, request: Request, cause: str, of_one: bool = False) -> InputError:
    """Return the error that ends all calls, because the server would refuse the other calls too.

    Args:
        of_one: Whether only this request may be wrong.
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
    """Return the codes and types of an error and of its inner errors."""
    error = _error(body)
    found = set()
    while isinstance(error, dict):
        found |= {code.lower() for name in ("code", "type") if isinstance(code := error.get(name), str)}
        error = error.get("innererror")
    return found


def _parameter_remedy(message: str, server: Server) -> str | None:
    """Return how to rename or drop the parameter that an error names, or None if the error names none."""
    if not OF_PARAMETER.search(message):
        return None
    name = next((name for name in RENAMED if re.search(rf"(?<![\w.]){name}(?!\w)", message)), None)
    if name is None:
        return None
    if name in ("logprobs", "top_logprobs"):
        return "suite.scoring=vote needs no log-probabilities"
    to = "max_completion_tokens" if name == "max_tokens" else "NAME"
    return (
        f"{server.group}.rename_parameters='{{{name}: {to}}}' renames the parameter, "
        f"{server.group}.drop_parameters='[{name}]' leaves it out"
    )


def _retry_after(header: str | None) -> float | None:
    """Return the seconds that a server asks to wait; None if it gives no number."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
