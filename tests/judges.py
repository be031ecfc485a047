"""Requests, and judges behind the loopback server, as the tests of this folder need them."""

from pathlib import Path
from typing import Any

from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.judge import open_judge
from sftmix.evaluation.judge.requests import Reply, Request

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
    """A judge behind an address, or the stand-in without one, as a context."""
    name = changes.pop("name", "lab")
    others = {key: changes.pop(key) for key in ("price", "max_tokens", "to_estimate") if key in changes}
    settings = {"model": "a-judge", "api_key": KEY, "concurrency": 4, "max_retries": 4, "timeout": 5.0}
    server = base_url and Server(who=f"judge {name}", base_url=base_url, **(settings | changes))
    return open_judge(folder, name, server, **others)


def ask(judge: Any, asked: list[Request], **changes: Any) -> list[Reply | None]:
    """The replies of a judge, every text accepted."""
    settings = {"accepts": lambda reply: None, "template_sha256": "0" * 64, "title": "judge", "show_progress": False}
    return judge.ask(asked, **(settings | changes))


def lines(folder: Path, name: str = "lab") -> list[str]:
    """The journal's lines."""
    return (folder / f"judgments-{name}.jsonl").read_text().splitlines()
