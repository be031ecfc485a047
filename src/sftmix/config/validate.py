"""Rules between sections of the config: settings that are each allowed and cannot take effect together are an error."""

from dataclasses import fields, is_dataclass
from typing import Any

from sftmix.config.entries import MIXUP_DIAGNOSTICS, TARGET
from sftmix.config.schema import Config
from sftmix.errors import ConfigError


def check(config: Config) -> None:
    """Check each section, then the rules between sections.

    Raises:
        ConfigError: The key, its value, and what is expected.
    """
    check_sections(config)
    _check_split(config)
    _check_confidence(config)
    _check_mode(config)
    _check_callbacks(config)
    if (
        config.sweep.gpus_per_job is not None
        and config.trainer.accelerator == "cpu"
        and config.sweep.launcher == "local"
    ):
        raise ConfigError(f"sweep.gpus_per_job={config.sweep.gpus_per_job}: trainer.accelerator=cpu takes no GPU")


def check_sections(part: Any, key: str = "") -> None:
    """Call the method `check` of a dataclass and of all dataclasses in it, with the dotted key of each."""
    if isinstance(part, dict):
        for name, value in part.items():
            check_sections(value, f"{key}.{name}")
    elif is_dataclass(part):
        if hasattr(part, "check"):
            part.check(key)
        for f in fields(part):
            check_sections(getattr(part, f.name), f"{key}.{f.name}" if key else f.name)


def _check_split(config: Config) -> None:
    split, recipe = config.split, config.recipe
    if split.by != "confidence" and not config.needs_split:
        raise ConfigError(f"split.by={split.by}: recipe {recipe.name} on all examples needs no split")
    if split.by != "random" and split.seed != config.seed:
        raise ConfigError(f"split.seed={split.seed}: split.by={split.by} draws no random numbers")
    if recipe.mixup is not None and recipe.mixup.pairing == "rank" and split.by != "confidence":
        raise ConfigError(f"recipe.mixup.pairing=rank: split.by={split.by} has no confidence to rank by")


def _check_confidence(config: Config) -> None:
    conf, recipe = config.confidence, config.recipe
    unscored = f"split.by={config.split.by}" if config.needs_split else f"recipe {recipe.name}"
    if config.reference.model != config.model and (not config.needs_confidence or conf.checkpoints or conf.path):
        why = "with confidence.checkpoints or confidence.path" if config.needs_confidence else f"under {unscored}"
        raise ConfigError(f"reference.model={config.reference.model.name}: no reference is tuned {why}")
    if conf.checkpoints is not None and conf.path is not None:
        raise ConfigError("confidence.path: with confidence.checkpoints it cannot take effect, give one of them")
    if not config.needs_confidence:
        for key in ("checkpoints", "path", "use"):
            if getattr(conf, key) is not None:
                raise ConfigError(f"confidence.{key}={getattr(conf, key)}: {unscored} needs no confidence")
    elif conf.path is None and conf.use is not None:
        num = len(conf.checkpoints) if conf.checkpoints else config.reference.num_checkpoints
        if (max(conf.use) if isinstance(conf.use, list) else conf.use) > num:
            raise ConfigError(f"confidence.use={conf.use}: there are {num} checkpoints")


def _check_mode(config: Config) -> None:
    if config.mode == "confidence" and (not config.needs_confidence or config.confidence.path is not None):
        why = f"recipe {config.recipe.name} needs no confidence"
        if config.needs_split:
            why = f"split.by={config.split.by}" if config.confidence.path is None else "confidence.path has it"
        raise ConfigError(f"mode=confidence: nothing is scored, {why}")


def _check_callbacks(config: Config) -> None:
    for name, entry in config.callbacks.items():
        if entry[TARGET] == MIXUP_DIAGNOSTICS:
            every = entry.get("every_n_steps", 1)
            if not isinstance(every, int) or every < 1:
                raise ConfigError(f"callbacks.{name}.every_n_steps={every}: expected an integer of at least 1")
            if config.recipe.mixup is None:
                raise ConfigError(f"callbacks.{name}: it measures Mixup, and the recipe has no Mixup term")
