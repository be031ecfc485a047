"""What the first and the third stage share: one run of the trainer, and everything it leaves."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sftmix.artifacts import write_json, write_table
from sftmix.config import Config, Model, to_dict
from sftmix.data.pairing import StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.models.export import export, export_merged
from sftmix.models.generation import generate_answer
from sftmix.models.lora import save_adapter
from sftmix.stages.device import Device
from sftmix.stages.language_model import prepare_language_model
from sftmix.stages.materials import Materials
from sftmix.stages.passport import passport
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import fit
from sftmix.training.module import SFTModule
from sftmix.training.optim import checkpoint_steps

CHECKPOINTS, ADAPTER = "checkpoints", "adapter"
ANSWERS, ANSWER_TOKENS = 3, 48


def tune(
    folder: Path,
    materials: Materials,
    device: Device,
    *,
    stage: str,
    title: str,
    model: Model,
    lr: float,
    seed: int,
    train: EncodedExamples,
    is_confident: Sequence[bool | None] | None,
    weights: Sequence[float],
    mixup: bool,
    num_checkpoints: int,
) -> None:
    """Tune a model and write everything that a run leaves into a folder.

    That is `model/` (a Hugging Face folder), `adapter/` with LoRA (a PEFT folder; `model/` has it merged),
    `checkpoints/` where C is above 1, `logs/metrics.csv`, `metrics.json`, `val.parquet` (example_id, num_tokens, nll),
    `census.json`, `answers.json` and the passport `run.json`.

    Args:
        folder: where to write.
        materials: data and tokenizers.
        device: where to compute.
        stage: reference or target, for the loggers.
        title: what the progress bar calls the run.
        model: what is tuned.
        lr: peak.
        seed: of order, pairs, lambda and dropout.
        train: examples to train on.
        is_confident: the half of each of them, or None for a plain shuffle.
        weights: weight of next-token prediction of each of them.
        mixup: whether the recipe's Mixup term takes part.
        num_checkpoints: C; the last is the tuned model itself.
    """
    config = materials.config
    recipe, trainer = config.recipe, config.trainer
    encoded = materials.encoded(model)
    tokenizer = encoded.tokenizer
    term = recipe.mixup if mixup else None
    sampler = StepSampler(
        len(train),
        is_confident,
        global_batch_size=recipe.global_batch_size,
        alpha=term.alpha if term else 1.0,
        seed=seed,
        lengths=train.lengths.tolist(),
        length_window=recipe.length_window,
    )
    total_steps = config.data.epochs * sampler.steps_per_epoch
    lm, layout = prepare_language_model(materials.tuned_causal_lm(model, seed), trainer, device)
    device = device._replace(layout=layout)
    module = SFTModule(
        lm,
        mu=term.mu if term else None,
        normalize_by_mixed_tokens=term is not None and term.normalize_by == "mixed_tokens",
        lr=lr,
        weight_decay=recipe.weight_decay,
        betas=(recipe.betas[0], recipe.betas[1]),
        warmup_ratio=recipe.warmup_ratio,
        max_grad_norm=recipe.max_grad_norm,
        total_steps=total_steps,
        steps_per_epoch=sampler.steps_per_epoch,
        seed=seed,
        log_every_n_steps=trainer.log_every_n_steps,
    )
    data = SFTDataModule(
        sampler,
        train,
        weights,
        encoded.val,
        epochs=config.data.epochs,
        layout=layout,
        micro_batch_tokens=trainer.micro_batch_tokens,
        pad_token_id=tokenizer.pad_token_id,
        pin_memory=device.accelerator == "gpu",
    )

    end_token_id = encoded.encoder.end_token_id

    def save(path: Path) -> None:
        if model.lora is None:
            export(lm.causal_lm, tokenizer, path, model.dtype, end_token_id)
        else:
            save_adapter(lm.causal_lm, tokenizer, path)

    fitted = fit(
        module,
        data,
        title=title,
        folder=folder,
        accelerator=device.accelerator,
        precision=device.precision,
        progress_bar=trainer.progress_bar,
        checkpoint_steps=checkpoint_steps(total_steps, num_checkpoints)[:-1],
        checkpoints=folder / CHECKPOINTS,
        save=save,
        wandb=_wandb_arguments(config, folder, stage),
    )
    save(folder / ("model" if model.lora is None else ADAPTER))
    if model.lora is not None:
        adapter, whole = folder / ADAPTER, folder / "model"
        export_merged(materials.causal_lm(model), adapter, tokenizer, whole, model.dtype, end_token_id)
    write_json(folder / "metrics.json", {**fitted.metrics, "lr": lr})
    write_table(
        folder / "val.parquet",
        {
            "example_id": encoded.val.ids,
            "num_tokens": fitted.val_num_tokens,
            "nll": fitted.val_nll,
        },
    )
    write_json(folder / "census.json", encoded.census.as_dict())
    lm.to(device.name)
    with torch.autocast(device.name, torch.bfloat16, enabled=device.precision == "bf16-mixed"):
        asked = encoded.val if len(encoded.val) else train
        examples = [materials.examples[int(line)] for line in asked.lines[:ANSWERS]]
        answers = [
            {
                "instruction": example.instruction,
                "response": example.response,
                "group": example.group,
                "answer": generate_answer(
                    lm.causal_lm,
                    tokenizer,
                    e.input_ids[: e.num_prompt_tokens],
                    end_token_id=end_token_id,
                    max_new_tokens=ANSWER_TOKENS,
                ),
            }
            for example, e in zip(examples, asked[:ANSWERS], strict=True)
        ]
    write_json(folder / "answers.json", answers)
    write_json(folder / "run.json", passport(config, device, encoded.census))


def _wandb_arguments(config: Config, folder: Path, stage: str) -> dict[str, object] | None:
    wandb = config.logger.wandb
    if wandb is None or wandb.mode == "disabled":
        return None
    return {
        "name": folder.name.removesuffix(".partial"),
        "project": wandb.project,
        "entity": wandb.entity,
        "group": wandb.group,
        "job_type": stage,
        "mode": wandb.mode,  # not Lightning's `offline`, which leaves its mark in the environment
        "config": to_dict(config),
    }
