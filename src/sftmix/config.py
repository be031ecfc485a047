"""Every name, type, unit and range that a YAML or the command line may use, checked at one boundary.

Dataclasses hold names, types, units and ranges; values, defaults included, stand in `conf/`.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sftmix.data.shapes import SHAPES

MAX_SEED = 2**31 - 1
STOP_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT")


def number(
    *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> Any:
    """A number within bounds; `above` and `below` leave the bound itself out."""
    words = [
        f"{word} {bound:.15g}"
        for word, bound, open_end in (
            ("above", above, -math.inf),
            ("at least", least, -math.inf),
            ("at most", most, math.inf),
            ("below", below, math.inf),
        )
        if bound != open_end
    ]
    expected = " and ".join(words)
    return checked(lambda x: above < x < below and least <= x <= most, expected)


def one_of(*allowed: str) -> Any:
    """One of some names."""
    return checked(lambda x: x in allowed, f"one of {', '.join(allowed)}")


def checked(holds: Callable[[Any], bool], expected: str) -> Any:
    """A value that something holds of, and what is expected in words."""
    return field(metadata={"holds": holds, "expected": expected})


@dataclass(kw_only=True)
class TinyInit:
    """How the embedded model is built."""

    seed: int = number(least=0)
    vocab_size: int = number(least=300)  # entries; 259 are bytes and special tokens
    hidden_size: int = number(least=8)
    num_layers: int = number(least=1)
    num_heads: int = number(least=1)
    max_position_embeddings: int = number(least=8)  # tokens


# What families call their head: its weight is read by itself, so an adapter on it would be passed by.
HEADS = ("lm_head", "embed_out", "output_embeddings", "output_layer")

TARGETS = "all-linear or a list of names of layers: [q_proj, v_proj]"


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) and name for name in value)


@dataclass(kw_only=True)
class Lora:
    """Adapters on linear layers in the place of all weights (Table 8)."""

    r: int = number(least=1)  # rank
    alpha: int = number(least=1)  # what the adapters add is scaled by alpha / r
    dropout: float = number(least=0, below=1)  # of the adapters' inputs
    target_modules: Any = checked(lambda t: t == "all-linear" or _are_names(t), TARGETS)
    lr_factor: float = number(above=0)  # on model.lr


@dataclass(kw_only=True)
class Model:
    """A causal language model: a folder, a hub id with its commit, or one that is built here."""

    name: str
    path: str | None  # folder or hub id; None where `init` builds it
    revision: str | None  # commit of the hub id
    dtype: str = one_of("float32", "bfloat16", "float16")  # of what is saved
    pad_token: str | None  # None: the tokenizer's own, or one made from its vocabulary
    lr: float = number(above=0)  # peak where all weights are tuned
    init: TinyInit | None
    lora: Lora | None

    @property
    def peak_lr(self) -> float:
        """The peak of what is tuned: all weights, or adapters."""
        return self.lr if self.lora is None else _times(self.lr, self.lora.lr_factor)


def _times(lr: float, factor: float) -> float:
    return float(f"{lr * factor:.12g}")  # ten times 2e-6 is 2e-5, and stands so in run.json


def _peak_lr(lr: Any, lora: Any) -> Any:
    """The resolver `peak_lr` of model.lr and model.lora, for the YAMLs of recipes.

    It runs before types are checked: what is no number passes as it is, and is told under its own key.
    """
    factor = lora.get("lr_factor") if isinstance(lora, DictConfig) else None
    return _times(lr, factor) if isinstance(lr, int | float) and isinstance(factor, int | float) else lr


OmegaConf.register_new_resolver("peak_lr", _peak_lr, replace=True)


def _node_of_slurm(num_nodes: Any) -> int:
    """Which node of a job this is, counted from 0: where a run takes several."""
    return int(os.environ.get("SLURM_NODEID", 0)) if int(num_nodes) > 1 else 0


OmegaConf.register_new_resolver("node_of_slurm", _node_of_slurm, replace=True)


@dataclass(kw_only=True)
class Demo:
    """The embedded set's generator."""

    num_examples: int = number(least=2, most=20000)
    seed: int = number(least=0)
    low_fraction: float | None = number(above=0, below=1)  # of the rows, of group low; None: families with noise


@dataclass(kw_only=True)
class Source:
    """One of the data sets of a mixture."""

    hub_id: str
    revision: str | None  # commit of the hub id; None: that of today, remembered
    split: str
    cap: int | None  # rows taken at most, the first ones
    published: int | None  # rows that its page names
    holds: str | None  # whose questions stand in it, where an evaluation uses them


