"""Steps and tokens of the stages of a run, counted by the program's own sampler and micro-batches (mode=plan)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sftmix.config.model import Model
from sftmix.config.schema import Config
from sftmix.data.layout import cut_by_tokens, group_shared_prefixes, split_into_microbatches
from sftmix.data.pairing import Step, random_subsets
from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.models.tokenizer import load_tokenizer
from sftmix.stages.context import RunContext
from sftmix.stages.data import EncodedData
from sftmix.stages.inputs import check_hub
from sftmix.stages.plan import Plan
from sftmix.terminal import counted

if TYPE_CHECKING:
    from sftmix.stages.train import TrainingExamples
    from sftmix.training.datamodule import SFTDataModule

MOST_STEPS = 2000  # steps whose micro-batches are counted: those with the most tokens


class Workload(NamedTuple):
    """What a stage computes.

    Attributes:
        num_steps: Optimizer steps. None for scoring, and if the number of examples is unknown.
        num_tokens: Tokens of prompts and responses that go through the model. None if they are unknown.
        largest: Tokens of the largest micro-batch of a rank, or of the largest batch that is scored.
        num_micro_batches: Most micro-batches of a step.
        longest_unit: Tokens of the longest pair or unpaired example.
        response_share: Share of the tokens of the largest micro-batch that carry loss.
        is_bound: Whether nothing could be counted, so that all numbers are upper bounds.
    """

    num_steps: int | None
    num_tokens: int | None
    largest: int
    num_micro_batches: int = 1
    longest_unit: int = 0
    response_share: float = 0.5
    is_bound: bool = False


class CountedData:
    """The data of a run under the tokenizers of its models, as far as both can be had.

    Attributes:
        why_unknown: Why nothing can be counted, in one line; None if it can.
    """

    def __init__(self, config: Config, reads_reference: bool) -> None:
        self.config = config
        tokenizer = config.plan.tokenizer
        self.context = RunContext(config) if tokenizer is None else _OtherTokenizer(config, tokenizer)
        self.why_unknown: str | None = None
        try:
            check_hub(config, reads_reference, models=tokenizer is None)
            self.encoded(config.model)
        except InputError as error:
            if not _reads_hub(config):
                raise
            self.why_unknown = str(error)

    def encoded(self, model: Model) -> EncodedData:
        """Return the data under the tokenizer of a model."""
        return self.context.encoded(model)

    @property
    def sizes(self) -> dict[Path, int]:
        """Bytes of each artifact of the data set that was used."""
        folders = self.context.data.folders
        return {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}


class _OtherTokenizer(RunContext):
    """The data of a run under one given tokenizer, whatever the models."""

    def __init__(self, config: Config, path: str) -> None:
        super().__init__(config)
        self._given = load_tokenizer(path, None, None)

    def encoded(self, model: Model) -> EncodedData:
        return self.data.encode(self._given)

    def _tokenizer(self, model: Model) -> object:
        return self._given


def _reads_hub(config: Config) -> bool:
    from sftmix.stages.inputs import hub_sources

    paths = [config.model.path, config.reference.model.path]
    return bool(hub_sources(config.data)) or any(p is not None and not Path(p).exists() for p in paths)


class MatchedCompute(NamedTuple):
    """The forward tokens of SFTMix's pipeline, by stage, and the epochs of NTP that have at least as many.

    A token of a prompt or response counts whenever it goes through a model, without padding: as `tokens` of `run.json`.
    """

    reference: int
    scoring: int
    target: int
    epochs: int

    @property
    def in_words(self) -> str:
        total = self.reference + self.scoring + self.target
        return (
            f"{total:,} forward tokens of SFTMix (reference {self.reference:,}, scoring {self.scoring:,}, target "
            f"{self.target:,}) are {counted(self.epochs, 'epoch')} of next-token prediction, rounded up"
        )


def matched_compute(config: Config, encoded: EncodedData) -> MatchedCompute:
    """Count the forward tokens of the pipeline that has the reference and the data of a config."""
    of_epoch, scored = int(encoded.train.lengths.sum()), scored_tokens(encoded)
    reference = (config.reference.epochs or config.data.epochs) * of_epoch
    scoring, target = config.reference.num_checkpoints * scored, config.data.epochs * of_epoch
    return MatchedCompute(reference, scoring, target, -(-(reference + scoring + target) // of_epoch))


def scored_tokens(encoded: EncodedData) -> int:
    """Return the tokens that a checkpoint scores. Turns of a dialogue that share a sequence are computed once."""
    examples = encoded.train.joined(encoded.val)
    return sum(int(examples.lengths[run[-1]]) for run in group_shared_prefixes(examples))


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the config of a run of another number of epochs."""
    return replace(config, data=replace(config.data, epochs=epochs))


def training_workload(
    config: Config, device: Device, data: CountedData, examples: "TrainingExamples | None"
) -> Workload:
    """Return the workload of a training stage.

    Args:
        config: The config of the run that is tuned.
        examples: What it is tuned on; None if nothing could be counted.
    """
    if examples is None:
        return largest_workload(config, device)
    from sftmix.stages.train import build_data

    return counted_workload(config, device, build_data(config, data.encoded(config.model), examples, device))


