"""Settings of suite=offline."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sftmix.config.fields import checked, number, path_field
from sftmix.evaluation.results import OWN_HELD_OUT
from sftmix.evaluation.suite_config import SuiteConfig

if TYPE_CHECKING:
    from sftmix.evaluation.schema import EvalConfig
    from sftmix.evaluation.target import Target


def _are_sets(sets: Mapping[str, str]) -> bool:
    names = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
    are_named = all(names.fullmatch(name) and name.lower() != OWN_HELD_OUT for name in sets)
    return bool(sets) and are_named and all(isinstance(file, str) and file for file in sets.values())


@dataclass(kw_only=True)
class OfflineConfig(SuiteConfig):
    """Metrics without a judge."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "generate", "seed"})
    in_all: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    prints_scores: ClassVar[bool] = True
    usage: ClassVar[Mapping[str, str]] = {
        "run=runs/RUN suite=offline": "held-out loss, calibration, length: no judge",
        "suite=offline 'suite.sets={lima: FILE}'": "the same on further files of examples, for any model",
    }

    sets: dict[str, str] | None = path_field(
        holds=_are_sets,
        expected="names of letters, digits, '.', '_' and '-', other than held-out, each with a file: '{lima: FILE}'",
    )  # Files of further held-out examples: {NAME: FILE}
    num_train: int = number(least=2)  # Training examples for the gap to held-out loss
    num_answers: int = number(least=0)  # Held-out prompts of the run to answer
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    num_bins: int = number(least=2)  # Bins of the calibration error
    lams: list[float] = checked(
        lambda x: len(x) > 0 and all(0 < v < 1 for v in x), "numbers between 0 and 1"
    )  # Mixing ratios of the linearity test

    def check_call(self, config: "EvalConfig") -> None:
        from sftmix.data.files import check_file

        for name, path in (self.sets or {}).items():
            check_file(Path(path), f"suite.sets.{name}")

    def why_left_out(self, target: "Target") -> str | None:
        if target.run is not None or self.sets:
            return None
        return f"{target.name} is not a run of train.py, so its held-out data are unknown"
