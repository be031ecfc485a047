"""Read a chat completion of a server, and check each field before it is kept.

The types of `openai` are not used: `openai` does not validate replies, and its types exclude values that servers of
open models send (a list of parts as content, other finish reasons).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.error_replies import Unanswered, printable
from sftmix.evaluation.judge.reasoning import verdict_start
from sftmix.evaluation.judge.requests import Reply, Request

MOST_ALTERNATIVES = 100  # of a token
MOST_ABOVE_ZERO = 1e-3  # of a log-probability, which rounding may cause; it counts as 0
MOST_PROBABILITY = 1.05  # sum over the alternatives of a token, which rounding may cause
MOST_CHARACTERS = 2**21  # of a text, more than the context of any current model
MOST_NAME = 300  # characters of a model's name
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
REASONING_PARTS = ("thinking", "reasoning")
_NO_CHARACTERS = re.compile("[\ud800-\udfff\0]")  # half a surrogate pair, and NUL


@dataclass(eq=False)
class ErrorInReply(Exception):
    """A reply of status 200 whose parsed body is an error."""

    body: Mapping[str, Any]


def read_completion(content: bytes, server: Server, request: Request) -> Reply:
    """Return the reply in the body of a chat completion, without secrets of the server.

    `content` of the message may be a text, null, or a list of parts, whose texts are joined. Optional fields (usage,
    system_fingerprint) are None if they have a wrong type.

    Raises:
        ErrorInReply: If the body is an error although the status is 200.
        Unanswered: If a field has a wrong type or value.
    """
    body = _checked(_parsed(content, server), dict, "the reply", "an object", server)
    if body.get("error") and not body.get("choices"):
        raise ErrorInReply(body)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _wrong("choices", choices, "a list with an object", server)
    choice = choices[0]
    message = _checked(choice.get("message"), dict, "message", "an object", server)
    finish = _checked(choice.get("finish_reason"), str | None, "finish_reason", "a text", server)
    model = _checked(body.get("model"), str | None, "model", "a text", server)
    refusal = _checked(message.get("refusal"), str | None, "message.refusal", "a text or null", server)
    raw = _text(message.get("content"), server)
    if len(raw) > MOST_CHARACTERS:
        raise _fault(f"a reply of {len(raw):,} characters, expected at most {MOST_CHARACTERS:,}")
    served_model = _name(model, server) or ""
    record = {
        "requested_model": server.model,
        "served_model": served_model,
        "system_fingerprint": _name(body.get("system_fingerprint"), server),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "usage": _usage(body.get("usage")),
    }
    return Reply(
        _clean(raw, server),
        printable(_clean(finish or "", server))[:40],
        served_model,
        None if request.top_logprobs is None else _top_logprobs(choice.get("logprobs"), raw, server),
        record,
        refusal=printable(_clean(refusal[:1000], server))[:200] if refusal else None,
        has_reasoning=_has_reasoning(message, body.get("usage")),
    )


def without_half_characters(text: str) -> str:
    """Return the text with U+FFFD instead of lone surrogates and NUL, which files and requests cannot contain."""
    return _NO_CHARACTERS.sub("\ufffd", text)


def _parsed(content: bytes, server: Server) -> Any:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _fault("a reply that is not UTF-8, expected a chat completion") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        begins = printable(server.scrubber.text(text[:1000]))[:60].strip()
        raise _fault(f"a reply that is not JSON, expected a chat completion (begins: {begins!r})") from None


def _fault(cause: str) -> Unanswered:
    return Unanswered(cause, is_paid=True)


def _wrong(field: str, value: Any, expected: str, server: Server) -> Unanswered:
    """Return the error for a field with a wrong type or value. A later try may succeed."""
    shown = "nothing" if value is None else json.dumps(value)[:2000]
    shown = printable(server.scrubber.text(shown))[:60]
    return _fault(f"a reply that cannot be read: {field} is {shown}, expected {expected}")


def _checked(value: Any, kind: Any, field: str, expected: str, server: Server) -> Any:
    """Return the value if it has a type; raise the error of `_wrong` otherwise."""
    if not isinstance(value, kind):
        raise _wrong(field, value, expected, server)
    return value


def _text(content: Any, server: Server) -> str:
    """Return the text of a message. For a list of parts, join the texts except reasoning."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in _checked(content, list, "message.content", "a text, null or a list of text parts", server):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in REASONING_PARTS:
            continue
        if kind not in ("text", "output_text") or not isinstance(part.get("text"), str):
            raise _wrong("a part of message.content", part, '{"type": "text", "text": "..."}', server)
        texts.append(part["text"])
    return "".join(texts)


