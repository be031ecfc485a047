"""Who rates answers: what a judge said once is kept and never asked again, and two judges are never mixed."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.call import Reply, Request
from sftmix.evaluation.client import Server
from sftmix.evaluation.cost import Estimate, Price, about_tokens
from sftmix.evaluation.fake_judge import MODEL as FAKE_MODEL
from sftmix.evaluation.fake_judge import fake_reply
from sftmix.evaluation.journal import Journal, open_journal, read_journal
from sftmix.evaluation.server import body_of, complete_all
from sftmix.terminal import counted
from sftmix.training.progress import progress_bar


class Judge:
    """Somebody who answers requests, with a journal of what was said.

    Args:
        name: in results: scores of judges of different names are never averaged.
        journal: of this judge.
        server: who is called; None: the stand-in.
        price: of the server's tokens, where it is known.
    """

    def __init__(self, name: str, journal: Journal, server: Server | None, price: Price | None) -> None:
        """Nothing is asked yet."""
        self.name, self._journal, self._server, self._price = name, journal, server, price

    def ask(
        self,
        requests: Sequence[Request],
        *,
        accepts: Callable[[Reply], str | None],
        template_sha256: str,
        title: str,
        show_progress: bool,
        allow_partial: bool = False,
    ) -> list[Reply | None]:
        """The replies to requests, in their order: from the journal what is there, the rest is called.

        Args:
            requests: what is asked.
            accepts: says why a reply cannot be counted, or None. Such a reply is asked for again and never kept.
            template_sha256: of the prompt template, for the record.
            title: of the progress bar.
            show_progress: whether there is one.
            allow_partial: a call that failed gives None, instead of an error.

        Raises:
            InputError: calls failed, or the judge is another than the journal's.
        """
        keys = [self._key(request) for request in requests]
        replies: dict[str, Reply] = {}
        for key in keys:
            if key in self._journal and accepts(kept := _read(self._journal[key])) is None:
                replies[key] = kept
        missing = {key: r for key, r in zip(keys, requests, strict=True) if key not in replies}
        if missing:
            self._refuse_other(None)
        todo = list(missing.items())
        with progress_bar(len(todo), title, "call", hide=not show_progress or not todo) as bar:

            def usable(place: int, reply: Reply) -> str | None:
                return _fault(todo[place][1], reply) or accepts(reply)

            def keep(place: int, reply: Reply) -> None:
                key, request = todo[place]
                self._refuse_other(reply.served_model)
                self._journal.append(key, self._record(request, reply, template_sha256))
                replies[key] = _read(self._journal[key])
                bar.update()

            causes = self._call([request for _, request in todo], usable, keep, allow_partial)
        if causes and not allow_partial:
            raise InputError(
                f"judge {self.name}: {len(causes):,} of {counted(len(requests), 'call')} failed "
                f"({causes[min(causes)]}); run the same command again, it asks those alone"
            )
        return [replies.get(key) for key in keys]

    def estimate(self, requests: Sequence[Request], expected_completion_tokens: int) -> Estimate:
        """What the calls would cost that are not in the journal; nothing is asked."""
        keys = {self._key(request): request for request in requests}
        missing = [request for key, request in keys.items() if key not in self._journal]
        prompt_tokens = sum(about_tokens(request.messages) for request in missing)
        completion_tokens = len(missing) * expected_completion_tokens
        return Estimate(len(missing), len(keys) - len(missing), prompt_tokens, completion_tokens, self._price)

    @property
    def _model(self) -> str:
        return self._server.model if self._server is not None else FAKE_MODEL

    def _request_sha256(self, request: Request) -> str:
        """Of what decides a reply. A server's address does not: the next job may have it on another machine."""
        body: dict[str, Any] = body_of(request, self._model)
        if self._server is not None and self._server.extra_body:
            body["extra_body"] = dict(self._server.extra_body)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def _key(self, request: Request) -> str:
        call = f"{self._request_sha256(request)}/round {request.round}/draw {request.draw}"
        return hashlib.sha256(call.encode()).hexdigest()

    def _record(self, request: Request, reply: Reply, template_sha256: str) -> dict[str, Any]:
        return {
            "name": request.name,
            "judge": self.name,
            "round": request.round,
            "draw": request.draw,
            "request_sha256": self._request_sha256(request),
            "template_sha256": template_sha256,
            **reply.record,
            "base_url": self._server and self._server.address,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "text": reply.text,
            "finish": reply.finish,
            "top_logprobs": reply.top_logprobs,
        }

    def _refuse_other(self, served_model: str | None) -> None:
        """Refuse a model beside another's judgments: the requested one before a call, the served one after it."""
        kind, now = ("requested_model", self._model) if served_model is None else ("served_model", served_model)
        first = next(iter(self._journal), None)  # all others were compared with it
        if first is not None and first[kind] != now:
            verb = "asks for" if served_model is None else "is served by"
            raise InputError(
                f"judge {self.name}: it {verb} model {now} now, but {self._journal.file} holds "
                f"judgments of {first[kind]}; give it another name by judge.name=NAME, or move that file away"
            )

    def _call(
        self,
        requests: Sequence[Request],
        accepts: Callable[[int, Reply], str | None],
        received: Callable[[int, Reply], None],
        allow_partial: bool,
    ) -> Mapping[int, str]:
        if not requests:
            return {}
        if self._server is not None:
            calls = complete_all(
                self._server, requests, accepts=accepts, received=received, allow_partial=allow_partial
            )
            return asyncio.run(calls)
        causes = {}
        for place, request in enumerate(requests):
            reply = fake_reply(request)
            if (cause := accepts(place, reply)) is not None:
                causes[place] = f"{request.name}: {cause}"
            else:
                received(place, reply)
        return causes


