"""Settings of suite=offline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sftmix.config.fields import checked, number
from sftmix.evaluation.suite_config import SuiteConfig

if TYPE_CHECKING:
    from sftmix.evaluation.target import Target


@dataclass(kw_only=True)
class OfflineConfig(SuiteConfig):
    """What needs no judge."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "generate", "seed"})
    in_all: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    prints_scores: ClassVar[bool] = True
    usage: ClassVar[Mapping[str, str]] = {
        "run=runs/RUN suite=offline": "held-out loss, calibration, length: no judge",
    }

    num_train: int = number(least=2)  # Training examples for the gap to held-out loss
    num_answers: int = number(least=0)  # Held-out prompts to answer
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    num_bins: int = number(least=2)  # Bins of the calibration error
    lams: list[float] = checked(
        lambda x: len(x) > 0 and all(0 < v < 1 for v in x), "numbers between 0 and 1"
    )  # Mixing ratios of the linearity test

    def why_left_out(self, target: "Target") -> str | None:
        if target.run is not None:
            return None
        return f"{target.name} is not a run of train.py, so its held-out data are unknown"
