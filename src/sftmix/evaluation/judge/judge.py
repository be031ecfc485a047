"""Ask a judge. Each reply is kept in a journal and never requested again, and judges are never mixed."""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.judge.calls import complete_all
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.completion import MOST_ABOVE_ZERO
from sftmix.evaluation.judge.cost import Estimate, Price, about_tokens
from sftmix.evaluation.judge.error_replies import Unanswered
from sftmix.evaluation.judge.journal import Journal, open_journal, read_journal
from sftmix.evaluation.judge.reasoning import verdict_of
from sftmix.evaluation.judge.requests import Reply, Request, body_of
from sftmix.evaluation.results import plain_name
from sftmix.terminal import counted
from sftmix.training.progress import progress_bar

SHOWN_CAUSES = 3  # of failed calls
FAKE_MODEL = "fake"


class Judge:
    """Answers requests from a journal of earlier replies or by a server.

    Args:
        name: Name in results. Scores of judges of different names are never averaged.
        journal: Journal of this judge.
    """

    def __init__(
        self, name: str, journal: Journal, server: Server | None, price: Price | None, max_tokens: int | None = None
    ) -> None:
        self.name, self._journal, self._server, self._price = name, journal, server, price
        self._max_tokens = max_tokens
        self._model = FAKE_MODEL if server is None else server.model

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
        """Return the replies to requests in their order. Requests without a reply in the journal are sent.

        Args:
            accepts: Returns why a reply cannot be used, or None. An unusable reply is not kept and is requested again.
            template_sha256: Hash of the prompt template, for the record.
            allow_partial: Return None for a call that failed, instead of raising.

        Raises:
            InputError: If calls failed, or if the journal belongs to another judge.
        """
        keyed = self._keyed(requests)
        replies: dict[str, Reply] = {}
        for key, _ in keyed:
            if key in self._journal and accepts(kept := _read(self._journal[key])) is None:
                replies[key] = kept
        todo = list({key: request for key, request in keyed if key not in replies}.items())
        if todo:
            self._refuse_other(None)
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

            causes: dict[int, str] = {}
            if self._server is not None and todo:
                sent = [request for _, request in todo]
                calls = complete_all(self._server, sent, accepts=usable, received=keep, allow_partial=allow_partial)
                causes = asyncio.run(calls)
            for place, (_, request) in enumerate(todo if self._server is None else ()):
                reply = _fake_reply(request)
                if (cause := usable(place, reply)) is not None:
                    causes[place] = f"{request.name}: {cause}"
                else:
                    keep(place, reply)
        if causes and not allow_partial:
            raise InputError(
                f"judge {self.name}: {len(causes):,} of {counted(len(requests), 'call')} failed "
                f"({_in_words(causes)}); run the same command again to repeat only these, or allow_partial=true "
                "scores the others"
            )
        return [replies.get(key) for key, _ in keyed]

    def estimate(self, requests: Sequence[Request], expected_completion_tokens: int) -> Estimate:
        """Return the cost of the calls whose replies are not in the journal, without a call."""
        by_key = dict(self._keyed(requests))
        missing = [request for key, request in by_key.items() if key not in self._journal]
        prompt_tokens = sum(about_tokens(request.messages) for request in missing)
        completion_tokens = len(missing) * expected_completion_tokens
        return Estimate(len(missing), len(by_key) - len(missing), prompt_tokens, completion_tokens, self._price)

    def _keyed(self, requests: Sequence[Request]) -> list[tuple[str, Request]]:
        """Return the requests as they are sent, each with its key in the journal."""
        if self._max_tokens is not None:
            requests = [request._replace(max_tokens=self._max_tokens) for request in requests]
        calls = [f"{self._request_sha256(r)}/round {r.round}/draw {r.draw}" for r in requests]
        return [(hashlib.sha256(call.encode()).hexdigest(), r) for call, r in zip(calls, requests, strict=True)]

    def _request_sha256(self, request: Request) -> str:
        """Hash what a reply depends on. The address of the server does not count, since it may change between jobs."""
        rename, drop = (self._server.rename, self._server.drop) if self._server is not None else ({}, ())
        body: dict[str, Any] = body_of(request, self._model, rename, drop)
        if self._server is not None and self._server.extra_body:
            body["extra_body"] = dict(self._server.extra_body)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

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
        """Refuse another model than the journal's: the requested model before calls, the served model of a reply."""
        kind, now = ("requested_model", self._model) if served_model is None else ("served_model", served_model)
        first = next(iter(self._journal.values()), None)  # all other records were compared with the first
        if first is not None and first[kind] != now:
            what = "requested" if served_model is None else "served"
            raise InputError(
                f"judge {self.name}: the {what} model is now {now}, but {self._journal.file} has "
                f"judgments of {first[kind]}; set another name by judge.name=NAME, or move the file away"
            )


