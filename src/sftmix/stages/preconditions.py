"""What a rehearsal checks before it runs the stages (`mode=check`): each function returns what it found, in words.

Each function raises an InputError for a fault, and writes nothing that stays.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sftmix.config.entries import FOLDERS, TARGET, WANDB
from sftmix.config.model import Model
from sftmix.config.schema import Config
from sftmix.data.census import TRUNCATED
from sftmix.data.encoding import EncodedExample, Encoder
from sftmix.data.vocabulary import split_tokens
from sftmix.distributed.device import Device, gpu_names
from sftmix.errors import InputError
from sftmix.estimate.hardware import hardware_of
from sftmix.hub import looks_local
from sftmix.stages.context import RunContext
from sftmix.stages.inputs import check_output, hub_sources, models_of
from sftmix.stages.validation_files import few_held_out
from sftmix.terminal import counted

SHOWN_EXAMPLES = 3
SHOWN = 40  # characters of a prompt or response


class Remark(str):
    """A result that is not a fault, which a reader should look at."""


def describe_device(device: Device) -> str:
    """Return the devices of a run. A GPU that the table of hardware does not have is a remark."""
    names = gpu_names() if device.accelerator == "gpu" else []
    found = ", ".join([device.in_words, *dict.fromkeys(names)])
    if unknown := [name for name in names if hardware_of(name) is None]:
        return Remark(
            f"{found}: {unknown[0]} is not in src/sftmix/estimate/hardware.py, so no model FLOPs utilization is logged"
        )
    return found


def output_places(config: Config) -> dict[str, str]:
    """Return the folders that a run writes outside of its own folder, by the setting that names them."""
    places = {"root": config.root}
    for group, entries in (("callbacks", config.callbacks), ("logger", config.logger)):
        for name, entry in entries.items():
            given = {key: entry.get(key) for key in FOLDERS}
            places |= {f"{group}.{name}.{key}": str(value) for key, value in given.items() if value is not None}
    if hub_sources(config.data) or any(
        m.path is not None and not looks_local(m.path) for m in models_of(config).values()
    ):
        from huggingface_hub import constants

        places["HF_HUB_CACHE"] = constants.HF_HUB_CACHE
    return {key: folder for key, folder in places.items() if "://" not in folder}


def check_place(key: str, folder: str) -> str:
    """Write a file into an output place and remove it, and return how much space is free."""
    with removing_new_folders(Path(folder)):
        check_output(key, folder)
        free = shutil.disk_usage(folder).free / 2**30
    return f"{key}={folder} can be written, {free:,.0f} GiB are free"


@contextmanager
def removing_new_folders(folder: Path) -> Iterator[None]:
    """Remove the folder and its parents at the end if they were made meanwhile and are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def check_model(model: Model) -> str:
    """Check that the weights are there with the shapes of `config.json`, without reading them all."""
    from sftmix.models.loading import check_weights

    if model.path is None:
        return f"{model.title}: embedded"
    check_weights(model.path, model.revision)
    return f"{model.path}: all weights are there, with the shapes of config.json"


def check_template(context: RunContext, model: Model) -> str:
    """Check that responses end with a special token under the chat template of the run.

    A pad token that is the end token is a remark: the loss is chosen by position and not by token id, so the end of a
    response carries loss (`check_examples` looks at it). Strings of the template that are written like special tokens
    and fall apart into several tokens are a remark too: base models are tuned so, but another template may be meant.
    """
    data, tokenizer = context.config.data, context.tokenizer(model)
    encoder = Encoder(tokenizer, data.max_seq_len, data.overlong)
    end, pad = tokenizer.convert_ids_to_tokens(encoder.end_token_id), tokenizer.pad_token
    found = [f"data.template={data.template}: responses end with {end!r}, padding is {pad!r}", *encoder.notes]
    remarks = []
    if tokenizer.pad_token_id == encoder.end_token_id:
        remarks.append("the pad token is the end token, which is right here: padding is left out by position")
    if model.path is not None and (pieces := split_tokens(encoder)):
        shown = ", ".join(f"{text} is split into {number} tokens" for text, number in pieces.items())
        remarks.append(
            f"{shown}, which a base model can learn; a model that was tuned with a chat template expects "
            f"data.template=tokenizer or the template of its family"
        )
    text = "; ".join([*found, *remarks])
    return Remark(text) if remarks else text


