"""Answers of a model behind an OpenAI-compatible server, such as `vllm serve FOLDER --generation-config vllm`."""

import asyncio
import hashlib
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sftmix.data.example import Message
from sftmix.data.prompts import without_oldest_turns
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import ROOM_FOR_ANSWER, Answer, Prompt, seed_of
from sftmix.evaluation.judge.calls import complete_all
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.error_replies import Unanswered
from sftmix.evaluation.judge.requests import Reply, Request

LEAST_ROOM = 16  # of an answer one in so many is the least that is asked for
POSITIONS = re.compile(r"context (?:length|size|window)\D{0,16}(\d{1,9})", re.IGNORECASE)


class ServerGenerator:
    """A `Generator` that sends many prompts at a time.

    The server tokenizes, applies its own chat template and draws from all tokens by the seed that is sent. Another
    server, or another version of it, may answer differently.

    Args:
        identity: Hash or commit of the weights that the server should have.
    """

    def __init__(self, server: Server, *, identity: str | None, seed: int) -> None:
        self._server, self._seed = server, seed
        self.settings: Mapping[str, Any] = {
            "backend": "openai",
            "model": server.model,
            "identity": identity,
            "seed": seed,
            "extra_body": dict(server.extra_body),
            **({"rename_parameters": dict(server.rename)} if server.rename else {}),
            **({"drop_parameters": sorted(server.drop)} if server.drop else {}),
        }

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each prompt and its answer, as they are received.

        Raises:
            InputError: If calls failed, or the server changed its model meanwhile.
        """
        requests = [self._request(prompt) for prompt in prompts]
        done: deque[tuple[int, Answer]] = deque()
        served: set[str] = set()
        changed = asyncio.Event()
        num_reasoning = 0

        def received(place: int, reply: Reply) -> None:
            nonlocal num_reasoning
            num_reasoning += reply.has_reasoning and not _text_of(reply).strip()
            served.add(reply.served_model)
            if len(served) > 1:
                raise InputError(f"{self._server.who}: it changed its model meanwhile: {', '.join(sorted(served))}")
            done.append((place, _answer(reply, requests[place], prompts[place])))
            changed.set()

        def shorter_at(place: int, message: str) -> Request | None:
            request = shorter(requests[place], prompts[place].max_new_tokens, message)
            if request is None:
                done.append((place, _without_room(requests[place], prompts[place])))
                changed.set()
            else:
                requests[place] = request
            return request

        async def wait() -> None:
            await changed.wait()
            changed.clear()

        with asyncio.Runner() as runner:
            calls = runner.get_loop().create_task(
                complete_all(self._server, requests, accepts=_accepts, received=received, shorter=shorter_at)
            )
            calls.add_done_callback(lambda _: changed.set())
            while not calls.done():
                runner.run(wait())
                while done:
                    yield done.popleft()
            causes = calls.result()
        if num_reasoning:
            print(
                f"{self._server.who}: {num_reasoning:,} of {len(prompts):,} answers are reasoning only and count as "
                "empty: raise suite.max_new_tokens, or switch reasoning off at the server",
                file=sys.stderr,
                flush=True,
            )
        if causes:
            raise InputError(
                f"{self._server.who}: {len(causes):,} of {len(prompts):,} answers failed ({causes[min(causes)]}); "
                "run the same command again, it asks for those only"
            )

    def _request(self, prompt: Prompt) -> Request:
        return Request(
            name=prompt.key,
            messages=tuple(message.as_dict() for message in prompt.turns),
            round=prompt.round,
            temperature=prompt.temperature,
            max_tokens=prompt.max_new_tokens,
            seed=seed_of(f"{self._seed}/{prompt.round}/{prompt.id}/{prompt.turn}"),
        )


def shorter(request: Request, max_new_tokens: int, message: str) -> Request | None:
    """Return the request to try after one that a server called too long; None if nothing is left to leave out.

    A server does not count tokens beforehand, so requests are tried. Room is kept for the whole answer or a quarter of
    the model's positions, whichever is less: first the answer gets that room, then the oldest turns are removed. If
    only the last turn is left and is too long, the room is halved, down to a sixteenth of the whole answer.

    Args:
        max_new_tokens: Length of a whole answer.
        message: Message of the server, which may name its number of positions.
    """
    found = POSITIONS.search(message)
    kept = min(max_new_tokens, max(1, int(found[1]) // ROOM_FOR_ANSWER)) if found else max_new_tokens
    if request.max_tokens > kept:
        return request._replace(max_tokens=kept)
    messages = without_oldest_turns([Message(one["role"], one["content"]) for one in request.messages])
    if messages is not None:
        return request._replace(messages=tuple(m.as_dict() for m in messages), max_tokens=max_new_tokens)
    half = request.max_tokens // 2
    return request._replace(max_tokens=half) if half >= max(1, max_new_tokens // LEAST_ROOM) else None


def _without_room(request: Request, prompt: Prompt) -> Answer:
    """Return the answer to a last turn that fills the model: empty, and counted as cut. No part of it is asked."""
    sha256 = hashlib.sha256(json.dumps(request.messages).encode()).hexdigest()
    return Answer("", "length", 0, sha256, num_dropped_turns=len(prompt.turns) - len(request.messages))


def _answer(reply: Reply, request: Request, prompt: Prompt) -> Answer:
    return _without_room(request, prompt)._replace(
        text=_text_of(reply),
        finish=reply.finish,
        num_tokens=reply.record["usage"]["completion_tokens"],
        served_model=reply.served_model or None,
        system_fingerprint=reply.record["system_fingerprint"],
        date=reply.record["date"],
    )


def _text_of(reply: Reply) -> str:
    return reply.text or reply.refusal or ""


def _accepts(_: int, reply: Reply) -> str | None:
    if reply.finish.startswith("content_filter"):  # also Gemini's "content_filter: SAFETY"
        raise Unanswered("the server's content filter cut the answer", is_paid=True, is_of_request=True)
    if reply.finish not in ("stop", "length"):
        return f"an answer that ended by {reply.finish or 'no finish_reason'}"
    if reply.record["usage"] is None:
        return "an answer without its number of tokens"
    return None
