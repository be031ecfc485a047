"""The devices that a config means on this machine, found without importing torch."""

import os
import shutil

from sftmix.config.schema import Trainer
from sftmix.distributed.device import Device, compute_capability, count_gpus, num_cores, why_torch_has_no_gpu
from sftmix.errors import ConfigError, InputError

BFLOAT16_FROM = 8.0  # compute capability of NVIDIA's Ampere


def choose_device(trainer: Trainer, quantized_by: str | None = None) -> Device:
    """Return the devices of a config, with the layout of micro-batches that is fastest there.

    On a CPU, attention computes the whole of a packed sequence, and groups of examples of similar length were measured
    to be the fastest layout. On a GPU, packing is assumed to be the fastest, which was not measured. Under FSDP, all
    ranks must run the model equally often, which groups do not allow.

    Args:
        quantized_by: The setting by which a model is quantized, or None. FSDP does not shard quantized weights.

    Raises:
        ConfigError: If a GPU, several devices, flash attention or compiled blocks are requested and not available.
    """
    gpus = count_gpus() if trainer.accelerator != "cpu" else 0
    if trainer.accelerator == "gpu" and not gpus:
        raise ConfigError("trainer.accelerator=gpu: no CUDA device is visible, expected at least one")
    if gpus and (why := why_torch_has_no_gpu()) is not None:
        found = f"trainer.accelerator={trainer.accelerator}: {gpus} GPUs are visible"
        raise InputError(f"{found}, but {why}; or set trainer=cpu")
    available, what = (gpus, "visible GPUs") if gpus else (num_cores(), "CPU cores")
    if trainer.devices is not None and trainer.devices > available:
        raise ConfigError(f"trainer.devices={trainer.devices}: there are {available} {what}")
    has_bfloat16 = gpus > 0 and compute_capability() >= BFLOAT16_FROM
    if gpus and trainer.precision == "bf16-mixed" and not has_bfloat16:
        raise ConfigError(
            f"trainer.precision=bf16-mixed: the GPU has compute capability {compute_capability()}, bfloat16 needs "
            f"{BFLOAT16_FROM}; set trainer.precision=32-true"
        )
    device = _device(trainer, gpus, quantized_by, has_bfloat16=has_bfloat16)
    variable, names = ("CC", ("gcc", "clang", "cc")) if gpus else ("CXX", ("g++", "clang++"))
    if trainer.compile and not any(map(shutil.which, (os.environ.get(variable, names[0]), *names))):
        raise ConfigError(f"trainer.compile=true: it needs a compiler, expected {' or '.join(names)}, or {variable}")
    return device


def planned_device(trainer: Trainer, quantized_by: str | None = None, *, on_gpu: bool) -> Device:
    """Return the devices of a config on a machine that has them: `trainer.devices` GPUs, or those that are visible.

    The arguments and errors are those of `choose_device`, but nothing of this machine is required.
    """
    gpus = (trainer.devices or count_gpus() or 1) if on_gpu and trainer.accelerator != "cpu" else 0
    return _device(trainer, gpus, quantized_by, has_bfloat16=gpus > 0)


def _device(trainer: Trainer, gpus: int, quantized_by: str | None, *, has_bfloat16: bool) -> Device:
    """Return the devices of a config on a machine with this number of GPUs; 0 for the CPU."""
    accelerator = "gpu" if gpus else "cpu"
    strategy, num_local = _strategy(trainer, gpus)
    if quantized_by is not None and strategy == "fsdp":
        if trainer.strategy == "fsdp":
            raise ConfigError(
                f"trainer.strategy=fsdp: quantized weights are not sharded ({quantized_by}), choose trainer=ddp"
            )
        strategy = "ddp"
    precision, layout = "bf16-mixed" if has_bfloat16 else "32-true", "packed" if gpus else "grouped"
    if strategy == "fsdp" and layout == "grouped":
        layout = "padded"
    device = Device(
        accelerator,
        precision if trainer.precision == "auto" else trainer.precision,
        layout if trainer.layout == "auto" else trainer.layout,
        strategy,
        num_local,
        trainer.num_nodes,
    )
    if device.layout == "grouped" and strategy == "fsdp" and device.world_size > 1:
        raise ConfigError(
            "trainer.layout=grouped: processes that share a model must run it equally often, and groups differ; choose "
            "trainer.layout=padded or packed"
        )
    if trainer.accumulate_whole is False and strategy != "fsdp":
        raise ConfigError(
            f"trainer.accumulate_whole=false: a setting of FSDP2, and with {strategy} every process holds whole "
            f"gradients; leave it out"
        )
    if trainer.attention.startswith("flash") and not device.can_flash:
        raise ConfigError(
            f"trainer.attention={trainer.attention}: it needs a GPU and precision bf16-mixed, this is {accelerator} "
            f"and {device.precision}"
        )
    return device


def _strategy(trainer: Trainer, gpus: int) -> tuple[str, int]:
    if trainer.strategy == "single":
        return "single", 1
    if trainer.strategy == "auto":
        several = (trainer.devices or gpus) > 1 or trainer.num_nodes > 1
        return ("fsdp", trainer.devices or gpus or 1) if several else ("single", 1)
    if trainer.devices is None and not gpus:
        raise ConfigError(f"trainer.devices has no value: on a CPU trainer={trainer.strategy} needs trainer.devices=2")
    return trainer.strategy, trainer.devices or gpus
