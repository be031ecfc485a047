"""What a run would be made of, without running it: for a look before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftmix.config import Config
from sftmix.data.census import Census
from sftmix.data.shards import EncodedExamples, Examples
from sftmix.stages.dataset import said_of
from sftmix.stages.materials import Encoded, Materials
from sftmix.stages.plan import Plan, check_hub, data_name, model_name, plan_run
from sftmix.stages.target import read_split


class Look(NamedTuple):
    """The data of a run, and what its batches are made by.

    Attributes:
        title: data, template and model in words.
        said: what was found in reading: shapes, composition.
        tokenizer: of the target.
        end_token_id: the token that ends a response.
        train: examples to train on.
        num_val: held-out examples.
        census: what became of every row.
        examples: the text of all examples.
        layout: how sequences would lie in the body.
        is_confident: the half of each example to train on; None without Mixup.
        halves: where the halves come from.
        global_batch_size: examples per optimizer step.
        micro_batch_tokens: tokens of a micro-batch.
        length_window: steps within which examples of like length share one.
        seed: of the order.
        folder: where to write about it.
    """

    title: str
    said: str
    tokenizer: Any
    end_token_id: int
    train: EncodedExamples
    num_val: int
    census: Census
    examples: Examples
    layout: str
    is_confident: Sequence[bool | None] | None
    halves: str
    global_batch_size: int
    micro_batch_tokens: int
    length_window: int
    seed: int
    folder: Path


def prepare_look(config: Config) -> Look:
    """Read and encode the data of a configuration.

    Raises:
        InputError: anything that was given is wrong.
    """
    device, plan = plan_run(config)
    check_hub(config, plan)
    materials = Materials(config)
    encoded = materials.encoded(config.model)
    is_confident, halves = _halves(config, plan, encoded)
    name = data_name(config.data)
    return Look(
        f"{name} under template {config.data.template}, as the tokenizer of {model_name(config.model)} sees it",
        said_of(config.data, materials.reading),
        encoded.tokenizer,
        encoded.encoder.end_token_id,
        encoded.train,
        len(encoded.val),
        encoded.census,
        materials.examples,
        device.layout,
        is_confident,
        halves,
        config.recipe.global_batch_size,
        config.trainer.micro_batch_tokens,
        config.recipe.length_window,
        config.seed,
        Path(config.root) / "data" / f"look-{name}-{plan.target.fingerprint}",
    )


def _halves(config: Config, plan: Plan, encoded: Encoded) -> tuple[Sequence[bool | None] | None, str]:
    """The halves by confidence where it is known, else halves at random in their place; None without Mixup."""
    if config.recipe.mixup is None:
        return None, f"recipe {config.recipe.name} has no Mixup"
    file = None if config.confidence.path is None else Path(config.confidence.path)
    if plan.confidence is not None and plan.confidence.is_complete:
        file = plan.confidence.folder / "confidence.parquet"
    if file is not None:
        known, _ = read_split(file, encoded.train.ids, config.confidence.use)
        return [known.get(i) for i in encoded.train.ids], f"pairs by the confidence of {file}"
    at_random = np.random.default_rng(config.seed).permutation(len(encoded.train)) % 2 == 0
    return at_random.tolist(), "pairs of random halves, since no confidence is known yet"