def check_data(context: RunContext, model: Model) -> str:
    """Read and encode the data. Refuse data in which the end of every response was cut off."""
    data, encoded = context.config.data, context.encoded(model)
    train = encoded.train
    num_cut = train.column("shortened").to_pylist().count(TRUNCATED)
    if num_cut == len(train):
        raise InputError(
            f"data.overlong=truncate: all of {len(train):,} responses lose their end, expected some that keep it, or "
            f"the model never learns to end a response; raise data.max_seq_len={data.max_seq_len}, or set "
            f"data.overlong=drop"
        )
    longest = int(train.lengths.max())
    cut = f"; {num_cut:,} lose their end" if num_cut else ""
    text = f"{counted(len(train), 'example')}, {len(encoded.val):,} held out; the longest has {longest:,} tokens{cut}"
    if model != context.config.model:  # the reference is measured on neither
        return text
    more = [f"validation file {file.in_words(name)}" for name, file in context.validation_files().items()]
    text = "; ".join([text, *more])
    return Remark(f"{text}; {warning}") if (warning := few_held_out(len(encoded.val))) else text


def check_examples(context: RunContext, layout: str) -> list[str]:
    """Return the tokens of some examples that carry loss in a batch of the run. Refuse an end without loss."""
    from sftmix.data.collate import BatchSettings, collate_step
    from sftmix.data.pairing import Step

    config, encoded = context.config, context.encoded(context.config.model)
    tokenizer, end_token_id = encoded.tokenizer, encoded.encoder.end_token_id
    examples: list[EncodedExample] = encoded.train[:SHOWN_EXAMPLES]
    trainer, prompt_weight = config.trainer, config.recipe.ntp.prompt_weight
    settings = BatchSettings(layout, trainer.micro_batch_tokens, tokenizer.pad_token_id, prompt_weight)
    step = Step(unpaired=tuple(range(len(examples))))
    batch = collate_step(step, examples, [1.0] * len(examples), settings)
    carry_loss: dict[int, dict[int, int]] = {k: {} for k in step.unpaired}  # token by its position in the example
    for micro_batch in batch.micro_batches:
        columns = micro_batch.positions, micro_batch.labels, micro_batch.example_of_position, micro_batch.weights
        for position, label, k, weight in zip(*(column.tolist() for column in columns), strict=True):
            if weight > 0:
                carry_loss[micro_batch.examples[k]][position + 1 - micro_batch.spans[k][0]] = label
    lines = []
    for example, tokens in zip(examples, carry_loss.values(), strict=True):
        ids, border = example.input_ids, example.num_prompt_tokens
        if ids[-1] == end_token_id and tokens.get(len(ids) - 1) != end_token_id:
            end = tokenizer.convert_ids_to_tokens(end_token_id)
            raise InputError(
                f"example {example.example_id}: {end!r} at its end carries no loss, expected loss on each token of the "
                f"response: the tuned model would not end its answers"
            )
        prompt = tokenizer.decode(ids[:border])
        response = tokenizer.decode([tokens[k] for k in sorted(tokens) if k >= border])
        with_loss = f"loss of weight {prompt_weight:g}" if prompt_weight else "no loss"
        lines.append(f"{with_loss} on {_shortened(prompt)}, then loss on {_shortened(response)}")
    return lines


def check_loggers(config: Config) -> str:
    """Check the key of Weights & Biases, and return which loggers the rehearsal starts."""
    wandb = config.wandb
    if wandb is not None and wandb.get("mode") in (None, "online"):
        import wandb as client

        if not client.login(prompt=False):
            raise InputError("logger=wandb: no key, run `wandb login`, or set logger.wandb.mode=offline")
    started = rehearsed_loggers(config, Path())
    left_out = [f"{name} (not started: it may send to a server)" for name in config.logger if name not in started]
    return ", ".join(["logs/metrics.csv", *started, *left_out])


def rehearsed_loggers(config: Config, folder: Path) -> dict[str, Any]:
    """Return the loggers that write into a folder: those with a `save_dir`, and Weights & Biases, which is offline."""
    entries: dict[str, Any] = {}
    for name, entry in config.logger.items():
        if entry[TARGET] == WANDB:
            entries[name] = {**entry, "mode": "disabled" if entry.get("mode") == "disabled" else "offline"}
        elif "save_dir" in entry:
            address = {"tracking_uri": None} if "tracking_uri" in entry else {}  # MLflow then writes into save_dir
            entries[name] = {**entry, **address, "save_dir": str(folder / name)}
    return entries


def check_received(loggers: dict[str, Any], folder: Path, run: Path) -> None:
    """Refuse a logger of `rehearsed_loggers` that has written nothing.

    Args:
        run: Folder of the run, where Weights & Biases writes.
    """
    for name, entry in loggers.items():
        is_wandb = entry[TARGET] == WANDB
        files = run.glob("wandb/offline-run-*/*.wandb") if is_wandb else (folder / name).rglob("*")
        if entry.get("mode") != "disabled" and not any(file.is_file() and file.stat().st_size for file in files):
            raise InputError(f"logger.{name}: nothing was written in the rehearsal, expected the metrics of its steps")


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}")
