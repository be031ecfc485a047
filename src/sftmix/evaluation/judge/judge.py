"""Asks a judge: each reply is kept and never asked for again, and two judges are never mixed."""

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.judge.call import Reply, Request
from sftmix.evaluation.judge.calls import body_of, complete_all
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.completion import MOST_ABOVE_ZERO
from sftmix.evaluation.judge.cost import Estimate, Price, about_tokens
from sftmix.evaluation.judge.error_replies import Unanswered
from sftmix.evaluation.judge.fake_judge import MODEL as FAKE_MODEL
from sftmix.evaluation.judge.fake_judge import fake_reply
from sftmix.evaluation.judge.journal import Journal, open_journal, read_journal
from sftmix.evaluation.judge.reasoning import verdict_of
from sftmix.terminal import counted
from sftmix.training.progress import progress_bar

SHOWN_CAUSES = 3  # of failed calls


class Judge:
    """Answers requests, from a journal of earlier replies or by calling a server.

    Args:
        name: In results: scores of judges of different names are never averaged.
        journal: The journal of this judge.
        server: The server that is called; None: the stand-in.
        price: The price of the server's tokens, if it is known.
        max_tokens: Of each reply, instead of the suite's; None: the suite's.
    """

    def __init__(
        self, name: str, journal: Journal, server: Server | None, price: Price | None, max_tokens: int | None = None
    ) -> None:
        """Nothing is asked yet."""
        self.name, self._journal, self._server, self._price = name, journal, server, price
        self._max_tokens = max_tokens

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
        """Return the replies to requests in their order. Requests that the journal has no reply to are sent.

        Args:
            requests: What is asked.
            accepts: Returns why a reply cannot be counted, or None. Such a reply is asked for again and never kept.
            template_sha256: Hash of the prompt template, for the record.
            title: Title of the progress bar.
            show_progress: Whether there is a progress bar.
            allow_partial: Return None for a call that failed, instead of raising.

        Raises:
            InputError: Calls failed, or the judge is another than the journal's.
        """
        requests = self._with_max_tokens(requests)
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
                _refuse_without_verdict(todo[place][1], reply)
                return accepts(reply)

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
                f"({_in_words(causes)}); run the same command again, it asks those only, or allow_partial=true "
                "scores the others"
            )
        return [replies.get(key) for key in keys]

    def estimate(self, requests: Sequence[Request], expected_completion_tokens: int) -> Estimate:
        """Return what the calls would cost that are not in the journal; nothing is asked."""
        requests = self._with_max_tokens(requests)
        keys = {self._key(request): request for request in requests}
        missing = [request for key, request in keys.items() if key not in self._journal]
        prompt_tokens = sum(about_tokens(request.messages) for request in missing)
        completion_tokens = len(missing) * expected_completion_tokens
        return Estimate(len(missing), len(keys) - len(missing), prompt_tokens, completion_tokens, self._price)

    def _with_max_tokens(self, requests: Sequence[Request]) -> Sequence[Request]:
        if self._max_tokens is None:
            return requests
        return [request._replace(max_tokens=self._max_tokens) for request in requests]

    @property
    def _model(self) -> str:
        return self._server.model if self._server is not None else FAKE_MODEL

    def _request_sha256(self, request: Request) -> str:
        """Hash what a reply depends on. The address of the server is left out: the next job may run it elsewhere."""
        rename, drop = (self._server.rename, self._server.drop) if self._server is not None else ({}, ())
        body: dict[str, Any] = body_of(request, self._model, rename, drop)
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
        """Refuse a model that differs from the journal's: the requested one before a call, the served one after it."""
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
    max_tokens: int | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    to_estimate: bool = False,
) -> Iterator[Judge]:
    """Open a judge with its journal `judgments-<name>.jsonl` in a folder, for this process only.

    Args:
        folder: Folder of the journal.
        name: Name of the judge.
        backend: openai, or fake.
        model: As it is requested.
        base_url: Address of an OpenAI-compatible server; None: OpenAI's.
        api_key: The key, if the server requires one.
        concurrency: Calls at a time.
        max_retries: Retries of a call.
        timeout: Seconds of one try.
        price: The price of tokens, if it is known.
        extra_body: What the server requires beside the request.
        max_tokens: Of each reply, instead of the suite's.
        rename: Parameters of the request by the name under which the server takes them.
        drop: Parameters of the request that are not sent.
        to_estimate: Nothing will be asked, so that another process may go on writing the journal.

    Raises:
        InputError: Another process has the journal open, or the journal cannot be read.
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
            rename=rename or {},
            drop=drop,
        )
    file = folder / f"judgments-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.jsonl"
    opened = nullcontext(read_journal(file, _why_no_record)) if to_estimate else open_journal(file, _why_no_record)
    with opened as journal:
        yield Judge(name, journal, server, price, max_tokens)


def _refuse_without_verdict(request: Request, reply: Reply) -> None:
    """Refuse a reply that has no verdict, whatever the suite reads from it.

    Raises:
        Unanswered: With the cause and, if there is one, the remedy.
    """
    if reply.finish.startswith("content_filter"):  # also Gemini's "content_filter: SAFETY"
        raise Unanswered("the server's content filter cut the reply", is_paid=True, is_of_request=True)
    if reply.refusal is not None and not reply.text.strip():
        raise Unanswered(f"the judge refused to answer: {reply.refusal!r}", is_paid=True, is_of_request=True)
    if not verdict_of(reply.text, reply.finish == "length").strip():
        is_reasoning = reply.has_reasoning or bool(reply.text.strip())
        raise Unanswered(
            _without_text(request, reply, is_reasoning),
            passes=request.temperature > 0 or not is_reasoning,
            is_paid=True,
        )
    if reply.finish not in ("stop", "length"):
        raise Unanswered(f"a reply that ended by {reply.finish or 'no finish_reason'}", is_paid=True)
    if request.top_logprobs is not None and not reply.top_logprobs:
        raise Unanswered("a reply without log-probabilities", is_paid=True)


def _without_text(request: Request, reply: Reply, is_reasoning: bool) -> str:
    remedy = (
        "raise judge.max_tokens, or switch reasoning off if the server can, such as by "
        "judge.extra_body='{chat_template_kwargs: {enable_thinking: false}}'"
    )
    if reply.finish == "length":
        what = "a reply of reasoning only" if is_reasoning else "an empty reply"
        return f"{what}, cut at max_tokens={request.max_tokens:,} before a verdict: {remedy}"
    if is_reasoning:
        return "a reply of reasoning only, which ended without a verdict"
    return "an empty reply"


def _in_words(causes: Mapping[int, str]) -> str:
    """Return the first call of each cause, with the number of other calls of that cause."""
    by_cause: dict[str, list[str]] = {}
    for _, cause in sorted(causes.items()):
        by_cause.setdefault(cause.partition(": ")[2].partition("(")[0].partition(": ")[0], []).append(cause)
    kinds = sorted(by_cause.values(), key=len, reverse=True)
    if len(kinds) == 1:
        return kinds[0][0]
    words = [f"{len(same):,} as {same[0]}" for same in kinds[:SHOWN_CAUSES]]
    return "; ".join(words) + ("; and others" if len(kinds) > SHOWN_CAUSES else "")


_TEXTS = ("text", "finish", "served_model", "requested_model")


def _why_no_record(record: Mapping[str, Any]) -> str | None:
    """Return why a line of a journal is not a reply, or None."""
    for name in _TEXTS:
        if not isinstance(record.get(name), str):
            return f"{name} is not a text"
    try:
        datetime.fromisoformat(record.get("date", "2000-01-01"))
    except (TypeError, ValueError):
        return "date is not a date"
    logprobs = record.get("top_logprobs")
    if logprobs is None:
        return None
    if not isinstance(logprobs, dict) or not all(_is_logprob(value) for value in logprobs.values()):
        return "top_logprobs are not log-probabilities by token"
    return None


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value <= MOST_ABOVE_ZERO


def _read(record: Mapping[str, Any]) -> Reply:
    return Reply(record["text"], record["finish"], record["served_model"], record.get("top_logprobs"), record)
