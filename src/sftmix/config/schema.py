"""The whole config of a run: names, types, units and ranges of every key that a YAML or the command line may use.

Values, defaults included, are in `conf/`. A dataclass with a method `check` refuses values that cannot take effect
together within its section; `load.py` has the rules between sections.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from sftmix.artifacts.artifact import FIRST_EPOCH
from sftmix.config.data import Data
from sftmix.config.entries import TARGET, WANDB
from sftmix.config.fields import (
    MAX_SEED,
    checked,
    effective,
    inert,
    is_count,
    number,
    one_of,
    path_field,
    with_field_names,
    with_keys,
)
from sftmix.config.judge import JudgeConfig
from sftmix.config.model import Model
from sftmix.config.recipe import PLAIN_MIXUP, PLAIN_NTP, Optimizer, Recipe, Scheduler, is_baseline
from sftmix.errors import ConfigError
from sftmix.estimate.hardware import CHOICES
from sftmix.quoting import without_interpolation

WINDOW = 128  # examples of a window under confidence.window=null
STOP_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT")


def _node_of_slurm(num_nodes: Any) -> int:
    """Return the index of this node in a SLURM job, for runs on several nodes, otherwise 0."""
    return int(os.environ.get("SLURM_NODEID", 0)) if int(num_nodes) > 1 else 0


OmegaConf.register_new_resolver("node_of_slurm", _node_of_slurm, replace=True)


@dataclass(kw_only=True)
class Reference:
    """The reference: the model that scores the examples."""

    model: Model
    seed: int = number(least=0, most=MAX_SEED)  # Seed of the reference
    num_checkpoints: int = number(least=1)  # C: checkpoints that score
    epochs: int | None = number(least=1)  # Epochs of the reference; null: as the target, data.epochs
    keep_checkpoints: bool = inert()  # Keep the checkpoints after they were scored


@dataclass(kw_only=True)
class Confidence:
    """The scores that split the examples."""

    from_: str = one_of(
        "reference", "base", FIRST_EPOCH
    )  # What scores: a tuned reference, its untuned model, or the target's own first epoch
    checkpoints: list[str] | None = path_field(
        holds=lambda c: len(c) > 0, expected="at least one folder"
    )  # Folders of models to score with; no reference is tuned
    path: str | None = path_field()  # A confidence.parquet; nothing is scored
    use: Any = checked(
        lambda u: all(is_count(k) for k in u) and len(set(u)) == len(u) > 0 if isinstance(u, list) else is_count(u),
        "a number of checkpoints (the last k) or a list of different checkpoints counted from 1",
    )  # Checkpoints that count: the last k, or a list from 1; null: all
    batch_tokens: int = inert(number(least=1))  # Tokens of a scoring batch, padding included
    window: int | None = number(least=2)  # from=first_epoch: examples that are ranked together; null: 128


@dataclass(kw_only=True)
class Split:
    """How the examples are split into confident and unconfident ones."""

    by: str = one_of("confidence", "random", "length", "group")  # What splits the examples into two subsets
    seed: int = number(least=0, most=MAX_SEED)  # Seed of by=random; follows seed
    confident: str | None  # Group that is the confident subset under by=group

    def check(self, key: str) -> None:
        if self.by == "group" and self.confident is None:
            raise ConfigError(f"{key}.confident has no value: {key}.by=group needs the group of the confident subset")
        if self.by != "group" and self.confident is not None:
            raise ConfigError(
                f"{key}.confident={self.confident}: {key}.by={self.by} reads no groups, set {key}.by=group"
            )


BATCHES = "a number of batches, or a fraction up to 1"


def _is_limit(value: Any) -> bool:
    return is_count(value) or (isinstance(value, float) and 0 < value <= 1)


@dataclass(kw_only=True)
class Trainer:
    """Devices, memory and speed. Only the precision and the limits of batches change what is learned."""

    accelerator: str = one_of("auto", "cpu", "gpu")  # Device
    strategy: str = one_of("auto", "single", "ddp", "fsdp")  # How several processes share the model
    launcher: str = one_of("auto", "own", "environment")  # Who starts the processes: torchrun or srun, or the program
    devices: int | None = number(least=1)  # Processes on this node; null: one for each visible GPU
    num_nodes: int = number(least=1)  # Nodes
    node_rank: int = number(least=0)  # Number of this node, from 0
    rdzv_endpoint: str | None = checked(
        lambda e: re.fullmatch(r"[^:]+:\d{1,5}", e) is not None, "host:port"
    )  # HOST:PORT on the first node; only with num_nodes > 1
    rdzv_timeout: float = number(above=0)  # Seconds to wait for the other nodes
    precision: str = effective(one_of("auto", "32-true", "bf16-mixed"))  # Precision of the computation
    layout: str = one_of("auto", "padded", "grouped", "packed")  # Layout of a micro-batch
    micro_batch_tokens: int = number(least=1)  # Tokens of one forward and backward pass; lower it if memory is short
    loss: str = one_of("fused", "dense")  # Implementation of the loss; dense: the equations of the paper as written
    attention: str = one_of(
        "auto", "sdpa", "eager", "torch_varlen", "flash_attention_2", "flash_attention_3"
    )  # Implementation of attention
    compile: bool  # Compile the blocks of the model
    activation_checkpointing: str = one_of("auto", "none", "full")  # full: less memory, more time; auto: if needed
    accumulate_whole: bool | None  # FSDP: keep whole gradients until the last micro-batch of a step; null: if they fit
    save_every_minutes: float | None = number(above=0)  # Minutes between two training states; null: no limit
    save_every_n_steps: int | None = number(least=1)  # Optimizer steps between two training states; null: no limit
    keep: int = number(least=1)  # Training states that are kept
    stop_signal: str = checked(
        lambda name: name in STOP_SIGNALS, f"one of {', '.join(STOP_SIGNALS)}"
    )  # Signal that saves and stops, beside SIGTERM
    log_every_n_steps: int = number(least=1)  # Optimizer steps between two logged losses
    progress_bar: bool  # Show a progress bar
    curves: bool | None  # Draw logs/curves.png at the end of a run; null: no
    page: bool | None  # Write the page of a single run at its end; null: no
    overfit_batches: Any = effective(
        checked(lambda n: n == 0 or _is_limit(n), BATCHES)
    )  # Batches of an epoch, the same in every epoch; 0: off (debug=overfit)
    limit_train_batches: Any = effective(checked(_is_limit, BATCHES))  # Training batches of an epoch; null: all
    limit_val_batches: Any = effective(checked(_is_limit, BATCHES))  # Validation batches; null: all
    profiler: str | None = one_of("simple", "advanced", "pytorch")  # Lightning's profiler; null: none (debug=profile)

    @property
    def limits(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer that leave out batches, if any are set."""
        names = ("overfit_batches", "limit_train_batches", "limit_val_batches")
        return {name: value for name in names if (value := getattr(self, name))}

    def steps_per_epoch(self, num_steps: int) -> int:
        """Return the optimizer steps of an epoch under these limits.

        Args:
            num_steps: Optimizer steps of an epoch without limits.
        """
        limit = self.overfit_batches or self.limit_train_batches
        if not limit:
            return num_steps
        return min(limit, num_steps) if isinstance(limit, int) else int(limit * num_steps)

    def check(self, key: str) -> None:
        if self.num_nodes > 1 and self.rdzv_endpoint is None:
            raise ConfigError(
                f"{key}.rdzv_endpoint has no value: several nodes need host:port, a free port of the first node"
            )
        if self.num_nodes == 1 and self.rdzv_endpoint is not None:
            raise ConfigError(f"{key}.rdzv_endpoint={self.rdzv_endpoint}: it is only used with {key}.num_nodes > 1")
        if self.node_rank >= self.num_nodes:
            raise ConfigError(f"{key}.node_rank={self.node_rank}: there are {self.num_nodes} nodes, counted from 0")
        if self.strategy == "single" and (self.num_nodes > 1 or (self.devices or 1) > 1):
            raise ConfigError(
                f"{key}.strategy=single: this is one process, choose trainer=ddp or trainer=fsdp for several"
            )
        if self.overfit_batches and self.limit_train_batches is not None:
            raise ConfigError(f"{key}.limit_train_batches: with {key}.overfit_batches it cannot take effect")


