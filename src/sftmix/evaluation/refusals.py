"""Refuse settings of an evaluation that cannot take effect, before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.schema import SUITES, AllSuites, EvalConfig
from sftmix.evaluation.session import DEMO
from sftmix.evaluation.suite_config import SuiteConfig
from sftmix.quoting import key_of

ASKS_SERVER = ("model", "base_url", "api_key_env", "concurrency", "max_retries", "timeout")
GENERATE_READS = {  # Keys of generate that each backend reads; generate.dtype is also of suites that compute here
    "hf": ("template", "dtype", "batch_size"),
    "openai": ("template", "dtype", *ASKS_SERVER, "rename_parameters", "drop_parameters"),
    "vllm": ("template", "dtype", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len"),
}
READ_BY_SOME = frozenset[str]().union(*(config.reads for config in SUITES.values()))  # Settings with readers


def suites_of(suite: Any) -> Mapping[str, SuiteConfig]:
    """Return the suites of a call by their names."""
    if isinstance(suite, AllSuites):
        return {f.name: getattr(suite, f.name) for f in fields(suite) if f.name != "name"}
    return {suite.name: suite}


def check_settings(config: EvalConfig, suites: Mapping[str, SuiteConfig], given: Sequence[str] = ()) -> None:
    """Refuse settings that cannot take effect.

    Args:
        given: Overrides of the command line.

    Raises:
        InputError: If a setting cannot take effect.
    """
    called = config.suite.name
    _check_overrides(called, suites, given)
    _check_backend(config, suites, given)
    for suite in suites.values():
        suite.check_call(config)
    if config.judge is not None and not any(suite.needs_judge for suite in suites.values()):
        raise ConfigError(f"judge={config.judge.name}: suite {called} asks no judge here")
    for key in ("a", "b"):
        value = getattr(config, key)
        if value is not None and not any(key in suite.reads for suite in suites.values()):
            raise ConfigError(f"{key}={value}: only suite={' or '.join(_readers_of(key))} reads it")
    if config.run is not None and not any(suite.needs_run for suite in suites.values()):
        raise ConfigError(f"run={config.run}: suite {called} does not read it here")
    for name, suite in suites.items():
        if len(suites) > 1 and not suite.needs_run:
            source = str(suite.judgments_from if suite.scores_judgments else suite.answers_from)
            raise ConfigError(
                f"suite.{name}.{source}={getattr(suite, source)}: suite {called} evaluates one model, set "
                f"suite.{source} with suite={name}"
            )
    if config.revision is not None and config.run is None:
        raise ConfigError(f"revision={config.revision}: expected run=OWNER/NAME, the hub id that it belongs to")
    if config.bench not in ("auto", DEMO) and not Path(config.bench).is_dir():
        raise InputError(f"bench={config.bench}: no such folder, expected one with the published question files")


def _check_backend(config: EvalConfig, suites: Mapping[str, SuiteConfig], given: Sequence[str]) -> None:
    """Refuse suites that the backend of `generate` cannot serve, and overrides that it does not read."""
    backend = config.generate.backend
    here = [name for name, suite in suites.items() if suite.computes_here(is_served=backend != "hf")]
    if backend == "vllm" and here:
        raise ConfigError(
            f"generate=vllm: suite {here[0]} computes with the model in this process too, and two copies do not share "
            f"a GPU: expected a suite that only needs answers; run suite={here[0]} with generate=hf"
        )
    for override in given:
        key, _, name = key_of(override).partition(".")
        if name == "backend":  # results are named by the choice of the group, which sets all of its keys
            raise ConfigError(f"{override}: expected {key}=NAME, which sets the backend with its other settings")
        if key in ("device", "devices") and not here:
            if backend == "vllm":
                raise ConfigError(f"{override}: vLLM takes as many GPUs as generate.tensor_parallel_size says")
            raise ConfigError(f"{override}: suite {config.suite.name} does not run the model on this machine")
        if key == "generate" and name and name not in GENERATE_READS[backend]:
            readers = " and ".join(f"generate={one}" for one, keys in GENERATE_READS.items() if name in keys)
            raise ConfigError(f"{override}: generate={backend} does not read it, only {readers} does")


def _check_overrides(called: str, suites: Mapping[str, SuiteConfig], given: Sequence[str]) -> None:
    """Refuse an override of the command line that no suite reads, or that the suite's other settings make idle."""
    for override in given:
        key, *keys = key_of(override).split(".")
        # judge, a and b have messages that say more
        if key in READ_BY_SOME - {"judge", "a", "b"} and not any(_reads(suite, key) for suite in suites.values()):
            raise ConfigError(f"{override}: suite {called} does not read it here")
        if key == "suite" and keys:
            suite = suites.get(keys[0]) if len(suites) > 1 else next(iter(suites.values()))
            why = None if suite is None else suite.without_effect().get(keys[-1])
            if why is not None:
                raise ConfigError(f"{override}: it has no effect, {why}")


def _reads(suite: SuiteConfig, key: str) -> bool:
    """Return whether a suite reads a setting; of these, existing judgments need only the published files."""
    return key in suite.reads and (key == "bench" or not suite.scores_judgments)


def _readers_of(key: str) -> list[str]:
    return [name for name, config in SUITES.items() if key in config.reads]
