"""A judge compares two answers: what it is asked, what counts as a verdict, and the preference that follows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sftmix.evaluation.alpaca_eval.outputs import Pair
from sftmix.evaluation.alpaca_eval.preference import DRAW, FIRST, SECOND, first_share, is_switched, preference_of
from sftmix.evaluation.alpaca_eval.template import Template
from sftmix.evaluation.judge.call import Reply, Request
from sftmix.evaluation.judge.reasoning import answer_of, verdict_of

TOP_LOGPROBS = 5  # as AlpacaEval asks
MOST_SHOWN = 10  # alternatives in a message
MAX_TOKENS = 1  # the verdict is the first token


class Asked(Protocol):
    """What is wanted of a judge."""

    def ask(
        self,
        requests: Sequence[Request],
        *,
        accepts: Callable[[Reply], str | None],
        template_sha256: str,
        title: str,
        show_progress: bool,
        allow_partial: bool = False,
    ) -> Sequence[Reply | None]:
        """The replies in the order of the requests."""


class PairVerdict(NamedTuple):
    """What a judge made of a pair.

    Attributes:
        preference: 1 (the baseline's) to 2 (the model's), or None where calls failed.
        switched: whether the judge was shown the model's answer first.
        replies: that it follows from; none where the two answers are the same text.
    """

    preference: float | None
    switched: bool
    replies: tuple[Reply, ...]


def requests_of(pair: Pair, template: Template, *, round: int, scoring: str, votes: int) -> list[Request]:
    """Return what a judge is asked about a pair; nothing if the answers are the same text, which is a draw.

    The judge is shown the answers without the reasoning before them.

    Args:
        pair: two answers.
        template: of the prompt.
        round: of the suite, counted from 1.
        scoring: logprob, vote or single.
        votes: of scoring vote.
    """
    outputs = answer_of(pair.output_1), answer_of(pair.output_2)
    if outputs[0] == outputs[1]:
        return []
    shown = outputs[::-1] if is_switched(pair.instruction) else outputs
    return [
        Request(
            name=f"question {pair.index}",
            messages=template.filled(pair.instruction, *shown),
            round=round,
            temperature=0.0 if scoring == "single" else 1.0,
            max_tokens=MAX_TOKENS,
            top_logprobs=TOP_LOGPROBS if scoring == "logprob" else None,
            draw=draw,
        )
        for draw in range(votes if scoring == "vote" else 1)
    ]


def why_not_logprob(reply: Reply) -> str | None:
    """Why a reply with log-probabilities gives no preference, or None where it does."""
    if not reply.top_logprobs:
        return "a reply without log-probabilities, expected them (or suite.scoring=vote)"
    if first_share(reply.top_logprobs) is None:
        tokens = ", ".join(repr(token[:20]) for token in list(reply.top_logprobs)[:MOST_SHOWN])
        return f"neither {FIRST} nor {SECOND} among the likeliest tokens ({tokens})"
    return None


def why_not_letter(reply: Reply) -> str | None:
    """Return why the verdict of a reply in words gives no preference, or None if it does."""
    verdict = _letter(reply)
    if verdict in (FIRST, SECOND):
        return None
    return f"the reply {verdict[:40]!r}, expected {FIRST} or {SECOND}"


def _letter(reply: Reply) -> str:
    return verdict_of(reply.text, is_cut=reply.finish == "length").strip()


def judge_pairs(
    pairs: Sequence[Pair],
    template: Template,
    judge: Asked,
    *,
    round: int,
    scoring: str,
    votes: int,
    show_progress: bool,
    allow_partial: bool,
) -> list[PairVerdict]:
    """A judge's verdict on each pair.

    Args:
        pairs: of answers.
        template: of the prompt.
        judge: who is asked.
        round: of the suite, counted from 1.
        scoring: logprob, vote or single.
        votes: of scoring vote.
        show_progress: whether there is a progress bar.
        allow_partial: a pair whose calls failed has no preference, instead of an error.

    Raises:
        InputError: calls failed.
    """
    asked = [requests_of(pair, template, round=round, scoring=scoring, votes=votes) for pair in pairs]
    replies = iter(
        judge.ask(
            [request for requests in asked for request in requests],
            accepts=why_not_logprob if scoring == "logprob" else why_not_letter,
            template_sha256=template.sha256,
            title=f"judging round {round}",
            show_progress=show_progress,
            allow_partial=allow_partial,
        )
    )
    verdicts = []
    for pair, requests in zip(pairs, asked, strict=True):
        switched = is_switched(pair.instruction)
        got = tuple(reply for _ in requests if (reply := next(replies)) is not None)
        if not requests:
            verdicts.append(PairVerdict(DRAW, switched, ()))
        elif len(got) < len(requests):
            verdicts.append(PairVerdict(None, switched, got))
        else:
            share = sum(_share(reply, scoring) for reply in got) / len(got)
            verdicts.append(PairVerdict(preference_of(share, switched), switched, got))
    return verdicts


def _share(reply: Reply, scoring: str) -> float:
    """How far a reply that was accepted prefers the answer that was shown first."""
    if scoring != "logprob":
        return float(_letter(reply) == FIRST)
    assert reply.top_logprobs is not None
    share = first_share(reply.top_logprobs)
    assert share is not None
    return share


def raw_completion(reply: Reply) -> Mapping[str, Any]:
    """A reply as AlpacaEval keeps it."""
    likeliest = [{"token": t, "logprob": p} for t, p in (reply.top_logprobs or {}).items()]
    content = [{"token": reply.text, "top_logprobs": likeliest}] if likeliest else []
    return {"finish_reason": reply.finish, "logprobs": {"content": content}, "text": reply.text}
