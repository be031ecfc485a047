"""Check the configured judge and what answers, a server or vLLM, and read keys, before the first request."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from sftmix.config.judge import JudgeConfig
from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.judge.client import OPENAI, Server, shown_address
from sftmix.evaluation.judge.requests import REQUESTED
from sftmix.evaluation.schema import GenerateConfig

JUDGE_PARAMETERS = ("temperature", "max_tokens", "logprobs", "top_logprobs")  # of a request to a judge
ANSWER_PARAMETERS = ("temperature", "max_tokens", "seed", "top_p")  # of a request to the model that answers
NEVER_DROPPED = ("logprobs", "top_logprobs")  # suite.scoring=vote does not send them
SERVED = "generate=openai"


def check_judge(judge: JudgeConfig | None, suite: str, dry_run: bool = False) -> None:
    """Refuse a judge that cannot be used; a dry run needs no key."""
    if judge is None:
        raise ConfigError(f"judge=none: suite={suite} needs a judge, choose judge=gpt41, openai_compatible or fake")
    if judge.refused is not None:
        raise ConfigError(f"judge {judge.name}: {judge.refused}")
    if judge.backend == "fake":
        if changed := request_settings(judge):
            raise ConfigError(f"judge.{min(changed)}: it has no effect, judge=fake sends no request")
        return
    if judge.model is None:
        raise ConfigError("judge.model has no value, expected the name of the model on the server")
    _check_address("judge.base_url", judge.base_url)
    for name in judge.extra_body or {}:  # otherwise the journal would keep the reply under the key of another request
        if name in REQUESTED - set(judge.drop_parameters or ()):
            raise ConfigError(
                f"judge.extra_body: {name} is set by the request, expected none of {', '.join(sorted(REQUESTED))}"
            )
    _check_parameters(judge, "judge", JUDGE_PARAMETERS)
    if find_spec("openai") is None:
        raise InputError(f"judge {judge.name}: the package openai is not installed (pip install 'sftmix[eval]')")
    if not dry_run:
        key_of(judge.api_key_env, judge.needs_key, f"judge {judge.name}")


def judge_in_words(judge: JudgeConfig | None) -> str:
    """Check the judge of a later evaluation, and describe it. No request is sent.

    Raises:
        InputError: If the judge cannot be used: its key is not set, for instance.
    """
    if judge is None:
        return "none is named; judge=gpt41 checks its key before the run instead of before the evaluation"
    check_judge(judge, "NAME")
    if judge.backend == "fake":
        return "fake: it rates by a hash and sends nothing"
    key = f"the key in {judge.api_key_env} is set" if os.environ.get(judge.api_key_env or "") else "without a key"
    return f"{judge.name} at {shown_address(judge.base_url or OPENAI)}, {key}; no request was sent"


def check_generate_server(generate: GenerateConfig) -> None:
    """Refuse a server that cannot answer, or raise an InputError if something is missing or wrong."""
    if generate.template is not None:
        raise ConfigError(f"generate.template={generate.template}: the server applies its own template")
    _check_address("generate.base_url", generate.base_url)
    _check_parameters(generate, "generate", ANSWER_PARAMETERS)
    if find_spec("openai") is None:
        raise InputError(f"{SERVED}: the package openai is not installed (pip install 'sftmix[eval]')")
    key_of(generate.api_key_env, generate.api_key_env is not None, SERVED)


def check_vllm(generate: GenerateConfig, num_gpus: int) -> None:
    """Raise an InputError if vLLM is not installed, or if fewer GPUs are visible than it needs. It is not imported."""
    if find_spec("vllm") is None:
        raise InputError(
            "generate=vllm: the package vllm is not installed: pip install 'sftmix[eval,vllm]' in a separate "
            "environment, since vLLM pins torch, or let `vllm serve FOLDER` answer by generate=openai"
        )
    if num_gpus < generate.tensor_parallel_size:
        raise InputError(
            f"generate.tensor_parallel_size={generate.tensor_parallel_size}: vLLM needs so many GPUs, {num_gpus} are "
            "visible"
        )


def server_of(config: JudgeConfig | GenerateConfig) -> Server:
    """Return the server of a judge, or of the model that answers, with its key.

    Raises:
        InputError: If the key is missing or cannot be sent.
    """
    assert config.model is not None
    extra_body: dict[str, Any] = {}
    if isinstance(config, JudgeConfig):
        who, group, extra_body = f"judge {config.name}", "judge", config.extra_body or {}
        key = key_of(config.api_key_env, False, who)
    else:
        who, group = f"model {config.model}", "generate"
        key = key_of(config.api_key_env, config.api_key_env is not None, SERVED)
    return Server(
        who=who,
        model=config.model,
        base_url=config.base_url,
        api_key=key,
        concurrency=config.concurrency,
        max_retries=config.max_retries,
        timeout=config.timeout,
        extra_body=extra_body,
        rename=config.rename_parameters or {},
        drop=config.drop_parameters or (),
        group=group,
    )


def request_settings(judge: JudgeConfig) -> dict[str, Any]:
    """Return what the config changes in a judge's request, for the settings of the results; empty by default."""
    changed = {
        "max_tokens": judge.max_tokens,
        "rename_parameters": judge.rename_parameters and dict(judge.rename_parameters),
        "drop_parameters": judge.drop_parameters and sorted(judge.drop_parameters),
        "extra_body": judge.extra_body and dict(judge.extra_body),
    }
    return {name: value for name, value in changed.items() if value}


