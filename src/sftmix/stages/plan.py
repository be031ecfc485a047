"""Which artifacts a config means: the reference, its confidence, the target, and the baseline beside the target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import Artifact
from sftmix.config.model import Model
from sftmix.config.recipe import PLAIN_NTP, Ntp, used_terms
from sftmix.config.schema import Config, to_dict
from sftmix.distributed.device import Device
from sftmix.stages.device_choice import choose_device
from sftmix.stages.fingerprint import confidence_fields, data_fields, examples_fields, run_fields, split_fields
from sftmix.stages.inputs import check_inputs, pin_revisions, quantized_by

UNTITLED = ("weight", "on", "mu", "alpha", "normalize_by", "pairing")  # Terms that no title shows, or elsewhere


@dataclass(frozen=True)
class Plan:
    """The artifacts of a config."""

    reference: Artifact | None  # NTP run whose checkpoints score or are averaged, or None if no reference is tuned
    confidence: Artifact | None  # Scores of the examples, or None if nothing is scored or a file of scores is given
    target: Artifact  # Run of the tuned model
    baseline: Artifact  # NTP run with the target's model, seed and learning rate. The target is compared with it.
    scores_base: bool = False  # Whether the untuned `reference.model` scores instead of a tuned reference

    @property
    def reads_reference(self) -> bool:
        """Whether `reference.model` is read: to tune a reference, or to score by it as it is."""
        return self.tunes_reference or (
            self.scores_base and self.confidence is not None and not self.confidence.is_complete
        )

    @property
    def tunes_reference(self) -> bool:
        """Whether a reference has to be tuned, or at least scored or averaged."""
        reads = self.target if self.confidence is None else self.confidence
        return self.reference is not None and not reads.is_complete


def plan_run(config: Config) -> tuple[Device, Plan]:
    """Check the input files of a config and pin its revisions. Return its devices and artifacts."""
    check_inputs(config)
    pin_revisions(config)
    device = choose_device(config.trainer, quantized_by(config))
    return device, make_plan(config, device)


def make_plan(config: Config, device: Device) -> Plan:
    """Return the artifacts that a config means on a device."""
    data, precision = data_fields(config), device.precision

    def run(config: Config, more: Mapping[str, Any] = {}) -> Artifact:
        num_checkpoints = config.reference.num_checkpoints if config.is_baseline else None
        fields = {**run_fields(config, data, precision, num_checkpoints), **more}
        return Artifact(Path(config.root), _title(config), fields)

    baseline = run(baseline_config(config))
    if config.averages_checkpoints:
        averaged = run(reference_config(config))
        return Plan(averaged, None, run(config, {"reference": averaged.fingerprint}), baseline)
    if not config.needs_split:
        return Plan(None, None, baseline if config.is_baseline else run(config), baseline)
    reference, confidence = None, None
    is_base = config.needs_confidence and config.confidence.from_ == "base"
    if config.needs_confidence and config.confidence.path is None and not config.splits_after_first_epoch:
        tuned, given = config.reference, config.confidence.checkpoints
        if given is None and not is_base:
            reference = run(reference_config(config))
        scored = f"{_tuned_name(tuned.model)}" if given is None else f"{len(given)}checkpoints"
        scored = f"base-{tuned.model.title}" if is_base else scored
        seed = f"-seed{tuned.seed}" if reference is not None else ""
        fields = confidence_fields(config, data, precision, reference)
        confidence = Artifact(Path(config.root), f"confidence-{scored}-{config.data.title}{seed}", fields)
    return Plan(reference, confidence, run(config, split_fields(config, confidence)), baseline, is_base)


def reference_config(config: Config) -> Config:
    """Return the config of the reference: an NTP run of `reference.model` and `reference.seed`.

    The peak learning rate is `optimizer.lr` if the reference has the target's model, and the model's own otherwise.
    With `reference.epochs`, the schedule is the one of a run of that length. The reference is not measured on
    `data.val_path`, so that further validation files need no other reference. Checkpoints that are averaged are those
    of the NTP run of `seed`.
    """
    reference = config.reference
    seed = config.seed if config.averages_checkpoints else reference.seed
    lr = config.optimizer.lr if reference.model == config.model else reference.model.peak_lr
    data = replace(config.data, epochs=reference.epochs or config.data.epochs, val_path=None)
    return _ntp_config(replace(config, data=data), reference.model, lr, seed)


def baseline_config(config: Config) -> Config:
    """Return the config of the baseline: an NTP run of the target's model, seed and learning rate."""
    return _ntp_config(config, config.model, config.optimizer.lr, config.seed)


def _ntp_config(config: Config, model: Model, lr: float, seed: int) -> Config:
    recipe = replace(config.recipe, name="ntp", neftune_alpha=None, ntp=Ntp(**PLAIN_NTP), mixup=None, comparison=None)
    optimizer = replace(config.optimizer, lr=lr)
    return replace(config, model=model, seed=seed, recipe=recipe, optimizer=optimizer, callbacks={})


def is_reference(config: Config) -> bool:
    """Whether the target of a config is the reference that a split under the same settings would use."""
    return config.is_baseline and baseline_config(config) == reference_config(config)


def examples_artifact(config: Config) -> Artifact:
    """Return the artifact of the examples of a data set. They are text, so they do not depend on the model."""
    return Artifact(Path(config.root) / "data", f"examples-{config.data.title}", examples_fields(config))


def base_artifact(root: str, model: Model) -> Artifact:
    """Return the artifact of the embedded model before tuning. LoRA adapters name its folder as their base."""
    fields = {"kind": "base", "init": to_dict(model.init), "pad_token": model.pad_token}
    return Artifact(Path(root), f"base-{model.title}", fields)


def _title(config: Config) -> str:
    recipe = config.recipe
    split = f"-{config.split.by}" if config.needs_split and config.split.by != "confidence" else ""
    if config.needs_confidence and config.confidence.from_ != "reference":
        split = f"-{config.confidence.from_}"
    mu = "" if recipe.mixup is None else f"-mu{recipe.mixup.mu:g}"
    noise = "" if recipe.neftune_alpha is None else f"-noise{recipe.neftune_alpha:g}"
    used = used_terms(to_dict(recipe))
    used = {**used["ntp"], **(used["mixup"] or {})}
    terms = {key: value for key, value in used.items() if key not in UNTITLED and value != recipe.name}
    shown = [f"-{v}" if isinstance(v, str) else f"-{k.removesuffix('_weight')}{v:g}" for k, v in terms.items()]
    name = f"{recipe.name}{split}-{_tuned_name(config.model)}-{config.data.title}"
    return f"{name}{mu}{noise}{''.join(shown)}-seed{config.seed}"


def _tuned_name(model: Model) -> str:
    quantization = "" if model.quantization is None else f"-{model.quantization}"
    return model.title if model.lora is None else f"{model.title}-lora{quantization}"
