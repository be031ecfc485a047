"""A stand-in for a judge: it rates by a hash of what it is asked, and says nothing about a model."""

import hashlib
import json
import math
from datetime import UTC, datetime

from sftmix.evaluation.judge.call import Reply, Request

MODEL = "fake"


def fake_reply(request: Request) -> Reply:
    """The reply to a request: the same for the same messages, round and draw.

    Where one token is asked for it prefers `m` or `M`, with log-probabilities where those are wanted; else it gives a
    rating from 1 to 10.
    """
    asked = [[dict(message) for message in request.messages], request.round, request.draw]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
    p = (int.from_bytes(digest[:4]) + 0.5) / 2**32
    wants_letter = request.top_logprobs is not None or request.max_tokens == 1
    letter = "m" if p > 0.5 else "M"
    text = (
        letter if wants_letter else f"A hash of the question and the answer rates it. Rating: [[{1 + digest[4] % 10}]]"
    )
    record = {
        "requested_model": MODEL,
        "served_model": MODEL,
        "system_fingerprint": None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "usage": None,
    }
    top_logprobs = {"m": math.log(p), "M": math.log1p(-p)} if request.top_logprobs is not None else None
    return Reply(text, "stop", MODEL, top_logprobs, record)