@contextmanager
def open_judge(
    folder: Path,
    name: str,
    server: Server | None,
    *,
    price: Price | None = None,
    max_tokens: int | None = None,
    to_estimate: bool = False,
) -> Iterator[Judge]:
    """Open a judge with its journal `judgments-<name>.jsonl` in a folder, for this process only.

    Args:
        to_estimate: Only read the journal. Another process may write it at the same time.

    Raises:
        InputError: If another process has the journal open, or the journal cannot be read.
    """
    file = folder / f"judgments-{plain_name(name)}.jsonl"
    opened = nullcontext(read_journal(file, _why_no_record)) if to_estimate else open_journal(file, _why_no_record)
    with opened as journal:
        yield Judge(name, journal, server, price, max_tokens)


def _fake_reply(request: Request) -> Reply:
    """Return the reply of judge=fake: a hash of messages, round and draw that does not depend on quality.

    If the request is for one token, the reply prefers `m` or `M`, with log-probabilities if they are requested.
    Otherwise it is a rating from 1 to 10.
    """
    asked = [[dict(message) for message in request.messages], request.round, request.draw]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
    p = (int.from_bytes(digest[:4]) + 0.5) / 2**32
    if request.top_logprobs is not None or request.max_tokens == 1:
        text = "m" if p > 0.5 else "M"
    else:
        text = f"A hash of the question and the answer rates it. Rating: [[{1 + digest[4] % 10}]]"
    record = {
        "requested_model": FAKE_MODEL,
        "served_model": FAKE_MODEL,
        "system_fingerprint": None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "usage": None,
    }
    top_logprobs = {"m": math.log(p), "M": math.log1p(-p)} if request.top_logprobs is not None else None
    return Reply(text, "stop", FAKE_MODEL, top_logprobs, record)


def _refuse_without_verdict(request: Request, reply: Reply) -> None:
    """Raise Unanswered if a reply has no verdict of any kind."""
    if reply.finish.startswith("content_filter"):  # also Gemini's "content_filter: SAFETY"
        raise Unanswered("the server's content filter cut the reply", is_paid=True, is_of_request=True)
    if reply.refusal is not None and not reply.text.strip():
        raise Unanswered(f"the judge refused to answer: {reply.refusal!r}", is_paid=True, is_of_request=True)
    if not verdict_of(reply.text, reply.finish == "length").strip():
        is_reasoning = reply.has_reasoning or bool(reply.text.strip())
        cause = "a reply of reasoning only" if is_reasoning else "an empty reply"
        if reply.finish == "length":
            cause += (
                f", cut at max_tokens={request.max_tokens:,} before a verdict: raise judge.max_tokens, or switch "
                "reasoning off if the server can, such as by "
                "judge.extra_body='{chat_template_kwargs: {enable_thinking: false}}'"
            )
        elif is_reasoning:
            cause += ", which ended without a verdict"
        raise Unanswered(cause, passes=request.temperature > 0 or not is_reasoning, is_paid=True)
    if reply.finish not in ("stop", "length"):
        raise Unanswered(f"a reply that ended by {reply.finish or 'no finish_reason'}", is_paid=True)
    if request.top_logprobs is not None and not reply.top_logprobs:
        raise Unanswered("a reply without log-probabilities", is_paid=True)


def _in_words(causes: Mapping[int, str]) -> str:
    """Return the most frequent causes, each with the number of its calls and the first of them."""
    by_cause: dict[str, list[str]] = {}
    for _, cause in sorted(causes.items()):
        by_cause.setdefault(cause.partition(": ")[2].partition("(")[0].partition(": ")[0], []).append(cause)
    kinds = sorted(by_cause.values(), key=len, reverse=True)
    if len(kinds) == 1:
        return kinds[0][0]
    words = [f"{len(same):,} as {same[0]}" for same in kinds[:SHOWN_CAUSES]]
    return "; ".join(words) + ("; and others" if len(kinds) > SHOWN_CAUSES else "")


def _why_no_record(record: Mapping[str, Any]) -> str | None:
    """Return why a line of a journal is not a reply, or None."""
    for name in ("text", "finish", "served_model", "requested_model"):
        if not isinstance(record.get(name), str):
            return f"{name} is not a text"
    try:
        datetime.fromisoformat(record.get("date", "2000-01-01"))
    except (TypeError, ValueError):
        return "date is not a date"
    logprobs = record.get("top_logprobs") or {}
    values: Any = logprobs.values() if isinstance(logprobs, dict) else [None]
    is_valid = all(type(x) in (int, float) and -math.inf < x <= MOST_ABOVE_ZERO for x in values)
    return None if is_valid else "top_logprobs are not log-probabilities by token"


def _read(record: Mapping[str, Any]) -> Reply:
    return Reply(record["text"], record["finish"], record["served_model"], record.get("top_logprobs"), record)
