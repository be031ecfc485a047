"""Tune a model and write the folder of a run. The first and the third stage share this module."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from sftmix.artifacts.artifact import CHECKPOINTS, STATES
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import check_sums, seal_part, unseal_part
from sftmix.artifacts.tables import VAL_SETS, write_table
from sftmix.config.entries import TARGET, WANDB
from sftmix.config.recipe import Recipe
from sftmix.config.schema import Config, Model, Trainer, to_dict
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import FirstEpochSampler, SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.device import Device, gpu_memory_gib
from sftmix.distributed.process_group import barrier
from sftmix.distributed.sharding import whole
from sftmix.distributed.strategy import trainer_arguments
from sftmix.estimate.hardware import hardware_of
from sftmix.functional.equations import LossSettings
from sftmix.models.export import check_saving, export, whole_weights
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.lora import adapters_in_words, merge, save_adapter
from sftmix.models.probes import warn_if_logits_differ
from sftmix.models.quantization import parameter_sizes
from sftmix.provenance.metadata import Effort, run_metadata
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.data import EncodedData
from sftmix.stages.language_model import place, prepare_language_model
from sftmix.stages.memory_choice import out_of_memory
from sftmix.stages.models import load_model, load_trainable_model
from sftmix.stages.sample_answers import SampleQuestions
from sftmix.stages.tracking import instantiate_entries, wandb_arguments
from sftmix.stages.workload import counted_workload
from sftmix.training.curves import write_curves
from sftmix.training.datamodule import SFTDataModule, ValidationSet
from sftmix.training.first_epoch import FirstEpochSplit
from sftmix.training.fit import FitSettings, fit
from sftmix.training.held_out import HeldOut
from sftmix.training.loggers import WandbRunLogger
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings, SchedulerSettings, checkpoint_steps

ADAPTER = "adapter"
PROBE_TOKENS = 64
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


@dataclass(frozen=True)
class TrainingExamples:
    """The examples of a run, and how they are paired and weighted.

    Attributes:
        train: Examples to train on.
        weights: Weight of next-token prediction of each example.
        is_confident: Whether each example is confident; None for an unpaired one. None as a whole: nothing is paired.
        order: Rank of each example. If given, the k-th confident example is always paired with the k-th unconfident
            one. None: pairs are drawn at random.
        val_subsets: Indices of the held-out examples of each subset, by the name of the subset.
        val_sets: Validation examples of another origin (`data.val_path`), by name.
        first_epoch: Splits the examples after the first epoch. None: the subsets are known, or nothing is paired.
    """

    train: EncodedExamples
    weights: Sequence[float]
    is_confident: Sequence[bool | None] | None = None
    order: Sequence[int] | None = None
    val_subsets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    val_sets: Mapping[str, ValidationSet] = field(default_factory=dict)
    first_epoch: FirstEpochSplit | None = None


class Measured(NamedTuple):
    """What the files of a finished run hold beside the model."""

    metrics: Mapping[str, Any]  # Content of `metrics.json`
    held_out: HeldOut | None
    val_sets: Mapping[str, HeldOut]  # Of `data.val_path`, by name
    effort: Effort
    more: Mapping[str, Any] = {}  # Further content of `run.json`


def ntp_weights(config: Config, train: EncodedExamples) -> list[float]:
    """Return the weight of each example in next-token prediction: `recipe.ntp.weight` times its weight in the data.

    The loss is still divided by N, the number of response tokens: a weight of 2 counts an example twice in S_ntp only.
    """
    return (config.recipe.ntp.weight * train.weights).tolist()


def tune(
    spec: StageSpec,
    config: Config,
    context: RunContext,
    rank: RankContext,
    examples: TrainingExamples,
    num_checkpoints: int,
    more: Mapping[str, Any] = {},
) -> None:
    """Tune a model and write the folder of the run.

    The folder holds `model/` (a Hugging Face folder), `adapter/` with LoRA (a PEFT folder, merged in `model/`),
    `checkpoints/` if C is above 1, `logs/metrics.csv`, `logs/curves.png`, `metrics.json`, `val.parquet` (example_id,
    num_tokens, nll), `val_sets.parquet` with `data.val_path` (set and the same columns), `census.json`, `answers.json`
    and the run metadata `run.json`. An interrupted run continues from the newest training state in the folder.

    Args:
        config: Model, seed and recipe of this run. (`context.config` is the config of the whole pipeline.)
        num_checkpoints: Number of checkpoints that are kept. The last is the tuned model itself.
        more: Further content of `run.json`.
    """
    start = time.monotonic()
    model, folder = config.model, spec.folder
    encoded = context.encoded(model)
    if rank.ranks.is_first and (folder / CHECKPOINTS).is_dir():
        check_sums(folder / CHECKPOINTS, keep=True)
    module, device = build_module(config, context, rank)
    data = build_data(config, encoded, examples, device)
    settings = _fit_settings(config, context, spec, rank, examples, data.steps_per_epoch, num_checkpoints)
    lm = module.lm
    save = partial(_save, lm, model, encoded, rank)
    try:
        result = fit(module, data, settings, save, rank.ranks, rank.stop)
    except torch.OutOfMemoryError:
        workload, content = counted_workload(config, device, data), lm.causal_lm.config.get_text_config().to_dict()
        raise out_of_memory(config, device, content, workload, gpu_memory_gib()) from None
    save(folder / ("model" if model.lora is None else ADAPTER))
    sizes = [size for _, size in parameter_sizes(lm)], [size for p, size in parameter_sizes(lm) if p.requires_grad]
    asked = encoded.val if len(encoded.val) else examples.train
    probe = torch.tensor(asked[0].input_ids[:PROBE_TOKENS])  # to compare the exported model with the tuned one
    if device.strategy != "fsdp":
        lm.to(rank.torch_device)
    lm.eval()
    with torch.autocast(device.name, torch.bfloat16, enabled=device.precision == "bf16-mixed"):
        logits = lm.logits(probe.to(rank.torch_device)).cpu()
    del module, data, lm, save  # frees the memory of shards and optimizer
    device.release()
    if not rank.ranks.is_first:
        return
    effort = Effort(time.monotonic() - start + result.seconds_before, result.num_tokens, *map(sum, sizes))
    measured = Measured(result.metrics, result.held_out, result.val_sets, effort, more)
    write_records(spec, context, encoded, device, measured)
    _export(context, rank, model, encoded, folder, asked, probe, logits)
    if config.trainer.curves:
        write_curves(folder)


def write_records(
    spec: StageSpec, context: RunContext, encoded: EncodedData, device: Device, measured: Measured
) -> None:
    """Write `metrics.json`, `val.parquet`, `val_sets.parquet`, `census.json` and `run.json`."""
    folder, held_out = spec.folder, measured.held_out or HeldOut([], [], [])
    write_json(folder / "metrics.json", measured.metrics)
    ids = [encoded.val.ids[i] for i in held_out.examples]
    write_table(folder / "val.parquet", {"example_id": ids, "num_tokens": held_out.num_tokens, "nll": held_out.nll})
    if measured.val_sets:
        write_table(folder / VAL_SETS, _losses_of_sets(context, measured.val_sets))
    write_json(folder / "census.json", encoded.census.as_dict())
    record = run_metadata(context.config, device, encoded, spec, measured.effort)
    write_json(folder / "run.json", {**record, **measured.more})


def _losses_of_sets(context: RunContext, val_sets: Mapping[str, HeldOut]) -> dict[str, list[Any]]:
    ids = {name: file.examples.ids for name, file in context.validation_files().items()}
    return {
        "set": [name for name, found in val_sets.items() for _ in found.examples],
        "example_id": [ids[name][i] for name, found in val_sets.items() for i in found.examples],
        "num_tokens": [number for found in val_sets.values() for number in found.num_tokens],
        "nll": [nll for found in val_sets.values() for nll in found.nll],
    }


def build_module(config: Config, context: RunContext, rank: RankContext) -> tuple[SFTMixModule, Device]:
    """Return the module of a run, and the device with the layout and attention of the model.

    Only the first rank loads weights.
    """
    model, trainer = config.model, config.trainer
    lm, device = prepare_language_model(
        lambda weights: load_trainable_model(model, config.root, config.seed, weights=weights), trainer, rank
    )
    if rank.ranks.is_first:
        encoded = context.encoded(model)
        if reset := check_saving(lm.causal_lm, encoded.tokenizer, encoded.encoder.end_token_id):
            flags = ", ".join(f"{name}={value}" for name, value in reset.items())
            print(
                f"model       generation_config.json: {flags} reset in what is written, since they have no effect and "
                f"transformers refuses to save them",
                flush=True,
            )
        if model.lora is not None:
            print(f"lora        {adapters_in_words(lm.causal_lm)}", flush=True)
    if trainer.activation_checkpointing == "full":
        lm.checkpoint_activations()
    if rank.device.strategy == "ddp":
        place(lm, rank)
    module = SFTMixModule(
        lm,
        loss=loss_settings(config.recipe, trainer),
        optimizer=OptimizerSettings(**to_dict(config.optimizer)),
        scheduler=SchedulerSettings(**to_dict(config.scheduler)),
        seed=config.seed,
        neftune_alpha=config.recipe.neftune_alpha,
        shards_in_bfloat16=rank.device.precision == "bf16-mixed",
    )
    return module, device


def loss_settings(recipe: Recipe, trainer: Trainer) -> LossSettings:
    """Return how the loss of a run is computed. Without `recipe.mixup`, it is next-token prediction."""
    terms = {"mu": None, **to_dict(recipe.ntp), **(to_dict(recipe.mixup) if recipe.mixup else {})}
    names = {f.name for f in fields(LossSettings)}  # the keys of the config have the names of the settings
    chosen = {name: value for name, value in terms.items() if name in names}
    return LossSettings(**chosen, implementation=trainer.loss)


def build_data(config: Config, encoded: EncodedData, examples: TrainingExamples, device: Device) -> SFTDataModule:
    """Return the data module of a run: its optimizer steps and held-out examples. `device` has the layout to use."""
    recipe = config.recipe
    drawn = SamplerSettings(
        global_batch_size=recipe.global_batch_size,
        seed=config.seed,
        alpha=recipe.mixup.alpha if recipe.mixup else 1.0,
        length_window=recipe.length_window,
        pairing=recipe.mixup.pairing if recipe.mixup else "across",
    )
    number, lengths = len(examples.train), examples.train.lengths.tolist()
    if examples.first_epoch is not None:
        sampler: StepSampler = FirstEpochSampler(number, drawn, lengths=lengths)
    else:
        sampler = StepSampler(number, examples.is_confident, drawn, lengths=lengths, pair_order=examples.order)
    pad_token_id, micro_batch_tokens = encoded.tokenizer.pad_token_id, config.trainer.micro_batch_tokens
    batches = BatchSettings(device.layout, micro_batch_tokens, pad_token_id, recipe.ntp.prompt_weight)
    return SFTDataModule(
        sampler,
        examples.train,
        encoded.val,
        batches,
        weights=examples.weights,
        val_subsets=examples.val_subsets,
        val_sets=examples.val_sets,
        num_workers=1 if device.accelerator == "gpu" else 0,
    )


def _peak_flops(device: Device) -> float | None:
    """Return the operations per second of all devices in bfloat16, or None for a CPU and for unknown GPUs."""
    if device.accelerator != "gpu" or device.precision != "bf16-mixed":
        return None
    gpu = hardware_of(torch.cuda.get_device_name())
    return None if gpu is None else gpu.peak_flops * device.world_size


def _fit_settings(
    config: Config,
    context: RunContext,
    spec: StageSpec,
    rank: RankContext,
    examples: TrainingExamples,
    steps_per_epoch: int,
    num_checkpoints: int,
) -> FitSettings:
    trainer, device, folder = config.trainer, rank.device, spec.folder
    stage = "reference" if spec.stage == "reference" else "target"
    total_steps = config.data.epochs * trainer.steps_per_epoch(steps_per_epoch)
    on_ranks = trainer_arguments(
        device.strategy,
        device.accelerator,
        device.precision,
        rank.ranks,
        accumulates_whole=trainer.accumulate_whole is not False,
    )
    loggers: list[Logger] = []
    if rank.ranks.is_first:
        entries = {name: entry for name, entry in config.logger.items() if entry[TARGET] != WANDB}
        loggers = instantiate_entries("logger", entries, Logger, folder)
        tags = (config.model.title, config.data.title, config.recipe.name)
        if (arguments := wandb_arguments(context.config, spec, stage, tags=tags)) is not None:
            loggers.append(WandbRunLogger(folder, arguments))
    return FitSettings(
        title=f"{stage} ({config.recipe.name})",
        folder=folder,
        states=folder / STATES,
        fields=spec.fields,
        checkpoints=folder / CHECKPOINTS,
        checkpoint_steps=checkpoint_steps(total_steps, num_checkpoints)[:-1],
        save_every_minutes=trainer.save_every_minutes,
        save_every_n_steps=trainer.save_every_n_steps,
        keep=trainer.keep,
        progress_bar=trainer.progress_bar,
        trainer={
            **on_ranks,
            **trainer.limits,
            "max_epochs": config.data.epochs,
            "log_every_n_steps": trainer.log_every_n_steps,
            "profiler": PROFILERS[trainer.profiler](folder, "profile") if trainer.profiler else None,
        },
        peak_flops=_peak_flops(device),
        recorder=examples.first_epoch,
        callbacks=instantiate_entries("callbacks", config.callbacks, Callback, folder),
        loggers=loggers,
    )


def _save(lm: SFTMixLM, model: Model, encoded: EncodedData, rank: RankContext, path: Path) -> None:
    """Write all weights or, with LoRA, the adapters into a folder. Every rank must call this function."""
    causal_lm, is_first = lm.causal_lm, rank.ranks.is_first
    if is_first:
        unseal_part(path)
    if model.lora is not None:
        gathered = {k: whole(t) for k, t in causal_lm.state_dict().items() if ".lora_" in k}
        if is_first:
            save_adapter(causal_lm, encoded.tokenizer, path, gathered)
    elif is_first:
        gathered = whole_weights(causal_lm, model.dtype, whole)
        export(causal_lm, encoded.tokenizer, path, model.dtype, encoded.encoder.end_token_id, gathered)
    elif rank.device.strategy == "fsdp":
        whole_weights(causal_lm, model.dtype, whole, keep=False)
    if is_first:
        seal_part(path)
    barrier()


def _export(
    context: RunContext,
    rank: RankContext,
    model: Model,
    encoded: EncodedData,
    folder: Path,
    asked: EncodedExamples,
    probe: torch.Tensor,
    logits: torch.Tensor,
) -> None:
    """Write `model/` (with LoRA: merged), check that it computes what was trained, and write sample answers.

    The untuned model, with LoRA the base model, answers the same examples.
    """
    if model.lora is not None:
        merged = merge(load_model(model), folder / ADAPTER)
        export(merged, encoded.tokenizer, folder / "model", model.dtype, encoded.encoder.end_token_id)
        del merged  # before the written model is loaded
    reloaded = load_causal_lm(str(folder / "model"), None).eval()
    with torch.no_grad():
        written = reloaded(input_ids=probe[None], use_cache=False).logits[0]
    is_rounded = "bf" in rank.device.precision or model.dtype != "float32"
    error = warn_if_logits_differ(written, logits, str(folder / "model"), is_rounded=is_rounded)
    if model.quantization is not None:
        print(
            f"quantized   adapters merged into the dequantized weights: the logits of model/ differ by {error:.1e} of "
            f"their norm from those of the tuned model",
            flush=True,
        )
    questions = SampleQuestions.of(context, encoded, asked)
    answers = questions.answered_by(reloaded, rank)
    del reloaded
    rank.device.release()  # before the untuned model is loaded: a GPU holds one model at a time
    before = questions.answered_by(load_model(model), rank)
    questions.write(folder, before, answers)
