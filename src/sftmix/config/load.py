"""From a composed config to typed objects, with every name, type and range checked. Each error is one line."""

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sftmix.config.entries import GROUPS, MIXUP_DIAGNOSTICS, TARGET, check_entries, check_targets
from sftmix.config.fields import dataclass_of, hints_of, key_of_field, options_of, with_field_names
from sftmix.config.schema import Config, literal
from sftmix.errors import ConfigError
from sftmix.quoting import hydra_value, shell_word

C = TypeVar("C")


def from_hydra(cfg: DictConfig) -> Config:
    """Return the config of a run after all checks.

    Raises:
        ConfigError: If a name, type or value is wrong, or settings cannot take effect together.
    """
    config = typed(cfg, Config)
    _check_sections(config)
    _check_split(config)
    _check_confidence(config)
    _check_source(config)
    _check_dro(config)
    _check_average(config)
    _check_callbacks(config)
    if config.judge is not None and config.mode != "check":
        raise ConfigError(f"judge={config.judge.name}: only mode=check reads it, and eval.py asks it after the run")
    sweep = config.sweep
    if sweep.gpus_per_job is not None and config.trainer.accelerator == "cpu" and sweep.launcher == "local":
        raise ConfigError(f"sweep.gpus_per_job={sweep.gpus_per_job}: trainer.accelerator=cpu takes no GPU")
    return config


def typed(cfg: DictConfig, schema: type[C]) -> C:
    """Return a composed config as an object of its dataclass, with every name, type and range checked."""
    try:
        container = OmegaConf.to_container(cfg, resolve=True)
        check_targets(container)
        for old in RENAMED:
            if new_name(old, schema) is not None and OmegaConf.select(cfg, old) is not None:
                raise ConfigError(unknown_key(old, schema=schema))
        merged = OmegaConf.merge(OmegaConf.structured(schema), literal(with_field_names(container, schema)))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} has no value, set it by {missing[0]}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain_omegaconf(error, schema)) from None
    assert isinstance(config, schema)
    for group in set(GROUPS) & {f.name for f in fields(schema)}:  # type: ignore[arg-type]
        check_entries(group, getattr(config, group))
    for owner, key, rule in _marked(config):
        value = getattr(owner, rule.name)
        value = list(value) if isinstance(value, ListConfig) else value
        if "path" in rule.metadata:
            setattr(owner, rule.name, _with_home(value))
        if value is not None and "holds" in rule.metadata and not rule.metadata["holds"](value):
            raise ConfigError(f"{key}={value}: expected {rule.metadata['expected']}")
    return config


def _check_sections(part: Any, key: str = "") -> None:
    """Call the method `check` of a dataclass and of all dataclasses in it, with the dotted key of each."""
    if isinstance(part, dict):
        for name, value in part.items():
            _check_sections(value, f"{key}.{name}")
    elif is_dataclass(part):
        if hasattr(part, "check"):
            part.check(key)
        for f in fields(part):
            _check_sections(getattr(part, f.name), f"{key}.{f.name}" if key else f.name)


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
    given = conf.checkpoints or conf.path or config.splits_after_first_epoch
    if config.reference.model != config.model and (not config.needs_confidence or given):
        why = "with confidence.checkpoints or confidence.path" if config.needs_confidence else f"under {unscored}"
        why = "with confidence.from=first_epoch" if config.splits_after_first_epoch else why
        raise ConfigError(f"reference.model={config.reference.model.title}: no reference is tuned {why}")
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
    if config.mode == "confidence" and (not config.needs_confidence or conf.path is not None):
        needless = unscored if config.needs_split else f"{unscored} needs no confidence"
        why = needless if conf.path is None else "confidence.path has it"
        raise ConfigError(f"mode=confidence: nothing is scored, {why}")


def _check_source(config: Config) -> None:
    """Refuse settings of the source of the confidence that cannot take effect."""
    conf, recipe, origin = config.confidence, config.recipe, f"confidence.from={config.confidence.from_}"
    if conf.from_ != "reference":
        if not config.needs_confidence:
            why = f"split.by={config.split.by}" if config.needs_split else f"recipe {recipe.name}"
            raise ConfigError(f"{origin}: {why} needs no confidence")
        for key in ("checkpoints", "path", "use"):
            if getattr(conf, key) is not None:
                raise ConfigError(f"confidence.{key}={getattr(conf, key)}: with {origin} it cannot take effect")
    if config.reference.epochs is not None and (conf.from_ != "reference" or conf.checkpoints or conf.path):
        why = origin if conf.from_ != "reference" else "confidence.checkpoints or confidence.path"
        raise ConfigError(f"reference.epochs={config.reference.epochs}: no reference is tuned with {why}")
    if config.reference.epochs is not None and not config.needs_confidence and recipe.comparison is None:
        raise ConfigError(f"reference.epochs={config.reference.epochs}: recipe {recipe.name} tunes no reference")
    if conf.window is not None and not config.splits_after_first_epoch:
        raise ConfigError(f"confidence.window={conf.window}: only confidence.from=first_epoch ranks within windows")
    if config.splits_after_first_epoch:
        _check_first_epoch(config, origin)


