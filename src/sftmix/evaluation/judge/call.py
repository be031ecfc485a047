"""One call of a judge, or of a model behind a server: the request and the reply."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What is asked.

    Attributes:
        name: says to people what is judged: "question 81, turn 1".
        messages: of role and content, as the server takes them.
        round: of the suite, counted from 1: the same request in another round is another call.
        temperature: of the draws.
        max_tokens: of the reply.
        top_logprobs: alternatives of the first token whose log-probabilities are wanted; None: none.
        draw: of several draws of one request (votes), counted from 0.
        seed: that the server is to draw with; None: none is sent.
    """

    name: str
    messages: tuple[Mapping[str, str], ...]
    round: int
    temperature: float
    max_tokens: int
    top_logprobs: int | None = None
    draw: int = 0
    seed: int | None = None


class Reply(NamedTuple):
    """What a server replied.

    Attributes:
        text: of the reply, with the reasoning that the server has not separated.
        finish: stop, length, or another word of the server.
        served_model: the model that the server names.
        top_logprobs: alternatives of the verdict's first token with their natural log-probabilities; None if they were
            not asked for, or not sent.
        record: everything that is kept of the reply: key, date, models, tokens.
        refusal: what the model said as a refusal, in a field of its own; None if it did not refuse.
        has_reasoning: whether the server has separated reasoning from the text.
    """

    text: str
    finish: str
    served_model: str
    top_logprobs: Mapping[str, float] | None
    record: Mapping[str, Any]
    refusal: str | None = None
    has_reasoning: bool = False