@dataclass(kw_only=True)
class Slurm:
    """Request for each SLURM job (sweep=slurm)."""

    partition: str | None  # Partition
    account: str | None  # Account
    qos: str | None  # Quality of service
    hours: float = number(above=0)  # Time limit of a job, in hours; an unfinished run continues in a further job
    cpus_per_gpu: int = number(least=1)  # CPU cores for each GPU
    mem_gb: float | None = number(above=0)  # Memory of a job, in GB; null: the cluster's default
    more: dict[str, str] | None  # Further options of sbatch: {constraint: h100}

    def check(self, key: str) -> None:
        for option, value in (self.more or {}).items():
            if option == "export" and re.search(r"(?i)(key|token|secret|password)\w*=", value):
                raise ConfigError(
                    f"{key}.more.export: it sets a key, which the sweep would write to its files; set the variable in "
                    f"the environment of this command, which SLURM passes on to its jobs"
                )


@dataclass(kw_only=True)
class Sweep:
    """How the runs of a sweep are started. Nothing here changes what is learned."""

    launcher: str = one_of("local", "slurm")  # Set by sweep=local or sweep=slurm
    jobs: int | None = number(least=1)  # Runs at a time on this machine; null: one for each group of GPUs
    gpus_per_job: int | None = number(least=1)  # GPUs of each run; null: all
    slurm: Slurm | None

    def check(self, key: str) -> None:
        if (self.launcher == "slurm") != (self.slurm is not None):
            raise ConfigError(f"{key}.launcher={self.launcher}: choose sweep=local or sweep=slurm")
        if self.launcher == "slurm" and self.jobs is not None:
            raise ConfigError(f"{key}.jobs={self.jobs}: SLURM's own queue decides how many run at a time")


