"""Requests, and judges behind the loopback server, as the tests of this folder need them."""

from pathlib import Path
from typing import Any

from sftmix.evaluation.judge.call import Reply, Request
from sftmix.evaluation.judge.judge import open_judge

KEY = "sk-never-to-be-told"


def requests(number: int, **changes: Any) -> list[Request]:
    """So many questions to a judge."""
    plain = Request("", (), 1, 0.0, 100)
    return [
        plain._replace(
            name=f"question {i}, turn 1", messages=({"role": "user", "content": f"Rate answer {i}."},)
        )._replace(**changes)
        for i in range(number)
    ]


def judge(folder: Path, base_url: str | None, **changes: Any):
    """A judge behind an address, as a context."""
    settings = {
        "name": "lab",
        "backend": "openai",
        "model": "a-judge",
        "base_url": base_url,
        "api_key": KEY,
        "concurrency": 4,
        "max_retries": 4,
        "timeout": 5.0,
        "price": None,
        "extra_body": None,
    }
    return open_judge(folder, **(settings | changes))


def ask(judge: Any, asked: list[Request], **changes: Any) -> list[Reply | None]:
    """The replies of a judge, every text accepted."""
    settings = {"accepts": lambda reply: None, "template_sha256": "0" * 64, "title": "judge", "show_progress": False}
    return judge.ask(asked, **(settings | changes))


def lines(folder: Path, name: str = "lab") -> list[str]:
    """The journal's lines."""
    return (folder / f"judgments-{name}.jsonl").read_text().splitlines()