def counted_workload(config: Config, device: Device, module: "SFTDataModule") -> Workload:
    """Return the workload of a training stage from the first epoch of its data."""
    train, steps = module.train, module.sampler.epoch(0)
    steps = steps[: config.trainer.steps_per_epoch(len(steps))]
    lengths: Sequence[int] = train.lengths.tolist()
    responses = lengths if config.recipe.ntp.prompt_weight else train.num_response_tokens.tolist()
    totals = [sum(lengths[i] for i in step.examples) for step in steps]
    heaviest = sorted(range(len(steps)), key=lambda k: -totals[k])[:MOST_STEPS]
    counted = _micro_batches([steps[k] for k in heaviest], config, device, dict(enumerate(lengths)))
    part, largest = max(((part, tokens) for parts in counted for part, tokens in parts), key=lambda pair: pair[1])
    return Workload(
        num_steps=config.data.epochs * len(steps),
        num_tokens=config.data.epochs * sum(totals),
        largest=largest,
        num_micro_batches=max(map(len, counted)),
        longest_unit=max(_unit(step, lengths) for step in steps),
        response_share=sum(responses[i] for i in part.examples) / largest,
    )


def _unit(step: Step, lengths: Sequence[int]) -> int:
    pairs = [lengths[c] + lengths[u] for c, u in zip(step.confident, step.unconfident, strict=True)]
    return max([*pairs, *(lengths[i] for i in step.unpaired)])


def _micro_batches(
    steps: Sequence[Step], config: Config, device: Device, lengths: Mapping[int, int]
) -> list[list[tuple[Step, int]]]:
    """Return the micro-batches of each step and rank with their tokens, padding included where there is some."""
    is_padded, found = device.layout == "padded", []
    for step in steps:
        parts = split_into_microbatches(
            step,
            lengths,
            micro_batch_tokens=config.trainer.micro_batch_tokens,
            padded=is_padded,
            world_size=device.world_size,
        )
        for of_rank in parts:
            own = [[lengths[i] for i in part.examples] for part in of_rank]
            tokens = [max(each, default=1) * len(each) if is_padded else sum(each) for each in own]
            found.append(list(zip(of_rank, tokens, strict=True)))
    return found


def largest_workload(config: Config, device: Device) -> Workload:
    """Return upper bounds: every example has `data.max_seq_len` tokens, and their number is the published one."""
    data, size = config.data, config.recipe.global_batch_size
    half = size // 2 if config.recipe.mixup is not None else 0
    step = Step(tuple(range(half)), tuple(range(half, 2 * half)), (1.0,) * half, tuple(range(2 * half, size)))
    counted = _micro_batches([step], config, device, dict.fromkeys(range(size), data.max_seq_len))
    num_steps = num_tokens = None
    if (num_examples := published_examples(config)) is not None:
        per_epoch = config.trainer.steps_per_epoch(-(-num_examples // size))
        num_steps = data.epochs * per_epoch
        num_tokens = data.epochs * min(num_examples, per_epoch * size) * data.max_seq_len
    return Workload(
        num_steps,
        num_tokens,
        largest=max(tokens for parts in counted for _, tokens in parts),
        num_micro_batches=max(map(len, counted)),
        longest_unit=(2 if half else 1) * data.max_seq_len,
        response_share=1.0,
        is_bound=True,
    )


def published_examples(config: Config) -> int | None:
    """Return about how many examples a run trains on, from the numbers that pages of data sets state, if they do."""
    data = config.data
    numbers = [data.published] if data.mixture is None else [s.published for s in data.mixture.taken.values()]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    count = min(sum(known), data.limit or sum(known))
    count = round(count * (1 - data.val_fraction))
    if data.select is not None:
        count = min(count, data.select.k or count)
    return count // 2 if config.trains_on_subset else count


def target_examples(config: Config, plan: Plan, data: CountedData) -> "TrainingExamples":
    """Return what a target is tuned on. Until the examples are scored, random subsets of the same size are taken."""
    from sftmix.stages.split import Subsets, split_examples
    from sftmix.stages.target import training_examples
    from sftmix.stages.train import TrainingExamples, ntp_weights

    encoded = data.encoded(config.model)
    if not config.needs_split:
        return TrainingExamples(encoded.train, ntp_weights(config, encoded.train))
    scores = None if config.confidence.path is None else Path(config.confidence.path)
    if plan.confidence is not None and plan.confidence.is_complete:
        scores = plan.confidence.folder / "confidence.parquet"
    if config.needs_confidence and scores is None:
        subsets = Subsets([*random_subsets(encoded.train.ids, config.seed)], [None] * len(encoded.val), {})
    else:
        subsets = split_examples(data.context, scores)
    return training_examples(config, encoded.train, subsets)


def scoring_workload(
    config: Config, device: Device, data: CountedData, num_checkpoints: int, *, held_out: bool = False
) -> Workload:
    """Return the workload of scoring. Turns of a dialogue that share a sequence are computed once.

    Args:
        held_out: Only the held-out examples are scored. The largest batch is still one of all examples, a bound.
    """
    if data.why_unknown is not None:
        count = published_examples(config)
        tokens = None if count is None else num_checkpoints * count * config.data.max_seq_len
        largest = max(config.confidence.batch_tokens, config.data.max_seq_len)
        longest = config.data.max_seq_len
        return Workload(None, tokens, largest, longest_unit=longest, response_share=1.0, is_bound=True)
    encoded = data.encoded(config.reference.model)
    examples = encoded.train.joined(encoded.val)
    runs = group_shared_prefixes(examples)
    lengths = [int(examples.lengths[run[-1]]) for run in runs]
    responses = [int(examples.num_response_tokens[run].sum()) for run in map(list, runs)]

    def size(batch: Sequence[int]) -> int:
        own = [lengths[i] for i in batch]
        return max(own) * len(own) if device.layout == "padded" else sum(own)

    batch = max(cut_by_tokens(lengths, config.confidence.batch_tokens), key=size)
    share = sum(responses[i] for i in batch) / size(batch)
    num_tokens = int(encoded.val.lengths.sum()) if held_out else num_checkpoints * sum(lengths)
    return Workload(None, num_tokens, size(batch), longest_unit=max(lengths), response_share=share)
