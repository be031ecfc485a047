"""The passport of a run, `run.json`: what was run, on what, with which versions. No key, no token."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sftmix.config import Config, to_dict
from sftmix.data.census import Census
from sftmix.stages.device import Device

PACKAGES = ("sftmix", "torch", "lightning", "transformers", "peft", "tokenizers", "datasets", "numpy", "hydra-core")


def passport(config: Config, device: Device, census: Census) -> dict[str, Any]:
    """The resolved configuration, where it was run, and what became of the data."""
    return {
        "command": ["train.py", *sys.argv[1:]],
        "config": to_dict(config),
        "accelerator": device.accelerator,
        "precision": device.precision,
        "layout": device.layout,
        "census": census.as_dict(num_places=0),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the source and whether it was changed since, or None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
