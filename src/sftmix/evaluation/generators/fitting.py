"""A conversation that is too long for the model behind a server, made shorter as a model here makes it."""

import re
from collections.abc import Mapping

from sftmix.data.example import Message
from sftmix.data.prompts import without_oldest_turns
from sftmix.evaluation.generators.conversation import ROOM_FOR_ANSWER
from sftmix.evaluation.judge.call import Request

LEAST_ROOM = 16  # of an answer one in so many is the least that is asked for
POSITIONS = re.compile(r"context (?:length|size|window)\D{0,16}(\d{1,9})", re.IGNORECASE)


def shorter(request: Request, max_new_tokens: int, said: str) -> Request | None:
    """The next request to try after one that a server called too long; None where there is nothing left to leave out.

    A server tells no count of tokens beforehand, so that this goes by tries. Room is kept for the whole answer or a
    quarter of the model's positions, what is less: first the answer gets that room, then the oldest turns go. Where
    the last turn alone is too long, the answer's room is halved, and a sixteenth of the whole answer is the least.

    Args:
        request: that was refused.
        max_new_tokens: of a whole answer.
        said: by the server, which may name its positions.
    """
    found = POSITIONS.search(said)
    kept = min(max_new_tokens, max(1, int(found[1]) // ROOM_FOR_ANSWER)) if found else max_new_tokens
    if request.max_tokens > kept:
        return request._replace(max_tokens=kept)
    messages = without_oldest_turns([Message(one["role"], one["content"]) for one in request.messages])
    if messages is not None:
        return request._replace(messages=tuple(map(_as_sent, messages)), max_tokens=max_new_tokens)
    half = request.max_tokens // 2
    return request._replace(max_tokens=half) if half >= max(1, max_new_tokens // LEAST_ROOM) else None


def _as_sent(message: Message) -> Mapping[str, str]:
    return {"role": message.role, "content": message.content}