def _check_first_epoch(config: Config, origin: str) -> None:
    """Refuse what needs the subsets, or leaves out examples, in the first epoch."""
    recipe, mixed = config.recipe, "Mixup of all examples from the second epoch on"
    if config.mode == "confidence":
        raise ConfigError(f"mode=confidence: with {origin} nothing is scored before the target is tuned")
    if recipe.ntp.on != "all":
        on = f"recipe.ntp.on={recipe.ntp.on}"
        raise ConfigError(f"{origin}: {on} needs the subsets in the first epoch, expected {mixed}")
    if recipe.ntp.weight == 0:
        raise ConfigError(f"{origin}: with recipe.ntp.weight=0 nothing would be learned in the first epoch")
    if config.data.epochs < 2:
        raise ConfigError(f"data.epochs={config.data.epochs}: {origin} means {mixed}, expected at least 2 epochs")
    for key in ("overfit_batches", "limit_train_batches"):
        if value := getattr(config.trainer, key):
            raise ConfigError(f"trainer.{key}={value}: {origin} needs the loss of every example, expected no limit")


def _check_dro(config: Config) -> None:
    """Refuse settings without losses of a previous epoch, if IR-DRO weights by them."""
    if config.recipe.ntp.dro_losses != "previous_epoch":
        return
    origin = "recipe.ntp.dro_losses=previous_epoch"
    if config.data.epochs < 2:
        raise ConfigError(
            f"data.epochs={config.data.epochs}: {origin} weights from the second epoch on, expected at least 2 epochs"
        )
    if (limit := config.trainer.limit_train_batches) is not None:
        raise ConfigError(
            f"trainer.limit_train_batches={limit}: {origin} needs the loss of every example, expected no limit"
        )


def _check_average(config: Config) -> None:
    """Refuse what cannot take effect, or has no mean, if the target is the mean of the checkpoints."""
    if not config.averages_checkpoints:
        return
    what = f"recipe {config.recipe.name}"
    if config.model.lora is not None:
        raise ConfigError(
            f"model.lora: {what} averages whole weights, and the mean of the factors of adapters is not the mean of "
            f"the models: leave out model/lora"
        )
    if config.reference.seed not in (0, config.seed):
        raise ConfigError(f"reference.seed={config.reference.seed}: {what} averages checkpoints of seed={config.seed}")
    if config.callbacks:
        raise ConfigError(f"callbacks.{next(iter(config.callbacks))}: {what} trains nothing")


def _check_callbacks(config: Config) -> None:
    for name, entry in config.callbacks.items():
        if entry[TARGET] == MIXUP_DIAGNOSTICS:
            every = entry.get("every_n_steps", 1)
            if not isinstance(every, int) or every < 1:
                raise ConfigError(f"callbacks.{name}.every_n_steps={every}: expected an integer of at least 1")
            if config.recipe.mixup is None:
                raise ConfigError(f"callbacks.{name}: it measures Mixup, and the recipe has no Mixup term")
            if (pairing := config.recipe.mixup.pairing) in ("free", "within"):
                raise ConfigError(
                    f"callbacks.{name}: it compares the subsets of partners, expected pairs across the subsets instead "
                    f"of recipe.mixup.pairing={pairing}"
                )


def keys_of(dotted: str, schema: Any = Config) -> list[str] | None:
    """Return the names that are allowed below a key, or None if the key is not a group."""
    kind: Any = schema
    for name in dotted.split(".") if dotted else ():
        kind = dataclass_of(hints_of(kind).get(name))
        if kind is None:
            return None
    return [key_of_field(f) for f in fields(kind)]


KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", list: "a list", dict: "a mapping"}


def expected_at(dotted: str, schema: Any = Config) -> str | None:
    """Return what a key expects, in words: the kind of its value and its rule. None if neither is declared."""
    *sections, name = re.sub(r"\[\d+\]$", "", dotted).split(".")
    for section in sections:
        schema = dataclass_of(hints_of(schema).get(f"{section}_", hints_of(schema).get(section)))
        if schema is None:
            return None
    found = next((f for f in fields(schema) if key_of_field(f) == name), None)
    if found is None:
        return None
    options, rule = options_of(hints_of(schema)[found.name]), found.metadata.get("expected", "")
    kind = next((KINDS[kind] for option in options if (kind := get_origin(option) or option) in KINDS), "")
    if (section := dataclass_of(hints_of(schema)[found.name])) is not None:
        kind = f"a section with the keys {', '.join(map(key_of_field, fields(section)))}"
    words = [rule] if rule and kind not in (KINDS[int], KINDS[float]) else [word for word in (kind, rule) if word]
    return ", ".join([*words, *(["or null"] if words and type(None) in options else [])]) or None