@dataclass(kw_only=True)
class Planning:
    """What mode=plan assumes. Nothing here changes what is learned."""

    gpu: str = one_of(*CHOICES)  # Hardware of the plan; trainer=cpu plans for this CPU
    utilization: float = number(above=0, most=1)  # Fraction of the peak speed that is assumed, if no run was measured
    tokens_per_second: float | None = number(above=0)  # Measured speed of training on all devices instead
    tokenizer: str | None = path_field()  # Folder of a tokenizer that counts instead of the model's own


@dataclass(kw_only=True)
class Config:
    """The whole config of train.py."""

    mode: str = inert(
        one_of("train", "confidence", "list", "plan", "check", "certify")
    )  # train; confidence: two stages; list: what exists; plan: what it needs; check: a rehearsal; certify: invariance
    seed: int = number(least=0, most=MAX_SEED)  # Seed of the target
    root: str = inert(path_field(always=True))  # Folder of everything that is written
    model: Model
    data: Data
    recipe: Recipe
    optimizer: Optimizer
    scheduler: Scheduler
    reference: Reference
    confidence: Confidence
    split: Split
    trainer: Trainer = inert()
    callbacks: dict[str, Any]  # Lightning callbacks of the target; choose callbacks=
    logger: dict[str, Any] = inert()  # Lightning loggers beside metrics.csv; choose logger=
    sweep: Sweep = inert()
    plan: Planning = inert()
    judge: JudgeConfig | None = inert()  # Judge of a later evaluation, which only mode=check reads

    @property
    def wandb(self) -> dict[str, Any] | None:
        """The entry `logger.wandb`, or None if Weights & Biases is not chosen."""
        entry = self.logger.get("wandb")
        return entry if entry is not None and entry[TARGET] == WANDB else None

    @property
    def is_baseline(self) -> bool:
        """Whether the target is the NTP baseline, which can also serve as a reference."""
        return is_baseline({"recipe": to_dict(self.recipe), "callbacks": self.callbacks})

    @property
    def averages_checkpoints(self) -> bool:
        """Whether the target is the mean of the checkpoints of the reference. Nothing else is trained."""
        return self.recipe.comparison == "checkpoint_average"

    @property
    def needs_split(self) -> bool:
        """Whether the target needs a confident and an unconfident subset."""
        return self.recipe.mixup is not None or self.recipe.ntp.on != "all"

    @property
    def trains_on_subset(self) -> bool:
        """Whether the target is trained on only one subset (Table 6 without Mixup)."""
        return self.recipe.mixup is None and self.recipe.ntp.on != "all"

    @property
    def needs_confidence(self) -> bool:
        """Whether the subsets are by confidence."""
        return self.needs_split and self.split.by == "confidence"

    @property
    def splits_after_first_epoch(self) -> bool:
        """Whether the target's own losses in its first epoch split the examples, so that nothing is scored before."""
        return self.needs_confidence and self.confidence.from_ == FIRST_EPOCH


