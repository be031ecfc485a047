"""The memory of a training step on a GPU, for the plan, for settings that are chosen by it, and when it runs out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftmix.config.model import Lora, Model
from sftmix.config.schema import Trainer
from sftmix.distributed.device import Device
from sftmix.estimate.memory import TrainingSetup
from sftmix.estimate.shape import FAMILIES, PUBLISHED, ModelShape
from sftmix.hub import config_file, looks_local
from sftmix.stages.workload import Workload


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


def setup_of(trainer: Trainer, device: Device, lora: Lora | None, workload: Workload) -> TrainingSetup | str:
    """Return what the memory of a rank depends on beside the model, or why no closed form of it was simulated."""
    if device.accelerator == "cpu":
        return "it is computed for GPUs only"
    if device.precision != "bf16-mixed":
        return f"only precision bf16-mixed was simulated, this is {device.precision}"
    if trainer.loss == "dense" or trainer.attention == "eager":
        return "trainer.loss=dense and trainer.attention=eager were not simulated"
    if lora is not None and lora.target_modules != "all-linear":
        return "only adapters on all linear layers were simulated"
    return TrainingSetup(
        strategy=device.strategy,
        num_ranks=device.world_size,
        tokens=workload.largest,
        has_mask=device.layout == "packed" and trainer.attention == "sdpa",
        checkpoints_activations=trainer.activation_checkpointing == "full",
        has_micro_batches=workload.num_micro_batches > 1,
        accumulates_whole=trainer.accumulate_whole,
        response_share=workload.response_share,
        lora_rank=None if lora is None else lora.r,
    )


def shape_of(config: Mapping[str, Any] | None) -> ModelShape | str:
    """Return the shape of a model, or why it has no closed form of its memory."""
    if config is None:
        return "the dimensions of the model are unknown"
    shape = ModelShape.of(config)
    if shape is None:
        return f"family {config.get('model_type')} was not simulated, only {', '.join(FAMILIES)} were"
    return shape