@dataclass(kw_only=True)
class Mixture:
    """Several data sets in one."""

    sources: dict[str, Source]  # by name
    leave_out: list[str]  # names of sources
    total: int | None  # examples that the paper names

    @property
    def taken(self) -> dict[str, Source]:
        """The sources that are not left out."""
        return {name: source for name, source in self.sources.items() if name not in self.leave_out}


@dataclass(kw_only=True)
class Better:
    """Responses that take the place of others (Table 4)."""

    hub_id: str | None
    revision: str | None  # commit of the hub id; None: that of today, remembered
    split: str | None  # of the hub id or of a local folder
    path: str | None  # a local file or folder instead of the hub id
    fraction: float = number(above=0, most=1)  # of the instructions


@dataclass(kw_only=True)
class Select:
    """Which examples to train on (Table 7)."""

    by: str = one_of("longest", "scores", "ids", "random")
    k: int | None = number(least=2)  # examples
    at_least: float | None  # score
    path: str | None  # of scores or ids
    seed: int | None = number(least=0)  # of the random part


@dataclass(kw_only=True)
class Columns:
    """The source's column of each field, where it is called otherwise there."""

    instruction: str | None
    input: str | None
    output: str | None
    prompt: str | None
    completion: str | None
    system: str | None
    messages: str | None
    conversations: str | None
    group: str | None


@dataclass(kw_only=True)
class Data:
    """What is learnt, and how it is shown to the model."""

    name: str = checked(lambda n: re.fullmatch(r"[^/\0]*[^/\0.][^/\0]*", n) is not None, "a name without / for folders")
    hub_id: str | None
    revision: str | None  # commit of the hub id; None: that of today, remembered under `root`
    split: str | None  # of the hub id or of a local folder; None: a folder has only one
    path: str | None  # a local file or folder instead of the hub id
    demo: Demo | None
    mixture: Mixture | None
    better: Better | None
    shape: str | None = one_of(*SHAPES)  # None: as the first row that fits one shows
    columns: Columns
    groups: list[str] | None  # those to keep
    select: Select | None
    num_workers: int | None = number(least=1)  # processes that tokenize; None: as many as there are cores
    template: str  # one that is shipped, tokenizer, or the path of a .jinja file
    max_seq_len: int = number(least=8)  # tokens of prompt and response
    overlong: str = one_of("drop", "truncate", "error")
    epochs: int = number(least=1)
    num_checkpoints: int = number(least=1)
    val_fraction: float = number(least=0, below=1)  # of the source's rows
    limit: int | None = number(least=1)  # rows
    max_row_mib: float = number(above=0)  # MiB of the largest row that is read, uncompressed; a larger one is dropped

    @property
    def max_row_bytes(self) -> int:
        """Size of the largest row that is read, in bytes."""
        return max(1, int(self.max_row_mib * 2**20))


@dataclass(kw_only=True)
class Ntp:
    """Next-token prediction's part of the loss."""

    weight: float = number(least=0)
    on: str = one_of("all", "confident", "unconfident")
    prompt_weight: float = number(least=0)  # of a prompt's tokens from the second on, times its example's weight


@dataclass(kw_only=True)
class Mixup:
    """The Mixup term."""

    mu: float = number(least=0)  # its weight
    alpha: float = number(above=0)  # lambda ~ Beta(alpha, alpha)
    normalize_by: str = one_of("tokens", "mixed_tokens")
    pairing: str = one_of("random", "rank", "length")  # who meets whom