@dataclass(kw_only=True)
class ReportConfig(Config):
    """The whole config of `report.py`: the settings of `train.py`, and exactly one report that is asked for."""

    view: str | None  # examples: the data as the model will see it, before training
    n: int  # examples that a view shows
    table: str | None  # name of an ablation: the paper's table with the runs of that ablation beside it
    leaderboard: str | None = path_field(always=True)  # (internal) written sweep=FOLDER
    diff: list[str] | None = path_field(always=True)  # two runs: the fields in which they differ
    curves: list[str] | None = path_field(always=True)  # runs: their training curves, all seeds of each recipe
    compare: list[str] | None = path_field(always=True)  # two runs: whether their recipes differ, over all their seeds
    rerun: str | None = path_field(always=True)  # a run: the command that makes it again
    page: str | None = path_field(always=True)  # a run: write its page, one HTML file
    map: str | None = path_field(always=True)  # a run or a folder of scores: write its data map, one HTML file
    output: str | None = path_field(always=True)  # file that a data map is written to; null: under root/reports
    dashboard: str | None  # name of an ablation: publish its dashboard at Weights & Biases
    figure: str | None  # tsne (Figure 1) or confidence (Figure 3)
    run: str | None = path_field(always=True)  # the run, or folder of scores, of a figure
    k: int | None  # most and least confident examples of figure=tsne and topics=; null: 2500
    at: str | None  # token of the hidden states of figure=tsne: response (its last token, the default) or prompt
    by: str | None  # groups of figure=confidence: group or source
    topics: str | None = path_field(always=True)  # a run: what its most and least confident examples are about
    spacy: str | None  # spaCy pipeline that finds the root verbs of topics=; null: a heuristic
    labels: str | None = path_field(always=True)  # file with labels of the examples of topics=
    stability: list[str] | None = path_field(always=True)  # runs, random, length: how far their splits agree
    format: str  # of a table, sweep or comparison: text, markdown, latex or csv
    study: str | None = path_field(always=True)  # a protocol: the verdict on each of its claims
    margin: float | None = number(above=0)  # of compare=: smallest difference of losses that matters, in nats per token
    subsets: str | None = path_field(always=True)  # of compare=, study=: run or scores whose split gives the subsets


def from_dict(values: Mapping[str, Any]) -> Config:
    """Return the config that `to_dict` has written out. It was checked before.

    A key that an earlier version did not have is null if it may be null: null switches a feature off. Keys of the terms
    of the loss have the value that has no effect.
    """
    # Records from before mode=plan have no such section, and nothing reads it in a record
    no_plan = {"gpu": CHOICES[0], "utilization": 1.0, "tokens_per_second": None, "tokenizer": None}
    recipe = values["recipe"]
    mixup = recipe["mixup"] and {**PLAIN_MIXUP, **recipe["mixup"]}
    if mixup and mixup["pairing"] == "random":  # the earlier name
        mixup["pairing"] = "across"
    terms = {"recipe": {**recipe, "ntp": {**PLAIN_NTP, **recipe["ntp"]}, "mixup": mixup}}
    confidence = {"from": "reference", **(values.get("confidence") or {})}  # the only source of earlier versions
    content = with_field_names({"plan": no_plan, **values, **terms, "confidence": confidence}, Config)
    merged = OmegaConf.merge(OmegaConf.structured(Config), literal(content))
    for key in OmegaConf.missing_keys(merged):
        with suppress(ValidationError):  # it cannot be null
            OmegaConf.update(merged, key, None)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def literal(container: Any) -> Any:
    """Escape the texts of plain containers, so that OmegaConf does not look up a `${` that is part of a text."""
    if isinstance(container, str):
        return without_interpolation(container)
    if isinstance(container, list):
        return [literal(element) for element in container]
    if isinstance(container, dict):
        return {key: literal(element) for key, element in container.items()}
    return container


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config or a section as plain containers."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    found: dict[str, Any] = with_keys({str(key): value for key, value in container.items()}, type(config))
    return found
