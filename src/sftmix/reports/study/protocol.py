"""The protocol of a study: a YAML file with the arms, the claims and the rule of the verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftmix.errors import InputError, first_line
from sftmix.evaluation.offline.scores import SUBSETS

LOSSES = ("held-out loss", "training loss", "gap")  # each also ", confident" and ", unconfident"
OF_SETS = ("held-out loss", "Brier", "ECE", "accuracy", "entropy")  # after the name of a set of suite=offline
KEYS = {"title", "seeds", "margins", "arms", "claims", "mu"}
CLAIM_KEYS = {"claim", "a", "b", "primary", "others", "void_below", "only_if_lower"}


@dataclass(frozen=True)
class Measure:
    """What is compared."""

    name: str  # held-out loss, training loss, gap (held-out minus training loss), or a score of suite=offline
    subset: str | None = None  # confident or unconfident; None: all examples
    set: str | None = None  # Name of a set of suite=offline; None: the run's own examples

    @property
    def in_words(self) -> str:
        """The measure as the protocol writes it."""
        return f"{self.set}: {self.name}" if self.set else ", ".join(filter(None, (self.name, self.subset)))


@dataclass(frozen=True)
class Contrast:
    """Arm a minus arm b in one measure. Lower is better."""

    a: str
    b: str
    measure: Measure


@dataclass(frozen=True)
class Claim:
    """A claim with its primary contrast, which gets a verdict, and others, which get only an interval."""

    name: str
    primary: Contrast
    others: tuple[Contrast, ...]
    void_arm: str | None  # The claim is void if the gap of this arm, over all examples, is below `void_below`
    void_below: float
    only_if_lower: Contrast | None  # The claim is supported only if the interval of this contrast is below 0 too


@dataclass(frozen=True)
class Protocol:
    """Claims, arms and margins of a study."""

    title: str
    arms: Mapping[str, tuple[str, str]]  # Ablation and overrides of each arm
    margins: Mapping[str, float]  # Smallest difference that matters, in nats per token, by the name of the model
    seeds: Mapping[str, tuple[int, ...]]  # Seeds of each arm, by the name of the model; others do not count
    claims: tuple[Claim, ...]
    mu: Mapping[float, str]  # Arms that differ only in the weight of the Mixup term, by the weight


def read_protocol(file: Path) -> Protocol:
    """Read and check a protocol.

    Raises:
        InputError: If the file cannot be read, has an unknown key, or names an unknown arm or measure.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"study={file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"study={file}: not a YAML file ({first_line(error)})") from None
    where = f"study={file}"
    _check_keys(where, content, KEYS, KEYS - {"mu"})
    arms = {
        str(arm): (str(ablation), str(overrides))
        for ablation, of_one in _mapping(f"{where}: arms", content["arms"]).items()
        for arm, overrides in _mapping(f"{where}: arms.{ablation}", of_one).items()
    }
    margins = {
        str(model): _number(f"{where}: margins.{model}", value)
        for model, value in _mapping(f"{where}: margins", content["margins"]).items()
    }
    seeds = {
        str(model): _seeds(f"{where}: seeds.{model}", value)
        for model, value in _mapping(f"{where}: seeds", content["seeds"]).items()
    }
    if set(margins) != set(seeds):
        raise InputError(f"{where}: margins and seeds name different models, expected a margin and seeds for each")
    if not isinstance(content["claims"], list):
        raise InputError(f"{where}: claims: expected a list")
    claims = tuple(_claim(f"{where}: claim {k}", claim, arms) for k, claim in enumerate(content["claims"], start=1))
    by_mu = {}
    for mu, arm in _mapping(f"{where}: mu", content.get("mu", {})).items():
        by_mu[_number(f"{where}: mu", mu, least=0)] = _arm(f"{where}: mu.{mu}", arm, arms)
    return Protocol(str(content["title"]), arms, margins, seeds, claims, by_mu)


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not is_list or len(value) < 2 or len(set(value)) < len(value):
        raise InputError(f"{where}={value}: expected a list of at least 2 different seeds")
    return tuple(value)


def _claim(where: str, content: Any, arms: Mapping[str, Any]) -> Claim:
    _check_keys(where, content, CLAIM_KEYS, {"claim", "a", "b", "primary"})
    a, b = (_arm(f"{where}, {side}", content[side], arms) for side in "ab")
    others = []
    for other in content.get("others", []):
        of = {"a": a, "b": b, **other} if isinstance(other, dict) else {"a": a, "b": b, "measure": other}
        _check_keys(f"{where}, others", of, {"a", "b", "measure"}, {"a", "b", "measure"})
        one, other_one = (_arm(f"{where}, others, {side}", of[side], arms) for side in "ab")
        others.append(Contrast(one, other_one, _measure(where, of["measure"])))
    void = content.get("void_below")
    if void is not None:
        _check_keys(f"{where}, void_below", void, {"arm", "gap"}, {"arm", "gap"})
    return Claim(
        str(content["claim"]),
        Contrast(a, b, _measure(where, content["primary"])),
        tuple(others),
        None if void is None else _arm(f"{where}, void_below", void["arm"], arms),
        0.0 if void is None else _number(f"{where}, void_below.gap", void["gap"]),
        Contrast(a, b, _measure(where, content["only_if_lower"])) if "only_if_lower" in content else None,
    )


def _measure(where: str, text: Any) -> Measure:
    of_set, separator, name = str(text).rpartition(": ")
    if separator:
        if name in OF_SETS:
            return Measure(name, set=of_set)
    else:
        name, _, subset = str(text).partition(", ")
        if name in LOSSES and subset in ("", *SUBSETS):
            return Measure(name, subset or None)
    expected = f"{', '.join(LOSSES)}, each also ', confident' or ', unconfident'; or 'SET: {OF_SETS[0]}', {OF_SETS[1:]}"
    raise InputError(f"{where}: measure {text}: expected {expected}")


def _arm(where: str, arm: Any, arms: Mapping[str, Any]) -> str:
    if str(arm) not in arms:
        raise InputError(f"{where}: no arm {arm}, expected one of {', '.join(arms)}")
    return str(arm)


def _number(where: str, value: Any, least: float | None = None) -> float:
    """Return a finite number above 0, or from `least` on."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (value < least if least is not None else value <= 0):
        raise InputError(f"{where}={value}: expected a number {'above 0' if least is None else f'of at least {least}'}")
    return float(value)


def _mapping(where: str, content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping, received {type(content).__name__}")
    return content


def _check_keys(where: str, content: Any, known: set[str], required: set[str]) -> None:
    keys: Sequence[str] = [str(key) for key in _mapping(where, content)]
    if unknown := [key for key in keys if key not in known]:
        raise InputError(f"{where}: no such key {', '.join(unknown)}, expected {', '.join(sorted(known))}")
    if lacking := sorted(required - set(keys)):
        raise InputError(f"{where}: lacks {', '.join(lacking)}")
