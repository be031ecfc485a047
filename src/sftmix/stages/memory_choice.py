"""The memory of a training step on a GPU, for the plan, for settings that are chosen by it, and when it runs out."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftmix.config.model import Model
from sftmix.config.schema import Config, Trainer
from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.estimate.fitting import DDP_SHARE, NOT_COUNTED_GIB, advise, fits, peak_gib
from sftmix.estimate.memory import TrainingSetup
from sftmix.estimate.shape import FAMILIES, PUBLISHED, ModelShape
from sftmix.hub import config_file, looks_local
from sftmix.models.attention import has_varlen
from sftmix.stages.workload import Workload, largest_workload


def model_config(model: Model) -> tuple[Mapping[str, Any] | None, str]:
    """Return the content of `config.json` of a model, if it can be had without its weights, and where it is from."""
    if model.init is not None:
        from sftmix.stages.models import load_model

        return load_model(model, weights=False).config.to_dict(), "the embedded model"
    path = str(model.path)
    file = Path(path) / "config.json" if looks_local(path) else config_file(path, model.revision)
    if file is not None and file.is_file():
        where = "its config.json" if looks_local(path) else "its config.json at the hub"
        return json.loads(file.read_text()), where
    if path in PUBLISHED:
        return PUBLISHED[path], "src/sftmix/estimate/shape.py, as the hub could not be read"
    return (
        None,
        f"which no file could be read: check the network, or log in with `hf auth login` if {path} is gated",
    )


def setup_of(trainer: Trainer, device: Device, model: Model, workload: Workload) -> TrainingSetup | str:
    """Return what the memory of a rank depends on beside the model, or why no closed form of it was simulated."""
    if device.accelerator == "cpu":
        return "it is computed for GPUs only"
    if device.precision != "bf16-mixed":
        return f"only precision bf16-mixed was simulated, this is {device.precision}"
    attention = device.attention or trainer.attention
    if trainer.loss == "dense" or attention == "eager":
        return "trainer.loss=dense and trainer.attention=eager were not simulated"
    lora = model.lora
    if lora is not None and lora.target_modules != "all-linear":
        return "only adapters on all linear layers were simulated"
    return TrainingSetup(
        strategy=device.strategy,
        num_ranks=device.world_size,
        tokens=workload.largest,
        has_mask=device.layout == "packed" and attention == "sdpa",
        checkpoints_activations=trainer.activation_checkpointing == "full",
        has_micro_batches=workload.num_micro_batches > 1,
        accumulates_whole=trainer.accumulate_whole is not False,
        response_share=workload.response_share,
        lora_rank=None if lora is None else lora.r,
        is_quantized=model.quantization is not None,
    )


def shape_of(config: Mapping[str, Any] | None) -> ModelShape | str:
    """Return the shape of a model, or why it has no closed form of its memory."""
    if config is None:
        return "the dimensions of the model are unknown"
    shape = ModelShape.of(config)
    if shape is None:
        return f"family {config.get('model_type')} was not simulated, only {', '.join(FAMILIES)} were"
    return shape


def choose_memory_settings(
    config: Config, device: Device, models: Sequence[Model], memory_gib: float
) -> tuple[Device, str | None]:
    """Choose what `trainer.strategy`, `trainer.activation_checkpointing` and `trainer.accumulate_whole` leave open.

    Under trainer.strategy=auto, several GPUs of a node hold the whole model each (DDP) if the largest possible
    micro-batch of all models fits each of them with a margin. Otherwise they share the model. Then the first of these
    that fits is taken: neither, gradients in shards, activation checkpointing, both. If none fits, both are. Under
    trainer.attention=auto, attention is assumed to need a mask unless torch has flash attention. A model whose memory
    is unknown changes nothing. What is computed does not depend on the choice, up to rounding.

    Args:
        models: The models that are tuned.
        memory_gib: Memory of a GPU.

    Returns:
        The device with the strategy, and what was chosen and why, in one line, or None if nothing was open.
    """
    device, strategy = _choose_strategy(config, device, models, memory_gib)
    chosen = _choose_settings(config, device, models, memory_gib)
    lines = [line for line in (strategy, chosen) if line is not None]
    if not lines:
        return device, None
    whole = f"{'; '.join(lines)} (closed form, {memory_gib:.1f} GiB with {NOT_COUNTED_GIB:.1f} for CUDA, NCCL and gaps)"
    return device._replace(chosen=whole), whole


def _choose_strategy(
    config: Config, device: Device, models: Sequence[Model], memory_gib: float
) -> tuple[Device, str | None]:
    """Return the device with DDP or FSDP, and why in one line. Only the GPUs of one node are known to be alike."""
    trainer = config.trainer
    is_open = trainer.strategy == "auto" and trainer.accumulate_whole is None and config.confidence.checkpoints is None
    if not is_open or device.accelerator != "gpu" or device.strategy != "fsdp" or device.num_nodes > 1:
        return device, None
    whole = device._replace(strategy="ddp")
    peaks = [_largest_peak(config, whole, model) for model in models]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks):
        return device, None
    if fits(max(known), DDP_SHARE * memory_gib):
        return whole, f"DDP: {max(known):.1f} GiB on each GPU for the largest possible micro-batch"
    return device, (
        f"FSDP2: with DDP {max(known):.1f} GiB on each GPU for the largest possible micro-batch, more than "
        f"{DDP_SHARE:.0%} of it"
    )


def _choose_settings(config: Config, device: Device, models: Sequence[Model], memory_gib: float) -> str | None:
    """Set activation checkpointing and accumulation, if they are open. Return what was turned on, in one line."""
    trainer = config.trainer
    levels = ("none", "full") if trainer.activation_checkpointing == "auto" else (trainer.activation_checkpointing,)
    is_open = trainer.accumulate_whole is None and device.strategy == "fsdp"
    shards = (None, False) if is_open else (trainer.accumulate_whole,)
    first: float | None = None
    for level, accumulates in itertools.product(levels, shards):
        trainer.activation_checkpointing, trainer.accumulate_whole = level, accumulates
        peaks = [_largest_peak(config, device, model) for model in models]
        peak = max((peak for peak in peaks if peak is not None), default=0.0)
        first = peak if first is None else first
        if fits(peak, memory_gib):
            break
    if peak == first:
        return None
    chosen = [f"trainer.activation_checkpointing={level}"] if level == "full" and len(levels) > 1 else []
    chosen += ["trainer.accumulate_whole=false"] if accumulates is False and len(shards) > 1 else []
    return f"{' '.join(chosen)}: {peak:.1f} GiB for the largest possible micro-batch instead of {first:.1f}"


def _largest_peak(config: Config, device: Device, model: Model) -> float | None:
    """Return the peak in GiB of tuning a model on the largest possible micro-batch, or None if it is unknown."""
    content, _ = model_config(model)
    shape = shape_of(content)
    trainer = config.trainer
    if trainer.activation_checkpointing == "auto":
        trainer = replace(trainer, activation_checkpointing="none")
    setup = setup_of(trainer, device, model, largest_workload(config, device))
    if isinstance(shape, str) or isinstance(setup, str):
        return None
    if device.layout == "packed" and config.trainer.attention == "auto" and not has_varlen():
        setup = replace(setup, has_mask=True)
    return peak_gib(shape, setup)


def out_of_memory(
    config: Config, device: Device, content: Mapping[str, Any], workload: Workload, memory_gib: float
) -> InputError:
    """Return the error for a step that does not fit a GPU: the settings that help, with their predicted effect.

    Args:
        config: The config of the run that is tuned.
        device: The device with the attention of the model.
        content: The config of the model.
    """
    shape, setup = shape_of(content), setup_of(config.trainer, device, config.model, workload)
    tokens = f"{workload.largest:,} tokens in the largest micro-batch"
    where = f"a GPU of {memory_gib:.1f} GiB" if device.accelerator == "gpu" else "the memory"
    start = f"out of memory: a step of {config.model.title} does not fit {where} ({tokens})"
    if isinstance(shape, str) or isinstance(setup, str):
        why = shape if isinstance(shape, str) else setup
        return InputError(
            f"{start}; what helps, in this order: a lower trainer.micro_batch_tokens, "
            f"trainer.activation_checkpointing=full, trainer=fsdp with more devices, model/lora=default (without "
            f"predictions: {why})"
        )
    peak = peak_gib(shape, setup)
    if fits(peak, memory_gib):
        return InputError(f"{start}, although {peak:.1f} GiB are predicted: does another process use the GPU?")
    advice = advise(shape, setup, memory_gib, workload.longest_unit)
    return InputError(f"{start}, {peak:.1f} GiB are predicted; {'; '.join(advice.lines)}")
