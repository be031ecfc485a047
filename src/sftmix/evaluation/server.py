"""Calls of an OpenAI-compatible server, many at a time: what may pass is tried again, what cannot ends in one line."""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sftmix.evaluation.call import Reply, Request
from sftmix.evaluation.client import OPENAI, Server, make_client
from sftmix.evaluation.error_replies import TooLong, Unanswered, refusal, refused
from sftmix.evaluation.retries import Retries

if TYPE_CHECKING:
    import openai

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # between two tries: twice as long each time
MOST_UNUSABLE = 3  # replies of one call: they are paid for
MOST_SILENT = 3  # tries of one call that bring nothing in their time: each may take minutes
MOST_IN_A_ROW = 10  # calls that fail one after the other: the server is down, or cannot do what is asked


def body_of(request: Request, model: str) -> dict[str, Any]:
    """What is sent: two requests with the same body ask the same."""
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
    return body


# What a judge's request says itself, and two parts that would bring another kind of reply than the one that is read.
REQUESTED = {*body_of(Request("", (), 1, 0.0, 1, top_logprobs=1), ""), "n", "stream"}


async def complete_all(
    server: Server,
    requests: Sequence[Request],
    *,
    accepts: Callable[[int, Reply], str | None],
    received: Callable[[int, Reply], None],
    allow_partial: bool = False,
    shorter: Callable[[int, str], Request | None] | None = None,
) -> dict[int, str]:
    """Call a server for each request; the causes of those that brought nothing, by place.

    Args:
        server: which.
        requests: in the order in which they are started.
        accepts: says of a place's reply why it cannot be used, or None. Such a reply is asked for again.
        received: gets the place and the reply of each call as soon as it is there.
        allow_partial: a request that the server calls wrong fails alone; without it, it ends them all.
        shorter: gets the place of a request that the server calls too long, and what it said of it: the request to try
            in its place, or None where there is none, and that is no failure. Without it, too long is wrong.

    Raises:
        InputError: the server refuses what no retry mends: the key, the model, the request.
    """
    places = asyncio.Semaphore(server.concurrency)
    failed: dict[int, str] = {}
    in_a_row = 0
    retries = Retries(server.who)

    async def complete(place: int) -> Reply | None:
        request: Request | None = requests[place]
        while request is not None:
            try:
                return await _complete(
                    server,
                    client,
                    request,
                    lambda reply: accepts(place, reply),
                    lambda: in_a_row >= MOST_IN_A_ROW,
                    retries.add,
                    allow_partial,
                )
            except TooLong as too_long:
                if shorter is None and not allow_partial:
                    raise refused(server, request, too_long.cause) from None
                if shorter is None:
                    raise
                request = shorter(place, too_long.cause)
        return None

    async def call(place: int) -> None:
        nonlocal in_a_row
        async with places:
            if in_a_row >= MOST_IN_A_ROW:
                failed[place] = f"not asked, {in_a_row} calls in a row had failed"
                return
            try:
                reply = await complete(place)
            except Unanswered as unanswered:
                failed[place] = f"{requests[place].name}: {unanswered.cause}"
                in_a_row += 1
            else:
                in_a_row = 0
                if reply is not None:
                    received(place, reply)

    try:
        async with (
            make_client(server.base_url or OPENAI, server.api_key, server.timeout) as client,
            asyncio.TaskGroup() as calls,
        ):
            for place in range(len(requests)):
                calls.create_task(call(place))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return failed


async def _complete(
    server: Server,
    client: "openai.AsyncOpenAI",
    request: Request,
    accepts: Callable[[Reply], str | None],
    gives_up: Callable[[], bool],
    retried: Callable[[str], None],
    allow_partial: bool,
) -> Reply:
    """The reply to a request, after as many tries as it takes and is allowed."""
    num_unusable = num_silent = 0
    for attempt in range(server.max_retries + 1):
        try:
            reply = await _attempt(server, client, request, allow_partial)
            if (cause := accepts(reply)) is not None:
                raise Unanswered(cause, is_paid=True)
            return reply
        except Unanswered as unanswered:
            num_unusable += unanswered.is_paid
            num_silent += unanswered.is_silence
            is_last = attempt == server.max_retries or num_unusable == MOST_UNUSABLE or num_silent == MOST_SILENT
            if is_last or gives_up() or not unanswered.passes:
                raise
            wait = unanswered.wait
            retried(f"{request.name}: {unanswered.cause}")
        doubled = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
        # Spread, so that calls which were refused together do not come back together.
        await asyncio.sleep(doubled * random.uniform(0.75, 1.0) if wait is None else wait)
    raise AssertionError("the last try returns or raises")


async def _attempt(server: Server, client: "openai.AsyncOpenAI", request: Request, allow_partial: bool) -> Reply:
    import openai

    body = body_of(request, server.model)
    try:
        async with asyncio.timeout(server.timeout):  # the client's own is per read: a trickle would never end
            completion: Any = await client.chat.completions.create(**body, extra_body=dict(server.extra_body) or None)
        return _reply(completion, server, request)
    except openai.APIStatusError as error:
        raise refusal(error, server, request, allow_partial) from None
    except (openai.APITimeoutError, TimeoutError):
        raise Unanswered(f"no reply within {server.timeout:g} s", is_silence=True) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise Unanswered(f"no connection to {server.address} ({server.without_key(str(cause))})") from None
    except (openai.APIError, ValueError, AttributeError, LookupError, TypeError):
        raise Unanswered("a reply that is no chat completion", is_paid=True) from None


def _reply(completion: Any, server: Server, request: Request) -> Reply:
    choice = completion.choices[0]
    usage = completion.usage
    served_model = str(completion.model or "")
    record = {
        "requested_model": server.model,
        "served_model": served_model,
        "system_fingerprint": completion.system_fingerprint,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "usage": usage and {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
    }
    top_logprobs = _top_logprobs(choice) if request.top_logprobs is not None else None
    return Reply(choice.message.content or "", str(choice.finish_reason), served_model, top_logprobs, record)


def _top_logprobs(choice: Any) -> dict[str, float] | None:
    """Alternatives of the first token; None where the server sent none."""
    tokens = choice.logprobs.content if choice.logprobs is not None else None
    if not tokens:
        return None
    found: dict[str, float] = {}
    for alternative in tokens[0].top_logprobs or []:
        if math.isfinite(alternative.logprob):  # of two with one text, the likelier
            found[alternative.token] = max(alternative.logprob, found.get(alternative.token, -math.inf))
    return found or None
