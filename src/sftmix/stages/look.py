"""What a run would be made of, without running it: for a look before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftmix.config.schema import Config
from sftmix.data.census import Census
from sftmix.data.shards import EncodedExamples, Examples
from sftmix.stages.context import RunContext
from sftmix.stages.inputs import check_hub
from sftmix.stages.plan import Plan, data_name, model_name, plan_run
from sftmix.stages.prepare import describe_reading
from sftmix.stages.split import Subsets, partner_order, split_examples, split_in_words


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
        order: the place of each in the order by which partners meet; None where they are drawn.
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
    order: Sequence[int] | None
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
    check_hub(config, plan.tunes_reference)
    context = RunContext(config)
    encoded = context.encoded(config.model)
    split, halves = _split(context, plan)
    name = data_name(config.data)
    return Look(
        f"{name} under template {config.data.template}, as the tokenizer of {model_name(config.model)} sees it",
        describe_reading(config.data, context.data.reading),
        encoded.tokenizer,
        encoded.encoder.end_token_id,
        encoded.train,
        len(encoded.val),
        encoded.census,
        context.data.examples,
        device.layout,
        split and split.train,
        split and partner_order(config, encoded.train, split.confidence),
        halves,
        config.recipe.global_batch_size,
        config.trainer.micro_batch_tokens,
        config.recipe.length_window,
        config.seed,
        Path(config.root) / "data" / f"look-{name}-{plan.target.fingerprint}",
    )


def _split(context: RunContext, plan: Plan) -> tuple[Subsets | None, str]:
    """The parts where they are known, else halves at random in their place; None without Mixup."""
    config = context.config
    if config.recipe.mixup is None:
        return None, f"recipe {config.recipe.name} has no Mixup"
    met = "" if config.recipe.mixup.pairing == "random" else f", who meet by {config.recipe.mixup.pairing}"
    if not config.needs_confidence:
        return split_examples(context, None), f"pairs of {split_in_words(config.split)}{met}"
    file = None if config.confidence.path is None else Path(config.confidence.path)
    if plan.confidence is not None and plan.confidence.is_complete:
        file = plan.confidence.folder / "confidence.parquet"
    if file is not None:
        return split_examples(context, file), f"pairs by the confidence of {file}{met}"
    number = len(context.encoded(config.model).train)
    at_random = np.random.default_rng(config.seed).permutation(number) % 2 == 0
    met = "" if config.recipe.mixup.pairing == "rank" else met
    return Subsets(at_random.tolist(), [], {}), f"pairs of random halves, since no confidence is known yet{met}"
