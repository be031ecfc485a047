"""The metadata of a run, `run.json`: config, data, versions, hardware and cost.

The metadata holds no key, no token, no environment variable, and not the name of the machine.
"""

import os
import platform
import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.hashes import fingerprint
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.config.schema import Config, to_dict
from sftmix.distributed.device import Device, num_cores
from sftmix.estimate.cost import num_flops
from sftmix.provenance.git import git_state
from sftmix.stages.context import StageSpec
from sftmix.stages.data import EncodedData
from sftmix.stages.prepare import tokenizer_hashes

PACKAGES = (
    "sftmix",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "datasets",
    "numpy",
    "hydra-core",
)


class Effort(NamedTuple):
    """What a stage cost."""

    seconds: float  # Wall time. An interrupted attempt counts up to the training state that it saved
    num_tokens: int  # Prompt and response tokens that went through the model, without padding
    num_parameters: int  # Number of parameters of the model
    num_trained: int  # Number of trained parameters; 0 if nothing was trained

    @property
    def num_flops(self) -> int:
        """Operations of the model's matrices, by `estimate.cost`."""
        return num_flops(self.num_parameters, self.num_trained, self.num_tokens)


def run_metadata(
    config: Config, device: Device, encoded: EncodedData, spec: StageSpec, effort: Effort
) -> dict[str, Any]:
    """Return the metadata of a stage for `run.json`."""
    on_gpus = device.accelerator == "gpu"
    num_devices = device.world_size if on_gpus else num_cores() * device.num_nodes
    return {
        "command": ["train.py", *sys.argv[1:]],
        "stage": spec.stage,
        "config": to_dict(config),
        "data": {
            "fingerprint": fingerprint({k: v for k, v in spec.fields["data"].items() if k != "epochs"}),
            **tokenizer_hashes(encoded.tokenizer),
            "template_notes": encoded.encoder.notes,
            "train_examples": len(encoded.train),
            "val_examples": len(encoded.val),
        },
        "confidence": _confidence(spec),
        "seeds": _seeds(config),
        "census": encoded.census.as_dict(num_places=0),
        "accelerator": device.accelerator,
        "precision": device.precision,
        "layout": device.layout,
        "attention": device.attention,
        "strategy": device.strategy,
        "chosen_by_memory": device.chosen,
        "devices": device.world_size,
        "hardware": hardware(device),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": environment(),
        "git": git_state(),
        "seconds": round(effort.seconds, 1),
        "tokens": effort.num_tokens,
        "cost": {
            "gpu_hours" if on_gpus else "core_hours": round(num_devices * (effort.seconds / 3600), 4),
            "flops": effort.num_flops,
            "parameters": effort.num_parameters,
            "trained_parameters": effort.num_trained,
        },
    }


def _confidence(spec: StageSpec) -> dict[str, Any] | None:
    """Return the name and fingerprint of the confidence that a target is split by, or of the given file."""
    if spec.stage != "target" or "confidence" not in spec.fields or not spec.inputs:
        return None
    folder = spec.inputs[0].parent
    if (folder / MANIFEST).is_file() and "fingerprint" in (manifest := read_json(folder / MANIFEST)):
        return {"folder": folder.name, "fingerprint": manifest["fingerprint"]}
    return {"file": spec.inputs[0].name, "fingerprint": fingerprint({"confidence": spec.fields["confidence"]})}


def _seeds(config: Config) -> dict[str, int]:
    select = config.data.select
    selection = {} if select is None or select.seed is None else {"select": select.seed}
    return {"target": config.seed, "reference": config.reference.seed, "split": config.split.seed, **selection}


def hardware(device: Device) -> dict[str, Any]:
    """Return the CPU model, the cores that this process may use, memory in GiB, and the names of the GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    cpu, gpus = platform.processor() or platform.machine(), []
    with suppress(OSError):
        named = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = cpu if named is None else named[1].strip()
    if device.accelerator == "gpu":
        import torch

        gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    memory_gib = round(memory / 2**30, 1)
    return {"cpu": cpu, "cores": num_cores(), "memory_gib": memory_gib, "gpus": gpus, "nodes": device.num_nodes}


def environment() -> list[str]:
    """Return every installed package as name==version, sorted, without its origin."""
    found = {(d["Name"], d["Version"]) for d in (each.metadata for each in distributions())}  # parsed at each access
    return sorted((f"{name}=={number}" for name, number in found if name), key=str.lower)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
