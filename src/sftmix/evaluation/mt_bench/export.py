"""Answers and judgments in FastChat's form, for its tools and for readers, beside the journals they are made from."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sftmix.artifacts.files import write_bytes
from sftmix.evaluation.judge.call import Reply, Request
from sftmix.evaluation.judge.journal import PRIVATE
from sftmix.evaluation.mt_bench.conversations import Conversation
from sftmix.evaluation.mt_bench.questions import template_name
from sftmix.evaluation.mt_bench.scores import Rated


def export_name(*parts: str) -> str:
    """Names a file for its benchmark, its judge and what it holds."""
    return "--".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts) + ".jsonl"


def answer_rows(conversations: Sequence[Conversation], model: str) -> Iterator[dict[str, Any]]:
    """One row a question, its rounds as choices."""
    by_question: dict[int, list[Conversation]] = {}
    for conversation in conversations:
        by_question.setdefault(conversation.question.id, []).append(conversation)
    for number, rounds in by_question.items():
        choices = [{"index": index, "turns": list(one.texts)} for index, one in enumerate(rounds)]
        yield {"question_id": number, "model_id": model, "choices": choices, "tstamp": time.time()}


def judgment_rows(
    rated: Sequence[Rated], requests: Sequence[Request], replies: Sequence[Reply | None], model: str, judge: str
) -> Iterator[dict[str, Any]]:
    """One row a reply; without a rating its score is -1, as FastChat writes it. `flaw` says why one is not counted."""
    for row, request, reply in zip(rated, requests, replies, strict=True):
        if reply is None or row.rating is None:
            continue
        question = row.conversation.question
        yield {
            "question_id": question.id,
            "model": model,
            "judge": [judge, template_name(question, row.turn)],
            "user_prompt": request.messages[-1]["content"],
            "judgment": reply.text,
            "score": row.rating.score,
            "turn": row.turn,
            "tstamp": _seconds(reply.record),
            "round": row.round,
            "served_model": reply.served_model,
            "key": reply.record.get("key"),
            "flaw": row.rating.flaw,
        }


def write_rows(file: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """Write rows as a file of one JSON object a line that only its owner can read, instead of an older one."""
    write_bytes(file, "".join(json.dumps(row) + "\n" for row in rows).encode(), PRIVATE)


def _seconds(record: Mapping[str, Any]) -> float | None:
    """When a call was answered, in seconds since 1970."""
    date = record.get("date")
    return datetime.fromisoformat(date).timestamp() if isinstance(date, str) else None