def _clean(text: str, server: Server) -> str:
    return server.scrubber.text(without_half_characters(text))


def _name(value: Any, server: Server) -> str | None:
    """Return a name that a server sent, as one line, or None if it is not a text."""
    if not isinstance(value, str):
        return None
    return printable(_clean(value[: 10 * MOST_NAME], server)).replace("\n", " ")[:MOST_NAME]


def _usage(usage: Any) -> dict[str, int] | None:
    """Return the numbers of tokens, or None if one is missing or invalid."""
    if not isinstance(usage, dict):
        return None
    counts: dict[str, Any] = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return counts if all(type(count) is int and 0 <= count < 2**31 for count in counts.values()) else None


def _has_reasoning(message: Mapping[str, Any], usage: Any) -> bool:
    """Return whether a message has reasoning beside its content, or the usage counts reasoning tokens."""
    content = message.get("content")
    if any(message.get(name) for name in REASONING_FIELDS):
        return True
    if isinstance(content, list) and any(part.get("type") in REASONING_PARTS for part in content):
        return True
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    tokens = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return isinstance(tokens, int) and tokens > 0


def _top_logprobs(logprobs: Any, text: str, server: Server) -> dict[str, float] | None:
    """Return the log-probabilities of the alternatives of the verdict's first token; None if the server sent none.

    The verdict's first token is the first token with a visible character after the reasoning, or the first of all.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    if logprobs is None or (isinstance(logprobs, dict) and tokens is None):
        return None
    if not isinstance(tokens, list):
        raise _wrong("logprobs", logprobs, "an object with a list of tokens in content", server)
    if not all(isinstance(token, dict) and isinstance(token.get("token"), str) for token in tokens):
        raise _wrong("a token of logprobs", tokens[:1], "an object with a text in token", server)
    index = _verdict_index([token["token"] for token in tokens], text)
    alternatives = None if index is None else tokens[index].get("top_logprobs")
    if alternatives is None:
        return None
    found: dict[str, float] = {}
    for alternative in _checked(alternatives, list, "top_logprobs", "a list of tokens", server)[:MOST_ALTERNATIVES]:
        token, logprob = _alternative(alternative, server)
        if math.isfinite(logprob):  # of two tokens with the same text, the likelier one counts
            found[token] = max(logprob, found.get(token, -math.inf))
    total = sum(map(math.exp, found.values()))
    if total > MOST_PROBABILITY:
        cause = f"the probabilities of the alternatives of a token add up to {total:.3g}, expected at most 1"
        raise _fault(f"{cause}: this is a fault of the server")
    return server.scrubber.tokens(found) or None


def _alternative(alternative: Any, server: Server) -> tuple[str, float]:
    token = alternative.get("token") if isinstance(alternative, dict) else None
    if not isinstance(token, str):
        raise _wrong("an alternative of top_logprobs", alternative, "an object with a text in token", server)
    logprob = alternative.get("logprob")
    value = math.nan
    if isinstance(logprob, int | float) and not isinstance(logprob, bool):
        value = float(min(max(logprob, -1e308), 1e308)) if isinstance(logprob, int) else logprob
    if math.isnan(value) or value > MOST_ABOVE_ZERO:
        shown = printable(server.scrubber.text(json.dumps(logprob)[:200]))[:40]
        cause = f"the log-probability of token {server.scrubber.text(token)[:20]!r} is {shown}"
        raise _fault(f"{cause}, expected a number of at most 0: this is a fault of the server")
    return without_half_characters(token), min(value, 0.0)


def _verdict_index(tokens: list[str], text: str) -> int | None:
    """Return the index of the verdict's first token; None if the reply is reasoning to its end.

    Args:
        tokens: Tokens with log-probabilities, with or without the tokens of the reasoning.
        text: Content of the message, without the reasoning if the server has separated it.
    """
    joined = "".join(tokens)
    start = verdict_start(joined)
    if start is None or not tokens:
        return None
    if start == 0 and text.strip() and len(joined) > len(text) and joined.rstrip().endswith(text.strip()):
        start = len(joined.rstrip()) - len(text.strip())
    if start == 0:
        return 0
    begin = 0
    for index, token in enumerate(tokens):
        if token[max(0, start - begin) :].strip():
            return index
        begin += len(token)
    return None