def key_of(variable: str | None, is_needed: bool, who: str) -> str | None:
    """Return the key that an environment variable holds, or None. No message holds the key.

    Raises:
        InputError: If the key is needed and missing, or cannot be sent.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if is_needed and not key:
        raise InputError(
            f"{who}: the environment variable {variable} is not set, expected a key (export {variable}=...)"
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{who}: the key in {variable} holds characters that cannot be sent, expected plain ASCII")
    return key or None


def _check_address(key: str, base_url: str | None) -> None:
    """Refuse an address that is invalid, or that may hold a key: addresses are recorded and printed."""
    if base_url is None:
        return
    if any(mark in base_url for mark in "@?#"):
        raise ConfigError(
            f"{key}: holds a user, a password or a query (@, ? or #), expected only the address, such as "
            "http://localhost:8000/v1; keys are read from environment variables"
        )
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number
        is_address = False
    if not is_address:
        raise ConfigError(
            f"{key}={base_url}: not the address of a server, expected for example http://localhost:8000/v1"
        )


def _check_parameters(config: JudgeConfig | GenerateConfig, group: str, sent: Sequence[str]) -> None:
    """Refuse to rename a parameter that is not `sent`, and to drop one that is not sent or is needed."""
    rename, drop = config.rename_parameters or {}, config.drop_parameters or []
    droppable = [name for name in sent if name not in NEVER_DROPPED]
    for key, names, allowed in (("rename", rename, sent), ("drop", drop, droppable)):
        for name in names:
            if name not in allowed:
                raise ConfigError(f"{group}.{key}_parameters: {name}, expected one of {', '.join(allowed)}")
    repeated = {name for name in drop if drop.count(name) > 1} | (rename.keys() & set(drop))
    if repeated:
        raise ConfigError(
            f"{group}.drop_parameters: {min(repeated)} is named twice, expected once, in rename or in drop"
        )
    extra_body = getattr(config, "extra_body", None) or {}
    taken = {"model", "messages", "n", "stream", *extra_body, *(set(sent) - rename.keys())}
    for name, to in rename.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", to):
            raise ConfigError(
                f"{group}.rename_parameters: {name} to {to!r}, expected a name such as max_completion_tokens"
            )
        if to in taken:
            raise ConfigError(f"{group}.rename_parameters: {name} to {to}, but the request already has this parameter")
        taken.add(to)