@dataclass(kw_only=True)
class Recipe:
    """Optimization, and the terms of the loss."""

    name: str
    global_batch_size: int = number(least=1)  # examples per optimizer step over all ranks
    lr: float = number(above=0)  # peak
    weight_decay: float = number(least=0)
    betas: list[float] = checked(lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers in [0, 1)")
    warmup_ratio: float = number(least=0, below=1)  # fraction of the steps
    max_grad_norm: float = number(above=0)
    length_window: int = number(least=1)  # optimizer steps
    neftune_alpha: float | None = number(above=0)  # noise of alpha / sqrt(L d) on embeddings in training
    ntp: Ntp
    mixup: Mixup | None

    @property
    def is_plain_ntp(self) -> bool:
        """Whether the loss is that of responses alone, as the reference and the baseline have it."""
        return self.mixup is None and self.neftune_alpha is None and self.ntp.prompt_weight == 0


@dataclass(kw_only=True)
class Reference:
    """The LLM that scores."""

    model: Model
    seed: int = number(least=0, most=MAX_SEED)
    num_checkpoints: int = number(least=1)  # C
    keep_checkpoints: bool  # after they were scored


@dataclass(kw_only=True)
class Confidence:
    """Whose perplexities make the confidence."""

    checkpoints: list[str] | None = checked(lambda c: len(c) > 0, "at least one folder")
    path: str | None  # a confidence.parquet
    use: Any = checked(
        lambda u: all(_is_count(k) for k in u) and len(set(u)) == len(u) > 0 if isinstance(u, list) else _is_count(u),
        "a number of checkpoints (the last k) or a list of different checkpoints counted from 1",
    )
    batch_tokens: int = number(least=1)  # per batch, padding included


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(kw_only=True)
class Split:
    """What parts the examples in two (Step 1): confidence, or something in its place."""

    by: str = one_of("confidence", "random", "length", "group")
    seed: int = number(least=0, most=MAX_SEED)  # of random halves
    confident: str | None  # the group that plays the confident part


@dataclass(kw_only=True)
class Trainer:
    """Where it runs. Nothing here changes what is learnt, but for the precision."""

    accelerator: str = one_of("auto", "cpu", "gpu")
    strategy: str = one_of("auto", "single", "ddp", "fsdp")
    devices: int | None = number(least=1)  # processes of a node; None: all visible GPUs
    num_nodes: int = number(least=1)
    node_rank: int = number(least=0)
    rdzv_endpoint: str | None = checked(lambda e: re.fullmatch(r"[^:]+:\d{1,5}", e) is not None, "host:port")
    rdzv_timeout: float = number(above=0)  # seconds
    precision: str = one_of("auto", "32-true", "bf16-mixed")
    layout: str = one_of("auto", "padded", "grouped", "packed")
    micro_batch_tokens: int = number(least=1)  # of one backward
    attention: str = one_of("auto", "sdpa", "eager", "flash_attention_2")
    compile: bool  # the blocks of the model
    activation_checkpointing: str = one_of("none", "full")
    accumulate_whole: bool  # FSDP: gradients stay whole on each rank until the last micro-batch of a step
    save_every_n_steps: int = number(least=1)  # optimizer steps between two saved states
    keep: int = number(least=1)  # saved states
    stop_signal: str = checked(lambda name: name in STOP_SIGNALS, f"one of {', '.join(STOP_SIGNALS)}")
    log_every_n_steps: int = number(least=1)
    progress_bar: bool


@dataclass(kw_only=True)
class Wandb:
    """Weights & Biases."""

    mode: str = one_of("online", "offline", "disabled")
    project: str
    entity: str | None
    group: str | None


@dataclass(kw_only=True)
class Logger:
    """Where figures go beside metrics.csv, and which are made for reading alone."""

    wandb: Wandb | None
    diagnose_every_n_steps: int | None = number(least=1)  # optimizer steps between two looks at what Mixup does


@dataclass(kw_only=True)
class Slurm:
    """What SLURM is asked for, a job."""

    partition: str | None
    account: str | None
    qos: str | None
    hours: float = number(above=0)
    cpus_per_gpu: int = number(least=1)
    mem_gb: float | None = number(above=0)
    more: dict[str, str] | None  # options of sbatch


@dataclass(kw_only=True)
class Sweep:
    """How the rows of a sweep are run. Nothing here changes what is learnt."""

    launcher: str = one_of("local", "slurm")
    jobs: int | None = number(least=1)  # rows at a time
    gpus_per_job: int | None = number(least=1)
    slurm: Slurm | None


@dataclass(kw_only=True)
class Config:
    """The whole configuration."""

    mode: str = one_of("train", "confidence", "list", "certify")
    seed: int = number(least=0, most=MAX_SEED)
    root: str
    model: Model
    data: Data
    recipe: Recipe
    reference: Reference
    confidence: Confidence
    split: Split
    trainer: Trainer
    logger: Logger
    sweep: Sweep

    @property
    def needs_split(self) -> bool:
        """Whether the target needs confident and unconfident halves."""
        return self.recipe.mixup is not None or self.recipe.ntp.on != "all"

    @property
    def trains_on_half(self) -> bool:
        """Whether the data set is one half alone (Table 6 without Mixup)."""
        return self.recipe.mixup is None and self.recipe.ntp.on != "all"

    @property
    def needs_confidence(self) -> bool:
        """Whether those halves are by confidence, so that something has to score."""
        return self.needs_split and self.split.by == "confidence"


def from_dict(values: Mapping[str, Any]) -> Config:
    """A checked configuration that was written out by `to_dict`, as it was."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A part of the configuration as plain containers."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
