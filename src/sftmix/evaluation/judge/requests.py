"""A request to a judge or to a model behind a server, its body, and the reply."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Request(NamedTuple):
    """A request to a judge or to a model behind a server."""

    name: str  # What is judged, for messages: "question 81, turn 1"
    messages: tuple[Mapping[str, str], ...]  # Role and content of each message
    round: int  # Round of the suite, counted from 1. The same request in another round is another call.
    temperature: float
    max_tokens: int
    # Number of alternatives of each token whose log-probabilities are requested; None requests none
    top_logprobs: int | None = None
    draw: int = 0  # Index of the draw if one request is sent several times (votes)
    seed: int | None = None  # Seed of the server's draws; None sends no seed


class Reply(NamedTuple):
    """A reply of a server."""

    text: str  # Text of the reply, including reasoning that the server has not separated
    finish: str  # stop, length, or another word of the server
    served_model: str  # As the server names it
    # Natural log-probabilities of the alternatives of the verdict's first token, if they were sent
    top_logprobs: Mapping[str, float] | None
    record: Mapping[str, Any]  # What is kept of the reply: key, date, models, tokens
    refusal: str | None = None  # Text of the model's refusal, which has its own field in the protocol
    has_reasoning: bool = False  # Whether the server has separated reasoning from the text


def body_of(
    request: Request, model: str, rename: Mapping[str, str] | None = None, drop: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the body of a request; `rename` and `drop` as in `Server`. Two requests of one body are the same."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.seed is not None:
        body |= {"seed": request.seed, "top_p": 1.0}  # a server may have another nucleus as its default
    return {(rename or {}).get(name, name): value for name, value in body.items() if name not in drop}


# Parameters that a server may take under another name, or not at all
RENAMED = ("max_tokens", "temperature", "logprobs", "top_logprobs", "seed", "top_p")
# What a judge's request sets, and two parameters that would change the kind of reply
REQUESTED = {*body_of(Request("", (), 1, 0.0, 1, top_logprobs=1), ""), "n", "stream"}
