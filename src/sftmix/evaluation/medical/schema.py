"""Settings of suite=medical."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sftmix.config.fields import checked, number, one_of, path_field
from sftmix.evaluation.suite_config import SuiteConfig

MEDICAL = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")  # the columns of Table 2


@dataclass(kw_only=True)
class MedicalConfig(SuiteConfig):
    """Multiple choice, three-shot (Table 2)."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "bench"})
    in_all: ClassVar[bool] = True
    notes: ClassVar[tuple[str, ...]] = ("free: the right letter is the most probable of all tokens",)
    usage: ClassVar[Mapping[str, str]] = {
        "run=runs/RUN suite=medical": "MedQA, MedQA-5, PubMedQA, MedMCQA, three-shot, three rounds",
    }

    benchmarks: list[str] = checked(
        lambda names: len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(MEDICAL),
        f"some of {', '.join(MEDICAL)}, each once",
    )  # Benchmarks
    hub: dict[str, str] | None = path_field(
        holds=lambda sets: len(sets) > 0 and set(sets) <= set(MEDICAL),
        expected=f"a data set for some of {', '.join(MEDICAL)}: '{{MedQA: GBaker/MedQA-USMLE-4-options}}'",
    )  # Data sets of the hub, or folders, instead of the files: {MedQA: OWNER/NAME}
    num_shots: int = number(least=0)  # Solved examples in each prompt
    pool: str = one_of("train", "held_out")  # Source of the solved examples: the train part, or held-out test questions
    rounds: int = number(least=1)  # Draws of the solved examples
    template: str | None = path_field()  # Chat template; null: none
    batch_size: int = number(least=1)  # Prompts of a batch
