"""Settings of suite=medical."""

from dataclasses import dataclass

from sftmix.config.fields import checked, number, one_of, path_field

MEDICAL = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")  # the columns of Table 2


@dataclass(kw_only=True)
class MedicalConfig:
    """Multiple choice, three-shot (Table 2)."""

    name: str
    benchmarks: list[str] = checked(
        lambda names: len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(MEDICAL),
        f"some of {', '.join(MEDICAL)}, each once",
    )  # Benchmarks
    hub: dict[str, str] | None = path_field(
        holds=lambda sets: len(sets) > 0 and set(sets) <= set(MEDICAL),
        expected=f"a data set for some of {', '.join(MEDICAL)}: '{{MedQA: GBaker/MedQA-USMLE-4-options}}'",
    )  # Data sets of the hub, or folders, instead of the files: {MedQA: OWNER/NAME}
    num_shots: int = number(least=0)  # Solved examples in each prompt
    pool: str = one_of("train", "held_out")  # Where they come from
    rounds: int = number(least=1)  # Draws of them
    template: str | None = path_field()  # Chat template; null: none
    batch_size: int = number(least=1)  # Prompts of a batch
