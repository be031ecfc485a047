"""Answers of a model that an OpenAI-compatible server has, such as `vllm serve FOLDER --generation-config vllm`."""

import asyncio
import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.generators.conversation import Answer, Prompt
from sftmix.evaluation.generators.fitting import shorter
from sftmix.evaluation.judge.call import Reply, Request
from sftmix.evaluation.judge.calls import complete_all
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.error_replies import Unanswered


class ServerGenerator:
    """A generator of `sftmix.evaluation.generators.answers`, many prompts at a time.

    The server tokenizes, applies its own chat template and draws from all tokens by the seed that is sent: another
    server, or another version of it, may answer otherwise.

    Args:
        server: which, and how it is called.
        identity: of the weights that it is said to have.
        seed: of the draws.
    """

    def __init__(self, server: Server, *, identity: str | None, seed: int) -> None:
        """Nothing is asked yet."""
        self._server, self._seed = server, seed
        self.settings: Mapping[str, Any] = {
            "backend": "openai",
            "model": server.model,
            "identity": identity,
            "seed": seed,
            "extra_body": dict(server.extra_body),
        }
        if server.rename:
            self.settings = {**self.settings, "rename_parameters": dict(server.rename)}
        if server.drop:
            self.settings = {**self.settings, "drop_parameters": sorted(server.drop)}

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """The place of each among the prompts, and its answer, as they come.

        Raises:
            InputError: calls failed, or the server changed its model meanwhile.
        """
        requests = [self._request(prompt) for prompt in prompts]
        done: deque[tuple[int, Answer]] = deque()
        served: set[str] = set()
        came = asyncio.Event()
        num_reasoning = 0

        def received(place: int, reply: Reply) -> None:
            nonlocal num_reasoning
            num_reasoning += reply.has_reasoning and not _said(reply).strip()
            served.add(reply.served_model)
            if len(served) > 1:
                raise InputError(f"{self._server.who}: it changed its model meanwhile: {', '.join(sorted(served))}")
            done.append((place, _answer(reply, requests[place], prompts[place])))
            came.set()

        def shorter_at(place: int, said: str) -> Request | None:
            request = shorter(requests[place], prompts[place].max_new_tokens, said)
            if request is None:
                done.append((place, _without_room(requests[place], prompts[place])))
                came.set()
            else:
                requests[place] = request
            return request

        with asyncio.Runner() as runner:
            calls = runner.get_loop().create_task(
                complete_all(self._server, requests, accepts=_accepts, received=received, shorter=shorter_at)
            )
            calls.add_done_callback(lambda _: came.set())
            while not calls.done():
                runner.run(_next(came))
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
            messages=tuple(turn._asdict() for turn in prompt.turns),
            round=prompt.round,
            temperature=prompt.temperature,
            max_tokens=prompt.max_new_tokens,
            seed=_seed(self._seed, prompt),
        )


def _without_room(request: Request, prompt: Prompt) -> Answer:
    """The answer to a last turn that alone fills the model: empty, and counted as cut. A part of it is not asked."""
    sha256 = hashlib.sha256(json.dumps(request.messages).encode()).hexdigest()
    return Answer("", "length", 0, sha256, num_dropped_turns=len(prompt.turns) - len(request.messages))


def _answer(reply: Reply, request: Request, prompt: Prompt) -> Answer:
    return _without_room(request, prompt)._replace(
        text=_said(reply),
        finish=reply.finish,
        num_tokens=reply.record["usage"]["completion_tokens"],
        served_model=reply.served_model or None,
        system_fingerprint=reply.record["system_fingerprint"],
        date=reply.record["date"],
    )


def _said(reply: Reply) -> str:
    """Return what the model said: its text, or what it said as a refusal."""
    return reply.text or reply.refusal or ""


def _seed(seed: int, prompt: Prompt) -> int:
    """A seed of 31 bits, which every server takes: no answer depends on what else is asked."""
    text = f"{seed}/{prompt.round}/{prompt.id}/{prompt.turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


async def _next(came: asyncio.Event) -> None:
    await came.wait()
    came.clear()


def _accepts(_: int, reply: Reply) -> str | None:
    if reply.finish.startswith("content_filter"):  # also Gemini's "content_filter: SAFETY"
        raise Unanswered("the server's content filter cut the answer", is_paid=True, is_of_request=True)
    if reply.finish not in ("stop", "length"):
        return f"an answer that ended by {reply.finish or 'no finish_reason'}"
    if reply.record["usage"] is None:
        return "an answer without its number of tokens"
    return None
