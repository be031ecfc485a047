"""The judge that the settings name: whether it can be had, and how it is opened."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sftmix.errors import ConfigError, InputError
from sftmix.eval_config import Judge as JudgeSettings

if TYPE_CHECKING:
    from sftmix.evaluation.judge import Judge


def check_judge(judge: JudgeSettings | None, suite: str, dry_run: bool = False) -> None:
    """Refuse a judge that cannot be had.

    Args:
        judge: its settings, or None.
        suite: that needs it.
        dry_run: nothing will be asked, so that no key is needed.

    Raises:
        InputError: what is missing.
    """
    if judge is None:
        raise ConfigError(f"judge=none: suite={suite} needs one, choose judge=gpt41, openai_compatible or fake")
    if judge.refused is not None:
        raise ConfigError(f"judge {judge.name}: {judge.refused}")
    if judge.backend == "fake":
        return
    if judge.model is None:
        raise ConfigError("judge.model has no value, expected what the server calls the model")
    check_address("judge.base_url", judge.base_url)
    _check_extra_body(judge.extra_body)
    if find_spec("openai") is None:
        raise InputError(f"judge {judge.name}: the package openai is not installed, it comes with sftmix[eval]")
    if not dry_run:
        key_of(judge.api_key_env, judge.needs_key, f"judge {judge.name}")


def open_judge_of(judge: JudgeSettings, folder: Path, *, to_estimate: bool = False) -> AbstractContextManager["Judge"]:
    """A judge with its journal in a folder; to estimate, nothing is asked and nothing written.

    Raises:
        InputError: its key is missing, or another process has its journal open.
    """
    from sftmix.evaluation.cost import Price
    from sftmix.evaluation.judge import open_judge

    p = judge.price
    return open_judge(
        folder,
        name=judge.name,
        backend=judge.backend,
        model=judge.model,
        base_url=judge.base_url,
        api_key=key_of(judge.api_key_env, False, f"judge {judge.name}"),
        concurrency=judge.concurrency,
        max_retries=judge.max_retries,
        timeout=judge.timeout,
        price=Price(p.prompt, p.completion, p.date) if p is not None else None,
        extra_body=judge.extra_body,
        to_estimate=to_estimate,
    )


def key_of(variable: str | None, is_needed: bool, who: str) -> str | None:
    """The key that an environment variable holds, or None.

    Raises:
        InputError: it is needed and missing, or cannot be sent. The key itself is never told.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if is_needed and not key:
        raise InputError(f"{who}: the environment variable {variable} is not set, expected the key in it")
    if not key:
        return None
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{who}: the key in {variable} holds characters that cannot be sent, expected plain ASCII")
    return key


def check_address(key: str, base_url: str | None) -> None:
    """Refuse what is no address of a server, and one that may hold a key: addresses are kept and shown.

    Raises:
        ConfigError: the key, and its value where that holds nothing to hide.
    """
    if base_url is None:
        return
    if any(mark in base_url for mark in "@?#"):
        raise ConfigError(
            f"{key}: holds a user, a password or a query (@, ? or #), expected the address alone such as "
            "http://localhost:8000/v1; keys come from the environment alone"
        )
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address:
        raise ConfigError(f"{key}={base_url}: no address of a server, expected such as http://localhost:8000/v1")


def _check_extra_body(extra_body: Mapping[str, Any] | None) -> None:
    """Refuse what would replace a part of the request: a reply would then be kept as one to another request."""
    from sftmix.evaluation.server import REQUESTED

    for name in extra_body or {}:
        if name in REQUESTED:
            raise ConfigError(
                f"judge.extra_body: {name} is set by the request, expected none of {', '.join(sorted(REQUESTED))}"
            )