# Earlier names of keys. They are refused with the new name.
RENAMED = {
    "data.shape": "data.schema",
    "data.better": "data.replacement",
    **{f"data.better.{key}": f"data.replacement.{key}" for key in ("path", "hub_id", "revision", "split", "fraction")},
    "recipe.lr": "optimizer.lr",
    "recipe.weight_decay": "optimizer.weight_decay",
    "recipe.betas": "optimizer.betas",
    "recipe.max_grad_norm": "optimizer.max_grad_norm",
    "recipe.warmup_ratio": "scheduler.warmup_ratio",
    "logger.diagnose_every_n_steps": "callbacks.mixup_diagnostics.every_n_steps, with callbacks=mixup_diagnostics",
}

RENAMED_CHOICES = {"recipe=mixup_alone": "recipe=mixup_only"}  # earlier names of choices, with the new ones

# How to write a section whose keys are often mistaken for its values.
WRITTEN = {"data.columns": "; one of these comes first: 'data.columns={instruction: COLUMN OF THE FILE}'"}


def new_name(dotted: str, schema: Any = Config) -> str | None:
    """Return the new name of a key that was renamed, or None for any other key."""
    parent, _, name = dotted.rpartition(".")
    return None if name in (keys_of(parent, schema) or []) else RENAMED.get(dotted)


def unknown_key(dotted: str, value: str | None = None, schema: Any = Config) -> str:
    """Return the message for a key that does not exist: its new name, or the keys of its section."""
    given = dotted if value is None else f"{dotted}={value}"
    if (new := new_name(dotted, schema)) is not None:
        return f"{given}: this key is now {new}"
    known = dotted.split(".")
    while known and keys_of(".".join(known[:-1]), schema) is None:
        known.pop()
    parent, name = ".".join(known[:-1]), known[-1] if known else dotted
    allowed = keys_of(parent, schema) or []
    if name == "True" and "on" in allowed:
        return f'{parent}: YAML reads a bare on as true, write it in quotes: "on": ...'
    if name in allowed and len(known) <= dotted.count("."):
        whole = ".".join(known)
        mapping = f"'{whole}={{{dotted.removeprefix(f'{whole}.')}: VALUE}}'"
        return f"{given}: {whole} has no keys, expected {whole}=VALUE, or {mapping} if it is a mapping"
    if name in allowed:
        return f"{given}: the primary config lacks it; a primary file of yours begins with `defaults: [config, _self_]`"
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    written = WRITTEN.get(parent, "")
    return f"{given}: no such key, {hint}{parent or 'the configuration'} has {', '.join(allowed)}{written}"


def explain_omegaconf(error: OmegaConfBaseException, schema: Any = Config) -> str:
    """Return an error of OmegaConf as one line: the key, the value, and what is allowed."""
    key = re.sub(r"_(?=\.|$)", "", error.full_key or "")  # the names of fields become keys
    first = str(error).split("\n")[0]
    if first.startswith("Key ") and "not in" in first:
        return unknown_key(key or first.split("'")[1], schema=schema)
    if followed := re.search(r"Interpolation key '(\S+)' not found", first):
        new = new_name(followed.group(1), schema)
        return f"{key}: ${{{followed.group(1)}}}: " + (f"this key is now {new}" if new else "no such key")
    if followed := re.search(r"while resolving interpolation: Missing mandatory value: (\S+)", first):
        return f"{followed.group(1)} has no value, set it by {followed.group(1)}=..."
    if "Missing mandatory value" in first or "missing value" in first.lower():
        name = first.rsplit("'", 2)[-2] if "'" in first else key
        at = f"model.{name.split('.')[-1]}" if key.startswith("reference.model.") else key or name
        return f"{at} has no value, set it by {at}=..."
    if "is not a ListConfig" in first:
        return f"{key}={error.value}: expected a list: {shell_word(f'{key}={hydra_value([error.value])}')}"
    if (expected := expected_at(key, schema)) is not None:
        received: Any = OmegaConf.to_container(OmegaConf.create({"value": error.value}))  # plain, without nodes
        return f"{key}={hydra_value(received['value'])}: expected {expected}"
    if "is not Optional" in first:
        return f"{key}=null: expected a value"
    return f"{key}: {first}" if key and key not in first else first


def _with_home(value: Any) -> Any:
    """Read `~` at the beginning of a path, or of each path of a list or mapping, as the home folder."""
    if isinstance(value, str):
        home = os.path.expanduser(value)
        return f"./{value}" if home == value and value.startswith("~") else home
    if isinstance(value, list):
        return [_with_home(element) for element in value]
    if isinstance(value, dict):
        return {key: _with_home(element) for key, element in value.items()}
    return value


def _marked(config: Any, prefix: str = "") -> Iterator[tuple[Any, str, Field[Any]]]:
    """Yield the object, the dotted key and the field of each value that has a rule or is a path."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from _marked(value, f"{prefix}{f.name}.")
        elif f.metadata:
            yield config, f"{prefix}{key_of_field(f)}", f
