"""What the first and the third stage share: one run of the trainer, and everything it leaves."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sftmix.artifacts.artifact import CHECKPOINTS, STATES
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import check_sums, seal_part, unseal_part
from sftmix.artifacts.tables import write_table
from sftmix.config.entries import MIXUP_DIAGNOSTICS, TARGET
from sftmix.config.schema import Config
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.process_group import barrier
from sftmix.distributed.sharding import whole
from sftmix.models.export import check_saving, export, export_merged, whole_weights
from sftmix.models.generation import generate_answer
from sftmix.models.loading import load_causal_lm
from sftmix.models.lora import adapters_in_words, save_adapter
from sftmix.models.probes import warn_if_logits_differ
from sftmix.provenance.metadata import Effort, run_metadata
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.data import EncodedData
from sftmix.stages.language_model import loss_settings, place, prepare_language_model
from sftmix.stages.models import load_model, load_trainable_model
from sftmix.stages.plan import data_name, model_name
from sftmix.stages.tracking import wandb_arguments
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import fit
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import checkpoint_steps

ADAPTER = "adapter"
ANSWERS, ANSWER_TOKENS = 3, 48
PROBE_TOKENS = 64


@dataclass(frozen=True)
class TrainingExamples:
    """The examples of a run, and how they are paired and weighted.

    Attributes:
        train: Examples to train on.
        weights: Weight of next-token prediction of each example.
        is_confident: Whether each example is confident; None for an unpaired one. None as a whole: nothing is paired.
        order: Rank of each example. If given, the k-th confident example is always paired with the k-th unconfident
            one. None: pairs are drawn at random.
        val_subsets: Indices of the held-out examples of each subset, by the name of the subset, for the loggers.
    """

    train: EncodedExamples
    weights: Sequence[float]
    is_confident: Sequence[bool | None] | None = None
    order: Sequence[int] | None = None
    val_subsets: Mapping[str, Sequence[int]] = field(default_factory=dict)


def tune(
    spec: StageSpec,
    config: Config,
    context: RunContext,
    rank: RankContext,
    examples: TrainingExamples,
    num_checkpoints: int,
) -> None:
    """Tune a model and write everything that a run leaves into a folder.

    That is `model/` (a Hugging Face folder), `adapter/` with LoRA (a PEFT folder; `model/` has it merged),
    `checkpoints/` where C is above 1, `logs/metrics.csv`, `metrics.json`, `val.parquet` (example_id, num_tokens, nll),
    `census.json`, `answers.json` and the run metadata `run.json`. An interrupted run in that folder continues from its
    newest training state.

    Args:
        spec: The stage, which names the run for the loggers, and its folder.
        config: Model, seed and recipe of this run. (`context.config` is the config of the whole pipeline.)
        context: Data, tokenizers and models.
        rank: This process.
        examples: Examples to train on.
        num_checkpoints: Number of checkpoints that are kept. The last is the tuned model itself.
    """
    start = time.monotonic()
    device, ranks, folder = rank.device, rank.ranks, spec.folder
    model, seed, recipe, trainer, train = config.model, config.seed, config.recipe, config.trainer, examples.train
    encoded = context.encoded(model)
    tokenizer = encoded.tokenizer
    if ranks.is_first and (folder / CHECKPOINTS).is_dir():
        check_sums(folder / CHECKPOINTS, keep=True)
    term = recipe.mixup
    diagnosed = (entry for entry in config.callbacks.values() if entry[TARGET] == MIXUP_DIAGNOSTICS)
    diagnose_every_n_steps = next((entry["every_n_steps"] for entry in diagnosed), None)
    sampler = StepSampler(
        len(train),
        examples.is_confident,
        SamplerSettings(
            global_batch_size=recipe.global_batch_size,
            seed=seed,
            alpha=term.alpha if term else 1.0,
            length_window=recipe.length_window,
        ),
        lengths=train.lengths.tolist(),
        pair_order=examples.order,
    )
    total_steps = config.data.epochs * sampler.steps_per_epoch
    lm, layout = prepare_language_model(
        lambda weights: load_trainable_model(model, config.root, seed, weights=weights), trainer, rank
    )
    end_token_id = encoded.encoder.end_token_id
    if ranks.is_first:
        _check_saving(lm.causal_lm, tokenizer, end_token_id)
        if model.lora is not None:
            print(f"lora        {adapters_in_words(lm.causal_lm)}", flush=True)
    if trainer.activation_checkpointing == "full":
        lm.checkpoint_activations()
    if device.strategy == "ddp":
        place(lm, rank)
    device = device._replace(layout=layout)
    module = SFTMixModule(
        lm,
        loss=loss_settings(recipe, trainer),
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
        warmup_ratio=config.scheduler.warmup_ratio,
        max_grad_norm=config.optimizer.max_grad_norm,
        total_steps=total_steps,
        steps_per_epoch=sampler.steps_per_epoch,
        seed=seed,
        log_every_n_steps=trainer.log_every_n_steps,
        neftune_alpha=recipe.neftune_alpha,
        diagnose_every_n_steps=diagnose_every_n_steps,
        sharded=device.strategy == "fsdp",
        shards_in_bfloat16=device.precision == "bf16-mixed",
    )
    data = SFTDataModule(
        sampler,
        train,
        examples.weights,
        encoded.val,
        BatchSettings(layout, trainer.micro_batch_tokens, tokenizer.pad_token_id, recipe.ntp.prompt_weight),
        epochs=config.data.epochs,
        pin_memory=device.accelerator == "gpu",
        rank=ranks.rank,
        world_size=ranks.world_size,
    )

    def save(path: Path) -> None:
        if ranks.is_first:
            unseal_part(path)
        if model.lora is not None:
            gathered = {k: whole(t) for k, t in lm.causal_lm.state_dict().items() if ".lora_" in k}
            if ranks.is_first:
                save_adapter(lm.causal_lm, tokenizer, path, gathered)
        elif ranks.is_first:
            gathered = whole_weights(lm.causal_lm, model.dtype, whole)
            export(lm.causal_lm, tokenizer, path, model.dtype, end_token_id, gathered)
        elif device.strategy == "fsdp":
            whole_weights(lm.causal_lm, model.dtype, whole, keep=False)
        if ranks.is_first:
            seal_part(path)
        barrier()

    fitted = fit(
        module,
        data,
        title=f"{'reference' if spec.stage == 'reference' else 'target'} ({recipe.name})",
        folder=folder,
        saves=folder / STATES,
        fields=spec.fields,
        ranks=ranks,
        strategy=device.strategy,
        accelerator=device.accelerator,
        precision=device.precision,
        progress_bar=trainer.progress_bar,
        checkpoint_steps=checkpoint_steps(total_steps, num_checkpoints)[:-1],
        checkpoints=folder / CHECKPOINTS,
        save=save,
        accumulates_whole=trainer.accumulate_whole,
        save_every_n_steps=trainer.save_every_n_steps,
        keep=trainer.keep,
        stop=rank.stop,
        wandb=wandb_arguments(
            context.config,
            spec,
            "reference" if spec.stage == "reference" else "target",
            tags=(model_name(model), data_name(config.data), recipe.name),
        ),
        val_halves=examples.val_subsets,
    )
    save(folder / ("model" if model.lora is None else ADAPTER))
    num_parameters = sum(p.numel() for p in lm.parameters())
    num_trained = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    asked = encoded.val if len(encoded.val) else train
    probe = torch.tensor(asked[0].input_ids[:PROBE_TOKENS])
    if device.strategy != "fsdp":
        lm.to(rank.torch_device)
    lm.eval()
    with torch.autocast(device.name, torch.bfloat16, enabled=device.precision == "bf16-mixed"):
        logits = lm.logits(probe.to(rank.torch_device)).cpu()
    del module, data, lm, save  # shards and optimizer make room
    device.release()
    if not ranks.is_first:
        return
    write_json(folder / "metrics.json", fitted.metrics)
    write_table(
        folder / "val.parquet",
        {
            "example_id": encoded.val.ids,
            "num_tokens": fitted.val_num_tokens,
            "nll": fitted.val_nll,
        },
    )
    write_json(folder / "census.json", encoded.census.as_dict())
    seconds = time.monotonic() - start + fitted.seconds_before
    effort = Effort(seconds, fitted.num_tokens, num_parameters, num_trained)
    write_json(folder / "run.json", run_metadata(context.config, device, encoded, spec, effort))
    if model.lora is not None:
        export_merged(load_model(model), folder / ADAPTER, tokenizer, folder / "model", model.dtype, end_token_id)
    reloaded = load_causal_lm(str(folder / "model"), None).eval()
    with torch.no_grad():
        written = reloaded(input_ids=probe[None], use_cache=False).logits[0]
    is_rounded = "bf" in device.precision or model.dtype != "float32"
    warn_if_logits_differ(written, logits, str(folder / "model"), is_rounded=is_rounded)
    answering = reloaded.to(rank.torch_device, torch.bfloat16 if device.accelerator == "gpu" else torch.float32)
    write_json(folder / "answers.json", _answers(answering, encoded, context, asked))


def _check_saving(causal_lm: Any, tokenizer: Any, end_token_id: int) -> None:
    """Save everything except weights once before training, and print which flags of generation are reset.

    Raises:
        InputError: If transformers refuses to save the model's config, settings of generation or tokenizer.
    """
    reset = check_saving(causal_lm, tokenizer, end_token_id)
    if reset:
        flags = ", ".join(f"{name}={value}" for name, value in reset.items())
        print(
            f"model       generation_config.json: {flags} reset in what is written, since they have no effect and "
            f"transformers refuses to save them",
            flush=True,
        )


def _answers(
    causal_lm: Any, encoded: EncodedData, context: RunContext, asked: EncodedExamples
) -> list[dict[str, str | None]]:
    """What the tuned model answers to the first examples, for a person to look at."""
    examples = [context.data.examples[int(line)] for line in asked.lines[:ANSWERS]]
    return [
        {
            "instruction": example.instruction,
            "response": example.response,
            "group": example.group,
            "answer": generate_answer(
                causal_lm,
                encoded.tokenizer,
                e.input_ids[: e.num_prompt_tokens],
                end_token_id=encoded.encoder.end_token_id,
                max_new_tokens=ANSWER_TOKENS,
            ),
        }
        for example, e in zip(examples, asked[:ANSWERS], strict=True)
    ]
