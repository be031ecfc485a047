"""Refuse settings of an evaluation that cannot take effect, before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.human.schema import HumanConfig
from sftmix.evaluation.mt_bench.schema import MtBenchConfig
from sftmix.evaluation.schema import AllSuites, EvalConfig
from sftmix.evaluation.session import DEMO
from sftmix.quoting import key_of

JUDGED = ("mt_bench", "alpaca_eval")
ANSWERED = (*JUDGED, "offline")  # suites whose questions the model answers in words
READERS = {  # suites that read a setting
    "seed": (*ANSWERED, "human"),
    "generate": (*ANSWERED, "human"),
    "allow_partial": JUDGED,
    "device": (*ANSWERED, "medical", "human"),
    "bench": (*JUDGED, "medical", "human"),
}
SCORED_FILES = ("as_fastchat", "annotations", "judgments")  # settings that name existing judgments


def suites_of(suite: Any) -> Mapping[str, Any]:
    """Return the suites of a call by their names."""
    if isinstance(suite, AllSuites):
        return {f.name: getattr(suite, f.name) for f in fields(suite) if f.name != "name"}
    return {suite.name: suite}


def reads_files(suite: Any) -> bool:
    """Return whether a suite reads existing answers or judgments, and needs no model under `run`."""
    return isinstance(suite, HumanConfig) or only_scores(suite) or getattr(suite, "outputs", None) is not None


def only_scores(suite: Any) -> bool:
    """Return whether a suite scores existing judgments."""
    return any(getattr(suite, name, None) is not None for name in SCORED_FILES)


def check_settings(config: EvalConfig, suites: Mapping[str, Any], given: Sequence[str] = ()) -> None:
    """Refuse settings that cannot take effect.

    Raises:
        InputError: If a setting cannot take effect.
    """
    called = config.suite.name
    _check_overrides(called, suites, given)
    if config.limit is not None and config.suite.name == "mt_bench" and only_scores(config.suite):
        raise ConfigError(f"limit={config.limit}: suite.as_fastchat is scored as it is, nothing is asked")
    if config.judge is not None and not any(name in JUDGED and not only_scores(s) for name, s in suites.items()):
        raise ConfigError(f"judge={config.judge.name}: suite {called} asks no judge here")
    for key in ("a", "b"):
        value = getattr(config, key)
        if value is not None and "human" not in suites:
            raise ConfigError(f"{key}={value}: is of suite=human alone")
        if value is None and "human" in suites and not config.suite.judgments:
            raise ConfigError(
                f"{key} has no value, suite=human compares two: a=runs/ONE b=runs/OTHER, or files of answers"
            )
    if config.run is not None and all(map(reads_files, suites.values())):
        instead = ", its models are a= and b=" if called == "human" else ""
        raise ConfigError(f"run={config.run}: suite {called} does not read it here{instead}")
    for name, suite in suites.items():
        if len(suites) > 1 and reads_files(suite):
            key = next(key for key in (*SCORED_FILES, "outputs") if getattr(suite, key, None) is not None)
            raise ConfigError(
                f"suite.{name}.{key}={getattr(suite, key)}: suite {called} is of one model, give it to suite={name}"
            )
    if config.revision is not None and config.run is None:
        raise ConfigError(f"revision={config.revision}: it is of run=, which has no value")
    if config.bench not in ("auto", DEMO) and not Path(config.bench).is_dir():
        raise InputError(f"bench={config.bench}: no such folder, expected one with the published question files")


def _check_overrides(called: str, suites: Mapping[str, Any], given: Sequence[str]) -> None:
    """Refuse an override of the command line that no suite reads, or that the suite's other settings make idle."""
    for override in given:
        key, *keys = key_of(override).split(".")
        readers = [name for name in suites if name in READERS.get(key, suites)]
        if key in READERS and key != "bench":
            readers = [name for name in readers if not only_scores(suites[name])]
        if not readers:
            raise ConfigError(f"{override}: suite {called} does not read it here")
        name = keys[0] if len(keys) > 1 else next(iter(suites))  # suite=all: suite.mt_bench.rounds
        if key == "suite" and keys and name in suites and (why := _idle(suites[name]).get(keys[-1])) is not None:
            raise ConfigError(f"{override}: it has no effect, {why}")


def _idle(suite: Any) -> Mapping[str, str]:
    """Return the settings of a suite without effect, and why."""
    if isinstance(suite, MtBenchConfig) and suite.as_fastchat is not None:
        return dict.fromkeys(("rounds", "rounds_of", "max_new_tokens"), "suite.as_fastchat is scored as it is")
    if not isinstance(suite, AlpacaEvalConfig):
        return {}
    answering = ("temperature", "max_new_tokens")
    if suite.annotations is not None:
        return dict.fromkeys(("rounds", "scoring", "votes", *answering), "suite.annotations are scored as they are")
    idle = {} if suite.scoring == "vote" else {"votes": f"suite.scoring={suite.scoring} asks once a pair"}
    if suite.outputs is not None:
        idle |= dict.fromkeys(answering, "suite.outputs are answers that are there")
        idle |= {"rounds": "there is one round of suite.outputs"} if suite.rounds != 1 else {}
    return idle
