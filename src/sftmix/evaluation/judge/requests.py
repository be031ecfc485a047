"""A request to a judge or to a model behind a server, its body, and the reply."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Request(NamedTuple):
    """A request to a judge or to a model behind a server."""

    name: str  # Name in messages, such as "question 81, turn 1"
    messages: tuple[Mapping[str, str], ...]  # Role and content of each message
    round: int  # Round of the suite, counted from 1. The same request in another round is sent again.
    temperature: float
    max_tokens: int
    # Number of alternatives of each token whose log-probabilities are requested; None requests none
    top_logprobs: int | None = None
    draw: int = 0  # Index among equal requests (votes)
    seed: int | None = None  # Seed of the server's draws; None sends no seed


class Reply(NamedTuple):
    """A reply of a server."""

    text: str  # Text of the reply, including reasoning that the server has not separated
    finish: str  # stop, length, or another reason of the server
    served_model: str  # Name of the model in the reply
    # Log-probabilities of the alternatives of the verdict's first token, in nats; None if not sent
    top_logprobs: Mapping[str, float] | None
    record: Mapping[str, Any]  # Further fields that are kept: key, date, models, tokens
    refusal: str | None = None  # Field `refusal` of the protocol: why the model refuses to answer
    has_reasoning: bool = False  # Whether the server has separated reasoning from the text


def body_of(
    request: Request, model: str, rename: Mapping[str, str] | None = None, drop: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the body of a request; `rename` and `drop` as in `Server`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.seed is not None:
        body |= {"seed": request.seed, "top_p": 1.0}  # the server may have another default
    return {(rename or {}).get(name, name): value for name, value in body.items() if name not in drop}


# Parameters that a server may name differently or not accept
RENAMED = ("max_tokens", "temperature", "logprobs", "top_logprobs", "seed", "top_p")
# Parameters that a judge's request sets, and two that would change the form of the reply
REQUESTED = {*body_of(Request("", (), 1, 0.0, 1, top_logprobs=1), ""), "n", "stream"}
