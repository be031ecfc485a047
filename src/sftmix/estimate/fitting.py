"""Settings that lower the peak memory of a training step, tried one after the other in the closed form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sftmix.estimate.memory import GIB, TrainingSetup, peak_bytes, scoring_bytes
from sftmix.estimate.shape import ModelShape

NOT_COUNTED_GIB = 2.0  # assumed: the context of CUDA, buffers of NCCL, and gaps between allocations
DDP_SHARE = 0.9  # assumed: share of the memory that DDP may use where FSDP could be chosen, which needs less
MOST_RANKS = 8  # GPUs of a node
LORA_RANK = 16  # of model/lora=default
LEAST_GAIN = 0.995  # a setting is only named if it lowers the peak below this factor


def peak_gib(shape: ModelShape, setup: TrainingSetup) -> float:
    """Return the peak memory of a rank in GiB, without `NOT_COUNTED_GIB`."""
    return max(peak_bytes(shape, setup).values()) / GIB


def fits(peak: float, memory_gib: float) -> bool:
    """Return whether a peak in GiB fits the memory of a GPU beside what the closed form does not count."""
    return peak + NOT_COUNTED_GIB <= memory_gib


@dataclass(frozen=True)
class Setting:
    """Overrides, and what they change in the setup of a run."""

    overrides: str
    changes: dict[str, Any]


@dataclass
class Advice:
    """Settings that were tried because a step does not fit, and the peak in GiB with them.

    Attributes:
        tried: Overrides in the order in which they were tried, each with the peak that it and all before it give.
        remedies: Overrides that are enough, with their peak: without LoRA, and LoRA. Empty if nothing was enough.
    """

    tried: list[tuple[str, float]] = field(default_factory=list)
    remedies: list[tuple[str, float]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What helps, in lines."""
        tried = ", ".join(f"{overrides} {peak:.1f}" for overrides, peak in self.tried)
        lines = [f"GiB with these settings added one after the other: {tried}"] if tried else []
        lines += [f"{'or' if number else 'fits'} with {o} ({p:.1f} GiB)" for number, (o, p) in enumerate(self.remedies)]
        return lines if self.remedies else [*lines, "none of the settings that were tried is enough"]


def advise(shape: ModelShape, setup: TrainingSetup, memory_gib: float, least_tokens: int) -> Advice:
    """Return which settings make a step fit the memory of a GPU, and what each of them changes.

    The order: flash attention, smaller micro-batches, activation checkpointing, with LoRA quantization, gradients in
    shards, FSDP over the same and then over more devices. A setting that does not lower the peak is left out. LoRA is
    tried by itself.

    Args:
        least_tokens: Tokens of the longest pair, which is never divided.
    """
    advice, chosen = Advice(), list[Setting]()
    peak = peak_gib(shape, setup)
    for attempt in (_flash, _micro_batches, _checkpointing, _quantization, _shards, _fsdp, _shards):
        if fits(peak, memory_gib):
            break
        found = list[tuple[float, Setting]]()
        for setting in attempt(_with(setup, chosen), least_tokens):
            found.append((peak_gib(shape, _with(setup, [*chosen, setting])), setting))
            if fits(found[-1][0], memory_gib):
                break
        best = min(found, key=lambda pair: pair[0], default=None)
        if best is not None and best[0] < LEAST_GAIN * peak:
            peak = best[0]
            chosen.append(best[1])
            advice.tried.append((best[1].overrides, peak))
    if fits(peak, memory_gib) and chosen:
        for setting in chosen[:-1]:  # what a stronger setting has made unnecessary
            without = [other for other in chosen if other is not setting]
            if fits(peak_gib(shape, _with(setup, without)), memory_gib):
                chosen = without
        peak = peak_gib(shape, _with(setup, chosen))
        advice.remedies.append((" ".join(setting.overrides for setting in chosen), peak))
    if setup.lora_rank is None:
        adapters = list[Setting]()
        lora = Setting("model/lora=default", {"lora_rank": LORA_RANK})
        for setting in (lora, *_checkpointing(setup, 0), *_quantization(_with(setup, [lora]), 0)):
            adapters.append(setting)
            if fits(peak := peak_gib(shape, _with(setup, adapters)), memory_gib):
                advice.remedies.append((" ".join(s.overrides for s in adapters), peak))
                break
    return advice


def advise_scoring(shape: ModelShape, setup: TrainingSetup, memory_gib: float, least_tokens: int) -> list[str]:
    """Return what makes a batch of scoring fit the memory of a GPU, in lines: smaller batches, and FSDP.

    Args:
        least_tokens: Tokens of the longest sequence, which is never divided.
    """
    batches = [setup.tokens >> k for k in range(1, 20) if setup.tokens >> k >= least_tokens]
    tried = [(f"confidence.batch_tokens={n}", replace(setup, tokens=n)) for n in batches]
    sharded = [] if setup.is_quantized else [n for n in (2, 4, 8) if n > setup.num_ranks or setup.strategy != "fsdp"]
    tried += [
        (f"trainer=fsdp trainer.devices={n}", replace(setup, strategy="fsdp", num_ranks=n))
        for n in sharded
        if n >= setup.num_ranks
    ]
    for overrides, other in tried:
        if fits(peak := max(scoring_bytes(shape, other).values()) / GIB, memory_gib):
            return [f"fits with {overrides} ({peak:.1f} GiB)"]
    return ["none of the settings that were tried is enough"]


def _with(setup: TrainingSetup, settings: Sequence[Setting]) -> TrainingSetup:
    changes: dict[str, Any] = {}
    for setting in settings:
        changes |= setting.changes
    return replace(setup, **changes)


def _flash(setup: TrainingSetup, least_tokens: int) -> Iterator[Setting]:
    if setup.has_mask:
        yield Setting("trainer.attention=torch_varlen", {"has_mask": False})


def _micro_batches(setup: TrainingSetup, least_tokens: int) -> Iterator[Setting]:
    tokens = setup.tokens // 2
    while tokens >= least_tokens:
        yield Setting(f"trainer.micro_batch_tokens={tokens}", {"tokens": tokens, "has_micro_batches": True})
        tokens //= 2


def _checkpointing(setup: TrainingSetup, least_tokens: int) -> Iterator[Setting]:
    if not setup.checkpoints_activations:
        yield Setting("trainer.activation_checkpointing=full", {"checkpoints_activations": True})


def _quantization(setup: TrainingSetup, least_tokens: int) -> Iterator[Setting]:
    if setup.lora_rank is not None and not setup.is_quantized and setup.strategy != "fsdp":
        yield Setting("model.quantization=nf4", {"is_quantized": True})


def _shards(setup: TrainingSetup, least_tokens: int) -> Iterator[Setting]:
    if setup.strategy == "fsdp" and setup.has_micro_batches and setup.accumulates_whole:
        yield Setting("trainer.accumulate_whole=false", {"accumulates_whole": False})


def _fsdp(setup: TrainingSetup, least_tokens: int) -> Iterator[Setting]:
    """Yield FSDP over the same devices, then over more. A rank of more devices has fewer tokens, which is ignored."""
    if setup.is_quantized:  # quantized weights are not sharded
        return
    ranks = setup.num_ranks * (2 if setup.strategy == "fsdp" else 1)
    while ranks <= MOST_RANKS:
        yield Setting(f"trainer=fsdp trainer.devices={ranks}", {"strategy": "fsdp", "num_ranks": ranks})
        ranks *= 2
