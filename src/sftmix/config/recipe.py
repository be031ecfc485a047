"""The recipe of the config: terms of the loss, optimizer and learning rate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sftmix.config.entries import result_changing
from sftmix.config.fields import checked, number, one_of
from sftmix.errors import ConfigError

# Next-token prediction of the baseline and of the reference.
PLAIN_NTP: dict[str, Any] = {
    "weight": 1.0,
    "on": "all",
    "prompt_weight": 0.0,
    "label_smoothing": 0.0,
    "token_weight": None,
    "token_weight_power": 1.0,
    "dro_temperature": None,
    "dro_losses": "step",
}
COMPARISONS = ("checkpoint_average", "matched_compute")
PLAIN_MIXUP: dict[str, Any] = {"pairing": "across", "form": "full"}  # Keys that earlier records may lack


@dataclass(kw_only=True)
class Ntp:
    """The next-token prediction term of the loss."""

    weight: float = number(least=0)  # Weight of next-token prediction in the loss
    on: str = one_of("all", "confident", "unconfident")  # Examples that next-token prediction learns from
    prompt_weight: float = number(least=0)  # Weight of the prompt tokens in the loss; 0: responses only
    label_smoothing: float = number(
        least=0, below=1
    )  # Probability that the label of a token spreads over the vocabulary; 0: none
    token_weight: str | None = one_of(
        "dft", "eaft"
    )  # Weight by the prediction: dft: probability of the token; eaft: entropy; null: none
    token_weight_power: float = number(above=0)  # Power of the token weight
    dro_temperature: float | None = number(
        above=0
    )  # IR-DRO: examples of a step are weighted by softmax(mean loss / temperature); null: equally
    dro_losses: str = one_of(
        "step", "previous_epoch"
    )  # Losses of IR-DRO: step: one more forward pass; previous_epoch: recorded in training, no further pass

    @property
    def has_dro_pass(self) -> bool:
        """Whether the weights of IR-DRO take one more forward pass of each step."""
        return self.dro_temperature is not None and self.dro_losses == "step"

    def check(self, key: str) -> None:
        if self.token_weight_power != 1 and self.token_weight is None:
            raise ConfigError(
                f"{key}.token_weight_power={self.token_weight_power}: without {key}.token_weight it cannot take effect"
            )
        if self.dro_losses != "step" and self.dro_temperature is None:
            raise ConfigError(
                f"{key}.dro_losses={self.dro_losses}: without {key}.dro_temperature it cannot take effect"
            )
        if self.dro_temperature is not None and self.prompt_weight != 0:
            why = "the weights of IR-DRO are of responses, expected 0 with it"
            raise ConfigError(f"{key}.prompt_weight={self.prompt_weight}: {why} ({key}.dro_temperature)")


@dataclass(kw_only=True)
class Mixup:
    """The Mixup term of the loss (recipe=sftmix)."""

    mu: float = number(least=0)  # Weight of the Mixup term in the loss
    alpha: float = number(above=0)  # Mixing ratio lambda ~ Beta(alpha, alpha)
    normalize_by: str = one_of(
        "tokens", "mixed_tokens"
    )  # Divide the Mixup sum by all response tokens or by the mixed ones
    pairing: str = one_of(
        "across", "free", "within", "rank", "length"
    )  # Partners: across the subsets at random; any or within a subset (controls); by rank or length: similar ones
    form: str = one_of(
        "full", "reweight", "labels"
    )  # full: Mixup; controls on the same pairs: reweight (NTP weighted by lambda), labels (the partner's label too)

    def check(self, key: str) -> None:
        if self.mu == 0 and self.form != "full":
            raise ConfigError(f"{key}.form={self.form}: with {key}.mu=0 it cannot take effect")
        if self.mu == 0 and self.pairing in ("free", "within"):
            raise ConfigError(f"{key}.pairing={self.pairing}: with {key}.mu=0 it cannot take effect")


@dataclass(kw_only=True)
class Recipe:
    """The terms of the loss, and the examples of an optimizer step."""

    name: str
    global_batch_size: int = number(least=1)  # Examples of an optimizer step over all processes
    length_window: int = number(least=1)  # Sort by length within so many steps; 1: off
    neftune_alpha: float | None = number(above=0)  # Noise of size alpha / sqrt(L d) on the embeddings; null: none
    ntp: Ntp
    mixup: Mixup | None
    comparison: str | None = one_of(
        *COMPARISONS
    )  # checkpoint_average: mean of the reference's checkpoints; matched_compute: NTP as long as SFTMix

    def check(self, key: str) -> None:
        if self.ntp.weight == 0:
            if self.mixup is None:
                raise ConfigError(f"{key}.ntp.weight=0: recipe {self.name} has no Mixup, so nothing would be learned")
            for name, plain in PLAIN_NTP.items():
                if name != "weight" and (value := getattr(self.ntp, name)) != plain:
                    raise ConfigError(f"{key}.ntp.{name}={value}: with {key}.ntp.weight=0 it cannot take effect")
            if self.mixup.mu == 0:
                raise ConfigError(f"{key}.mixup.mu=0: with {key}.ntp.weight=0 nothing would be learned")
        if self.comparison is not None:
            is_plain = asdict(self.ntp) == PLAIN_NTP and self.mixup is None and self.neftune_alpha is None
            if not is_plain:
                raise ConfigError(
                    f"{key}.comparison={self.comparison}: it compares plain next-token prediction (recipe=ntp)"
                )
        if self.mixup is not None and self.global_batch_size % 2:
            size = f"{key}.global_batch_size={self.global_batch_size}"
            raise ConfigError(f"{size}: expected an even number, since Mixup takes whole pairs")


@dataclass(kw_only=True)
class Optimizer:
    """AdamW."""

    lr: float = number(above=0)  # Peak learning rate; follows model.lr
    weight_decay: float = number(least=0)  # Weight decay, not on norms and biases
    betas: list[float] = checked(
        lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers in [0, 1)"
    )  # Betas of AdamW
    max_grad_norm: float = number(above=0)  # Norm at which gradients are clipped


@dataclass(kw_only=True)
class Scheduler:
    """Learning rate of each optimizer step."""

    shape: str = one_of("cosine", "linear", "constant")  # Shape after the warm-up; set by scheduler=
    warmup_ratio: float = number(least=0, below=1)  # Fraction of the optimizer steps in which the learning rate rises
    min_lr_ratio: float = number(least=0, most=1)  # The learning rate ends at this fraction of the peak

    def check(self, key: str) -> None:
        if self.shape == "constant" and self.min_lr_ratio != 0:
            raise ConfigError(f"{key}.min_lr_ratio={self.min_lr_ratio}: scheduler=constant ends at the peak")


def used_terms(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return `ntp` and `mixup` of a recipe without the keys that have no effect, except those of the first version.

    Fingerprints and titles hold only these, so a run keeps both when a later version has more keys.
    """
    ntp, mixup = recipe["ntp"], recipe["mixup"]
    return {
        "ntp": {key: value for key, value in ntp.items() if key in ("weight", "on") or value != PLAIN_NTP[key]},
        "mixup": mixup and {k: v for k, v in mixup.items() if k not in PLAIN_MIXUP or v != PLAIN_MIXUP[k]},
    }


def is_baseline(content: Mapping[str, Any]) -> bool:
    """Return whether a run is the NTP baseline: only next-token prediction of all responses, with weight 1.

    A baseline has no Mixup, noise, loss on prompts, label smoothing, weights of tokens or examples, or callback that
    can change what is learned. Weights of the data do not count: they belong to the data set.

    Args:
        content: The config of a run as in `run.json`, or the fields of its manifest.
    """
    recipe = content.get("recipe") or {}
    ntp = recipe.get("ntp") or {}
    return (
        "weight" in ntp
        and {**PLAIN_NTP, **ntp} == PLAIN_NTP
        and recipe.get("mixup") is None
        and recipe.get("neftune_alpha") is None
        and recipe.get("comparison") is None
        and not result_changing(content.get("callbacks") or {})
    )
