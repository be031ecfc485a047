"""The judge that the settings name: whether it is available, and how it is opened."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.schema import JudgeConfig

if TYPE_CHECKING:
    from sftmix.evaluation.judge.judge import Judge

JUDGE_PARAMETERS = ("temperature", "max_tokens", "logprobs", "top_logprobs")  # of a judge's request
ANSWER_PARAMETERS = ("temperature", "max_tokens", "seed", "top_p")  # of a request to the model that answers
NEVER_DROPPED = ("logprobs", "top_logprobs")  # suite.scoring=vote does not send them


def check_judge(judge: JudgeConfig | None, suite: str, dry_run: bool = False) -> None:
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
        if changed := request_settings(judge):
            raise ConfigError(f"judge.{min(changed)}: it has no effect, the stand-in sends no request")
        return
    if judge.model is None:
        raise ConfigError("judge.model has no value, expected what the server calls the model")
    check_address("judge.base_url", judge.base_url)
    _check_extra_body(judge)
    check_parameters("judge", judge.rename_parameters, judge.drop_parameters, JUDGE_PARAMETERS, judge.extra_body)
    if find_spec("openai") is None:
        raise InputError(f"judge {judge.name}: the package openai is not installed, it comes with sftmix[eval]")
    if not dry_run:
        key_of(judge.api_key_env, judge.needs_key, f"judge {judge.name}")


def open_judge_of(judge: JudgeConfig, folder: Path, *, to_estimate: bool = False) -> AbstractContextManager["Judge"]:
    """A judge with its journal in a folder; to estimate, nothing is asked and nothing written.

    Raises:
        InputError: its key is missing, or another process has its journal open.
    """
    from sftmix.evaluation.judge.cost import Price
    from sftmix.evaluation.judge.judge import open_judge

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
        max_tokens=judge.max_tokens,
        rename=judge.rename_parameters,
        drop=judge.drop_parameters or (),
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


def request_settings(judge: JudgeConfig) -> dict[str, Any]:
    """Return what the settings change in a judge's request, for the settings of the results; empty by default."""
    changed = {
        "max_tokens": judge.max_tokens,
        "rename_parameters": judge.rename_parameters and dict(judge.rename_parameters),
        "drop_parameters": judge.drop_parameters and sorted(judge.drop_parameters),
        "extra_body": judge.extra_body and dict(judge.extra_body),
    }
    return {name: value for name, value in changed.items() if value}


def check_parameters(
    group: str,
    rename: Mapping[str, str] | None,
    drop: Sequence[str] | None,
    sent: Sequence[str],
    extra_body: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to rename or drop what the request does not have or cannot lack.

    Args:
        group: judge or generate, for messages.
        rename: Parameters by the name under which the server takes them.
        drop: Parameters that are not sent.
        sent: Parameters of the request that may be renamed.
        extra_body: What is sent beside the request.

    Raises:
        ConfigError: A parameter is unknown, needed, or two of them would have one name.
    """
    droppable = [name for name in sent if name not in NEVER_DROPPED]
    for key, names, allowed in (("rename", rename or {}, sent), ("drop", drop or [], droppable)):
        for name in names:
            if name not in allowed:
                raise ConfigError(f"{group}.{key}_parameters: {name}, expected some of {', '.join(allowed)}")
    repeated = {name for name in drop or () if (drop or ()).count(name) > 1} | ((rename or {}).keys() & set(drop or ()))
    if repeated:
        raise ConfigError(
            f"{group}.drop_parameters: {min(repeated)} is named twice, expected once to rename or drop it"
        )
    taken = {"model", "messages", "n", "stream", *(extra_body or {}), *(set(sent) - (rename or {}).keys())}
    for name, to in (rename or {}).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", to):
            raise ConfigError(f"{group}.rename_parameters: {name} to {to!r}, expected such as max_completion_tokens")
        if to in taken:
            raise ConfigError(f"{group}.rename_parameters: {name} to {to}, which the request sets already")
        taken.add(to)


def _check_extra_body(judge: JudgeConfig) -> None:
    """Refuse what would replace a part of the request: a reply would then be kept as one to another request."""
    from sftmix.evaluation.judge.calls import REQUESTED

    dropped = set(judge.drop_parameters or ())
    for name in judge.extra_body or {}:
        if name in REQUESTED - dropped:
            raise ConfigError(
                f"judge.extra_body: {name} is set by the request, expected none of {', '.join(sorted(REQUESTED))}"
            )