@contextmanager
def open_judge(
    folder: Path,
    *,
    name: str,
    backend: str,
    model: str | None,
    base_url: str | None,
    api_key: str | None,
    concurrency: int,
    max_retries: int,
    timeout: float,
    price: Price | None,
    extra_body: Mapping[str, Any] | None,
    to_estimate: bool = False,
) -> Iterator[Judge]:
    """A judge with its journal `judgments-<name>.jsonl` in a folder, for this process alone.

    Args:
        folder: of the journal.
        name: of the judge.
        backend: openai, or fake.
        model: as it is requested.
        base_url: of an OpenAI-compatible server; None: OpenAI's.
        api_key: where the server wants one.
        concurrency: calls at a time.
        max_retries: of a call.
        timeout: seconds of one try.
        price: where it is known.
        extra_body: what the server wants beside the request.
        to_estimate: nothing will be asked, so that another process may go on writing the journal.

    Raises:
        InputError: another process has the journal open, or it cannot be read.
    """
    server = None
    if backend == "openai":
        assert model is not None
        server = Server(
            who=f"judge {name}",
            model=model,
            base_url=base_url,
            api_key=api_key,
            concurrency=concurrency,
            max_retries=max_retries,
            timeout=timeout,
            extra_body=extra_body or {},
        )
    file = folder / f"judgments-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.jsonl"
    with nullcontext(read_journal(file)) if to_estimate else open_journal(file) as journal:
        yield Judge(name, journal, server, price)


def _fault(request: Request, reply: Reply) -> str | None:
    """Why a reply can be of no use to anyone."""
    if not reply.text.strip():
        return "an empty reply"
    if reply.finish not in ("stop", "length"):
        return f"a reply that ended by {reply.finish}"
    if request.top_logprobs is not None and not reply.top_logprobs:
        return "a reply without log-probabilities"
    return None


def _read(record: Mapping[str, Any]) -> Reply:
    return Reply(record["text"], record["finish"], record["served_model"], record["top_logprobs"], record)
