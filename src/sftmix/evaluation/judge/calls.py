"""Calls of an OpenAI-compatible server, many at a time: what may pass is tried again, what cannot ends in one line."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftmix.evaluation.judge.call import Reply, Request
from sftmix.evaluation.judge.client import OPENAI, Redirected, Server, UnreadableReply, make_client
from sftmix.evaluation.judge.completion import read_completion, without_half_characters
from sftmix.evaluation.judge.error_replies import ErrorInReply, TooLong, Unanswered, redirected, refusal, refused
from sftmix.evaluation.judge.retries import Retries

if TYPE_CHECKING:
    import openai

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # between two tries: twice as long each time
MOST_UNUSABLE = 3  # replies of one call: they are paid for
MOST_SILENT = 3  # tries of one call that bring nothing in their time: each may take minutes
MOST_IN_A_ROW = 10  # calls that fail one after the other: the server is down, or cannot do what is asked


def body_of(
    request: Request, model: str, rename: Mapping[str, str] | None = None, drop: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what is sent. Two requests with the same body ask the same.

    Args:
        request: What is asked.
        model: As the server calls it.
        rename: Parameters by the name under which the server takes them.
        drop: Parameters that are not sent.
    """
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
        accepts: says of a place's reply why it cannot be used, or None. Such a reply is asked for again. May raise
            Unanswered itself.
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
                    raise refused(server, request, too_long.cause, of_one=True) from None
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
                in_a_row = 0 if unanswered.is_of_request else in_a_row + 1
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

    body = body_of(request, server.model, server.rename, server.drop)
    body["messages"] = [{k: without_half_characters(v) for k, v in one.items()} for one in body["messages"]]
    model, messages = body.pop("model"), body.pop("messages")
    completions: Any = client.chat.completions.with_raw_response
    try:
        async with asyncio.timeout(server.timeout):  # the client's own is per read: a trickle would never end
            raw = await completions.create(model=model, messages=messages, extra_body=body | dict(server.extra_body))
        return read_completion(raw.content, server, request)
    except ErrorInReply as error:
        named = error.body["error"].get("code") if isinstance(error.body["error"], dict) else None
        status = named if type(named) is int and 400 <= named < 600 else 400
        raise refusal(status, error.body, server, request, allow_partial) from None
    except Redirected as error:
        raise redirected(error, server) from None
    except UnreadableReply as error:
        raise Unanswered(server.scrubber.text(str(error)), is_paid=True) from None
    except openai.APIStatusError as error:
        reply = error.response
        after = reply.headers.get("retry-after")
        raise refusal(error.status_code, reply.content, server, request, allow_partial, after) from None
    except (openai.APITimeoutError, TimeoutError):
        raise Unanswered(f"no reply within {server.timeout:g} s", is_silence=True) from None
    except openai.APIConnectionError as error:
        cause = server.scrubber.text(str(error.__cause__ or error))[:300]
        raise Unanswered(f"no connection to {server.address} ({cause})") from None
