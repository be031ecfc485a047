"""Let a judge compare two answers: prompt, accepted verdicts, and the resulting preference."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.outputs import DRAW, Pair
from sftmix.evaluation.alpaca_eval.scores import FIRST, SECOND, first_share, is_switched, preference_of
from sftmix.evaluation.judge.reasoning import answer_of, verdict_of
from sftmix.evaluation.judge.requests import Reply, Request

if TYPE_CHECKING:
    from sftmix.evaluation.judge.judge import Judge

TOP_LOGPROBS = 5  # as AlpacaEval asks
MOST_SHOWN = 10  # alternatives in a message
MAX_TOKENS = 1  # the verdict is the first token
START, END = "<|im_start|>", "<|im_end|>"
FIELDS = ("{instruction}", "{output_1}", "{output_2}")
_FIELD = re.compile("|".join(map(re.escape, FIELDS)))


class Template(NamedTuple):
    """A prompt template: role and text of each message, with fields in braces, and the hash of the file."""

    messages: tuple[tuple[str, str], ...]
    sha256: str

    def filled(self, instruction: str, first: str, second: str) -> tuple[dict[str, str], ...]:
        """Return the messages for an instruction and two answers. Marks and fields inside these texts stay text."""
        texts = dict(zip(FIELDS, (instruction, first, second), strict=True))
        return tuple(
            {"role": role, "content": _FIELD.sub(lambda found: texts[found.group()], text)}
            for role, text in self.messages
        )


class PairVerdict(NamedTuple):
    """A judge's verdict on a pair."""

    preference: float | None  # From 1 (the baseline's answer) to 2 (the model's), or None if calls failed
    switched: bool  # Whether the judge was shown the model's answer first
    replies: tuple[Reply, ...]  # Replies that give the preference; none if the two answers are equal


def read_template(file: Path) -> Template:
    """Return the template of a file; raise an InputError if the file cannot be read or is not a template."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as text ({error})") from None
    return parse_template(text, str(file))


def parse_template(text: str, where: str) -> Template:
    """Return the messages of a template in AlpacaEval's form: the line of each start mark names the role.

    Raises:
        InputError: If a mark is missing, a role is unknown, or a field does not occur exactly once.
    """
    before, *parts = text.strip().split(START)
    messages = []
    for part in parts:
        role, _, rest = part.partition("\n")
        content, mark, after = rest.partition(END)
        if role.strip() not in ("system", "user", "assistant") or not mark or after.strip():
            raise InputError(f"{where}: expected messages, each from {START}system or {START}user to {END}")
        messages.append((role.strip(), content.strip()))
    if before or not messages:
        raise InputError(f"{where}: expected to begin with {START}system or {START}user")
    for field in FIELDS:
        if (times := sum(content.count(field) for _, content in messages)) != 1:
            raise InputError(f"{where}: has {field} {times} times, expected once")
    return Template(tuple(messages), hashlib.sha256(text.encode()).hexdigest())


def requests_of(pair: Pair, template: Template, *, round: int, scoring: str, votes: int) -> list[Request]:
    """Return the requests for a pair. Equal answers are a draw and need no request.

    The judge is shown the answers without the reasoning before them.

    Args:
        scoring: logprob, vote or single.
        votes: Number of requests of scoring=vote.
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
    """Return why a reply to scoring=logprob has no preference, or None if it has one."""
    if not reply.top_logprobs:
        return "a reply without log-probabilities, expected them (or suite.scoring=vote)"
    if first_share(reply.top_logprobs) is None:
        tokens = ", ".join(repr(token[:20]) for token in list(reply.top_logprobs)[:MOST_SHOWN])
        return f"neither {FIRST} nor {SECOND} is among the likeliest tokens ({tokens})"
    return None


def why_not_letter(reply: Reply) -> str | None:
    """Return why a reply to scoring=vote or single has no preference, or None if it has one."""
    verdict = _letter(reply)
    return None if verdict in (FIRST, SECOND) else f"the reply {verdict[:40]!r}, expected {FIRST} or {SECOND}"


def _letter(reply: Reply) -> str:
    return verdict_of(reply.text, is_cut=reply.finish == "length").strip()


def judge_pairs(
    pairs: Sequence[Pair],
    template: Template,
    judge: "Judge",
    *,
    round: int,
    scoring: str,
    votes: int,
    show_progress: bool,
    allow_partial: bool,
) -> list[PairVerdict]:
    """Return a judge's verdict on each pair; arguments as in `requests_of`.

    Args:
        allow_partial: Give a pair whose calls failed no preference instead of raising an error.
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
        preference = DRAW if not requests else None
        if requests and len(got) == len(requests):
            share = sum(_share(reply, scoring) for reply in got) / len(got)
            preference = preference_of(share, switched)
        verdicts.append(PairVerdict(preference, switched, got))
    return verdicts


def _share(reply: Reply, scoring: str) -> float:
    """Return the preference of an accepted reply for the answer that was shown first, 0 to 1."""
    if scoring != "logprob":
        return float(_letter(reply) == FIRST)
    share = first_share(reply.top_logprobs or {})
    assert share is not None
    return share


def raw_completion(reply: Reply) -> Mapping[str, Any]:
    """Return a reply in the form of AlpacaEval's files."""
    likeliest = [{"token": t, "logprob": p} for t, p in (reply.top_logprobs or {}).items()]
    content = [{"token": reply.text, "top_logprobs": likeliest}] if likeliest else []
    return {"finish_reason": reply.finish, "logprobs": {"content": content}, "text": reply.text}
