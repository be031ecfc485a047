"""Under which settings evaluations were made: no average and no difference is over several."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sftmix.reports.dict_paths import leaves_of

OF_WEIGHTS = ("model", "identity")  # at any depth: whose answers they are, which every run has its own of
OF_ANSWERS = ("answers.outputs", "answers.sha256")  # the file that stands for the weights where answers are given
LONGEST = 16  # characters of a value that is said as it is; of a hash its first eight do


def mixed_settings(settings: Iterable[Mapping[str, Any]]) -> str | None:
    """What is said of evaluations that were made under other settings, key by key; None where they agree.

    What names the weights is no such setting: it is what differs between the runs of a table. All else counts, a key
    that one of them lacks too.
    """
    found = [_conditions(of_one) for of_one in settings]
    said = []
    for key in dict.fromkeys(key for conditions in found for key in conditions):
        values = sorted({conditions.get(key, "absent") for conditions in found})
        if len(values) > 1:
            said.append(f"{key} ({', '.join(map(_shortened, values))})")
    return f"evaluated under other settings: {', '.join(said)}" if said else None


def _conditions(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings by their dotted names, each as JSON, without those that name the weights."""
    return {
        key: json.dumps(value, sort_keys=True)
        for key, value in leaves_of(settings).items()
        if key.rpartition(".")[2] not in OF_WEIGHTS and key not in OF_ANSWERS
    }


def _shortened(value: str) -> str:
    text = value.strip('"')
    return text if len(text) <= LONGEST else f"{text[:8]}.."
