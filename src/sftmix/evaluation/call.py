"""One call of a judge, or of a model behind a server: what is asked and what comes back."""

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
    """What came back.

    Attributes:
        text: of the reply.
        finish: stop or length.
        served_model: what the server says that it runs.
        top_logprobs: of the first token, its alternatives with their natural log-probabilities; None where not asked.
        record: everything that is kept of it: key, date, models, tokens.
    """

    text: str
    finish: str
    served_model: str
    top_logprobs: Mapping[str, float] | None
    record: Mapping[str, Any]
