"""Call an OpenAI-compatible server concurrently. Temporary failures are retried; others end with a one-line error."""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sftmix.evaluation.judge.client import OPENAI, Redirected, Server, UnreadableReply, make_client
from sftmix.evaluation.judge.completion import ErrorInReply, read_completion, without_half_characters
from sftmix.evaluation.judge.error_replies import TooLong, Unanswered, redirected, refusal, refused
from sftmix.evaluation.judge.requests import Reply, Request, body_of

if TYPE_CHECKING:
    import openai

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # between two tries; the time doubles with each try
MOST_UNUSABLE = 3  # unusable replies of one call, since each is paid for
MOST_SILENT = 3  # tries of one call without a reply in time, since each may take minutes
MOST_IN_A_ROW = 10  # failed calls, after which the server counts as unavailable
SECONDS_BETWEEN_LINES = 60.0  # of reports on retries


async def complete_all(
    server: Server,
    requests: Sequence[Request],
    *,
    accepts: Callable[[int, Reply], str | None],
    received: Callable[[int, Reply], None],
    allow_partial: bool = False,
    shorter: Callable[[int, str], Request | None] | None = None,
) -> dict[int, str]:
    """Send requests in their order; return the cause of each failed call by index.

    Args:
        accepts: Receives the index and the reply; returns why the reply cannot be used, or None. An unusable reply is
            requested again. May raise `Unanswered`.
        received: Receives index and reply of each call as soon as the reply is there.
        allow_partial: Do not end the other calls if the server rejects a request.
        shorter: Receives the index of a request that is too long for the server, and the server's message. Returns the
            request to try instead, or None to skip the request, which is not a failure.

    Raises:
        InputError: If the server refuses the key, the model, or a request.
    """
    places = asyncio.Semaphore(server.concurrency)
    failed: dict[int, str] = {}
    in_a_row = num_retries = 0
    reported = float("-inf")

    def retried(cause: str) -> None:
        """Count a retry, and report the first one and later at most one a minute."""
        nonlocal num_retries, reported
        num_retries += 1
        if time.monotonic() - reported >= SECONDS_BETWEEN_LINES:
            reported, one_line = time.monotonic(), " ".join(cause.split())
            tqdm.write(f"{server.who}: calls are tried again ({num_retries:,} so far): {one_line}", file=sys.stderr)

    async def complete(request: Request, place: int) -> Reply:
        num_unusable = num_silent = attempt = 0
        while True:
            try:
                reply = await _attempt(server, client, request, allow_partial)
                if (cause := accepts(place, reply)) is not None:
                    raise Unanswered(cause, is_paid=True)
                return reply
            except Unanswered as unanswered:
                num_unusable += unanswered.is_paid
                num_silent += unanswered.is_silence
                is_last = attempt == server.max_retries or num_unusable == MOST_UNUSABLE or num_silent == MOST_SILENT
                if is_last or in_a_row >= MOST_IN_A_ROW or not unanswered.passes:
                    raise
                wait = unanswered.wait
                retried(f"{request.name}: {unanswered.cause}")
            doubled = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
            # Random, so that calls that failed together are not repeated together
            await asyncio.sleep(doubled * random.uniform(0.75, 1.0) if wait is None else wait)
            attempt += 1

    async def complete_shortened(place: int) -> Reply | None:
        request: Request | None = requests[place]
        while request is not None:
            try:
                return await complete(request, place)
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
                failed[place] = f"not sent, {in_a_row} calls in a row had failed"
                return
            try:
                reply = await complete_shortened(place)
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


async def _attempt(server: Server, client: "openai.AsyncOpenAI", request: Request, allow_partial: bool) -> Reply:
    import openai

    body = body_of(request, server.model, server.rename, server.drop)
    model, sent = body.pop("model"), body.pop("messages")
    messages: Any = [{k: without_half_characters(v) for k, v in message.items()} for message in sent]
    completions: Any = client.chat.completions.with_raw_response
    try:
        async with asyncio.timeout(server.timeout):  # the client's timeout is for one read only
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
        after = error.response.headers.get("retry-after")
        raise refusal(error.status_code, error.response.content, server, request, allow_partial, after) from None
    except (openai.APITimeoutError, TimeoutError):
        raise Unanswered(f"no reply within {server.timeout:g} s", is_silence=True) from None
    except openai.APIConnectionError as error:
        cause = server.scrubber.text(str(error.__cause__ or error))[:300]
        raise Unanswered(f"no connection to {server.address} ({cause})") from None
