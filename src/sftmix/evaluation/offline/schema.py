"""Settings of suite=offline."""

from dataclasses import dataclass

from sftmix.config.fields import checked, number


@dataclass(kw_only=True)
class OfflineConfig:
    """What needs no judge."""

    name: str
    num_train: int = number(least=2)  # Training examples for the gap to held-out loss
    num_answers: int = number(least=0)  # Held-out prompts to answer
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    num_bins: int = number(least=2)  # Bins of the calibration error
    lams: list[float] = checked(
        lambda x: len(x) > 0 and all(0 < v < 1 for v in x), "numbers between 0 and 1"
    )  # Mixing ratios of the linearity test
