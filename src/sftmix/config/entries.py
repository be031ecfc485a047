"""Entries of the groups `callbacks` and `logger`: the name of a class (`_target_`) and its arguments.

No class is imported here: `lightning` takes seconds, and a config error is reported before that.
"""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sftmix.errors import ConfigError

Entries = dict[str, Any]  # an entry is a mapping, which `check_entries` checks

GROUPS = ("callbacks", "logger")
TARGET = "_target_"
FOLDERS = ("save_dir", "dirpath")  # arguments of loggers and of ModelCheckpoint
LIGHTNING = ("lightning", "pytorch_lightning")
WANDB = "lightning.pytorch.loggers.WandbLogger"
MIXUP_DIAGNOSTICS = "sftmix.training.diagnostics.MixupDiagnostics"
# Callbacks of Lightning that do not change what is learned. Every other callback enters the fingerprint of the run.
INERT_CALLBACKS = {
    "DeviceStatsMonitor",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "RichModelSummary",
    "RichProgressBar",
    "ThroughputMonitor",
    "TQDMProgressBar",
}
REQUIRED = {  # one of the packages is enough
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "MLFlowLogger": ("mlflow",),
    "WandbLogger": ("wandb",),
}
SECRET = re.compile(r"(?i)(^|_)(api_?)?(key|token|secret|password|credentials?)$")
# Variable of the environment that a service reads its key from, by a word in the name of the logger's class.
VARIABLES = {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_TOKEN", "comet": "COMET_API_KEY"}


def check_entries(group: str, entries: Entries) -> None:
    """Refuse entries that are not a mapping with the `_target_` of an installed package, or that hold a secret."""
    for name, entry in entries.items():
        key = f"{group}.{name}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{key}={entry}: expected a mapping with {TARGET}: {{{TARGET}: package.Class}}")
        target = entry.get(TARGET)
        if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
            raise ConfigError(f"{key}.{TARGET}={target}: expected the dotted name of a class, package.Class")
        package, _, kind = target.partition(".")[0], *target.rpartition(".")[1:]
        if importlib.util.find_spec(package) is None:
            hint = "(your own folder: PYTHONPATH=FOLDER)"
            raise ConfigError(f"{key}.{TARGET}={target}: the package {package} is not installed {hint}")
        for path, nested in leaves(entry, key):
            module = str(nested).partition(".")[0]
            if path.endswith(f".{TARGET}") and not (module.isidentifier() and importlib.util.find_spec(module)):
                raise ConfigError(f"{path}={nested}: expected the dotted name of a class of an installed package")
        required = REQUIRED.get(kind, ()) if package in LIGHTNING else ()
        if required and not any(importlib.util.find_spec(name) for name in required):
            raise ConfigError(f"{key}: {kind} requires the package {required[0]}: pip install {required[0]}")
        _check_secrets(key, entry, target)
    wandb = entries.get("wandb")
    if group == "logger" and wandb and wandb.get("mode") not in (None, "online", "offline", "disabled"):
        raise ConfigError(f"logger.wandb.mode={wandb['mode']}: expected one of online, offline, disabled")


def _check_secrets(key: str, entry: Mapping[str, Any], target: str) -> None:
    """Refuse keys, tokens and passwords: the config is written to files of the run. The message holds no value."""
    variable = next((name for word, name in VARIABLES.items() if word in target.lower()), "that its library reads")
    instead = f"set the environment variable {variable} instead, since the config is written to files"
    secrets = {value: name for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8}
    for path, value in leaves(entry, key):
        if SECRET.search(path.rpartition(".")[2]) and value is not None:
            raise ConfigError(f"{path}: the config takes no keys or tokens; {instead}")
        if isinstance(value, str) and re.search(r"://[^/@\s]*:[^/@\s]+@", value):
            raise ConfigError(f"{path}: the config takes no passwords, this address contains one; {instead}")
        if isinstance(value, str) and re.search(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8}", value):
            raise ConfigError(f"{path}: the config takes no keys or tokens; {instead}")
        if found := [name for secret, name in secrets.items() if secret in str(value)]:
            raise ConfigError(f"{path}: it contains the value of {found[0]}, which would be written to files")


def check_targets(container: Any) -> None:
    """Refuse `_target_` outside the entries of callbacks and logger."""
    for path, _ in leaves(container):
        names = path.split(".")
        if names[-1] == TARGET and not (names[0] in GROUPS and len(names) > 2):
            raise ConfigError(f"{path}: only entries of callbacks and logger name a class by {TARGET}")


def result_changing(callbacks: Entries) -> Entries:
    """Return the callbacks that can change what is learned, such as EarlyStopping or a user's own."""

    def is_inert(target: str) -> bool:
        package, kind = target.partition(".")[0], target.rpartition(".")[2]
        return target == MIXUP_DIAGNOSTICS or (package in LIGHTNING and kind in INERT_CALLBACKS)

    return {name: entry for name, entry in callbacks.items() if not is_inert(str(entry[TARGET]))}


def leaves(container: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each leaf of plain containers."""
    if isinstance(container, Mapping | list):
        pairs = container.items() if isinstance(container, Mapping) else enumerate(container)
        for name, value in pairs:
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, container
