"""Every name, type, unit and range that a YAML or the command line may use, checked at one boundary.

Dataclasses hold names, types, units and ranges; values, defaults included, stand in `conf/`.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from sftmix.config.entries import TARGET, WANDB, result_changing
from sftmix.data.schemas import SCHEMAS
from sftmix.quoting import without_interpolation

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


def path_field(*, always: bool = False, holds: Callable[[Any], bool] | None = None, expected: str = "") -> Any:
    """Declare a key whose value is a path, or a list or mapping of paths.

    The command line takes the text of a path literally, and `~` is read as the home folder.

    Args:
        always: Whether the text is taken literally also if no such path exists: the program makes the folder, or
            looks for the name in `root`.
        holds: Condition on the value, as in `checked`.
        expected: The condition in words.
    """
    rule = {} if holds is None else {"holds": holds, "expected": expected}
    return field(metadata={"path": "always" if always else "if it exists", **rule})


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a type hint allows: those of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def path_keys(schema: Any, prefix: str = "") -> dict[str, tuple[bool, bool]]:
    """Return the dotted keys of a configuration whose values are paths: whether always, whether a list."""
    found: dict[str, tuple[bool, bool]] = {}
    for f in fields(schema):
        hint = get_type_hints(schema)[f.name]
        options = options_of(hint)
        for option in options:
            if is_dataclass(option):
                found |= path_keys(option, f"{prefix}{f.name}.")
        if "path" in f.metadata:
            found[f"{prefix}{f.name}"] = (
                f.metadata["path"] == "always",
                any(get_origin(option) is list for option in options),
            )
    return found


@dataclass(kw_only=True)
class TinyInit:
    """Size of the embedded model (model=tiny)."""

    seed: int = number(least=0)  # Seed of the random weights
    vocab_size: int = number(least=300)  # Entries of the vocabulary; 259 are bytes and special tokens
    hidden_size: int = number(least=8)  # Width of the hidden states
    num_layers: int = number(least=1)  # Layers
    num_heads: int = number(least=1)  # Attention heads; half of hidden_size must be a multiple
    max_position_embeddings: int = number(least=8)  # Longest sequence, in tokens


# What families call their head: its weight is read by itself, so an adapter on it would be passed by.
HEADS = ("lm_head", "embed_out", "output_embeddings", "output_layer")

TARGETS = "all-linear or a list of names of layers: [q_proj, v_proj]"


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) and name for name in value)


@dataclass(kw_only=True)
class Lora:
    """Adapters on linear layers instead of full tuning (Table 8); choose model/lora=default."""

    r: int = number(least=1)  # Rank of the adapters
    alpha: int = number(least=1)  # The output of the adapters is scaled by alpha / r
    dropout: float = number(least=0, below=1)  # Dropout probability of the adapters' inputs
    target_modules: Any = checked(lambda t: t == "all-linear" or _are_names(t), TARGETS)  # Layers that carry adapters
    lr_factor: float = number(above=0)  # Factor on model.lr when adapters are tuned


@dataclass(kw_only=True)
class Model:
    """The model: model=local model.path=FOLDER, or a hub id with its commit."""

    name: str
    path: str | None = path_field()  # Folder, or hub id; null for the embedded model
    revision: str | None  # Commit of the hub id
    dtype: str = one_of("float32", "bfloat16", "float16")  # Type of the saved weights
    pad_token: str | None  # null: the tokenizer's own, or one of its vocabulary
    lr: float = number(above=0)  # Peak learning rate when all weights are tuned
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
    """Generator of the embedded data set (data=demo)."""

    num_examples: int = number(least=2, most=20000)  # Examples of the embedded data set
    seed: int = number(least=0)  # Seed of its generator
    low_fraction: float | None = number(
        above=0, below=1
    )  # Fraction of rows of the group `low`; null: none, but families with noise


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
    """Several data sets in one (data=medalpaca)."""

    sources: dict[str, Source]  # (internal) by name
    leave_out: list[str]  # Names of sources to leave out
    total: int | None  # (internal) examples that the paper names

    @property
    def taken(self) -> dict[str, Source]:
        """The sources that are not left out."""
        return {name: source for name, source in self.sources.items() if name not in self.leave_out}


@dataclass(kw_only=True)
class Replacement:
    """Responses that replace those of the data set (data=alpaca_quality, Table 4)."""

    hub_id: str | None  # Hub id of the responses that replace others
    revision: str | None  # Commit of the hub id; null: the newest, which is remembered under root
    split: str | None  # Split of the hub data set, or of a local folder
    path: str | None = path_field()  # Local file or folder instead of the hub id
    fraction: float = number(above=0, most=1)  # Fraction of the instructions whose responses are replaced


@dataclass(kw_only=True)
class Select:
    """Which examples to train on; choose data/select= (Table 7)."""

    by: str = one_of("longest", "scores", "ids", "random")  # How examples are chosen; set by data/select=
    k: int | None = number(least=2)  # Number of examples
    at_least: float | None  # Lowest score
    path: str | None = path_field()  # File of the scores or ids
    seed: int | None = number(least=0)  # Seed of a random choice


@dataclass(kw_only=True)
class Columns:
    """Names of columns, as in data.columns={instruction: question, output: answer}."""

    instruction: str | None  # Column of the source that holds `instruction`, if its name differs
    input: str | None  # Column of the source that holds `input`, if its name differs
    output: str | None  # Column of the source that holds `output`, if its name differs
    prompt: str | None  # Column of the source that holds `prompt`, if its name differs
    completion: str | None  # Column of the source that holds `completion`, if its name differs
    system: str | None  # Column of the source that holds `system`, if its name differs
    messages: str | None  # Column of the source that holds `messages`, if its name differs
    conversations: str | None  # Column of the source that holds `conversations`, if its name differs
    group: str | None  # Column of the source that holds `group`, if its name differs


@dataclass(kw_only=True)
class Data:
    """The data set, and how it becomes text."""

    name: str = checked(lambda n: re.fullmatch(r"[^/\0]*[^/\0.][^/\0]*", n) is not None, "a name without / for folders")
    hub_id: str | None  # Data set of the hub, OWNER/NAME
    revision: str | None  # Commit of the hub id; null: the newest, which is remembered under root
    split: str | None  # Split of the hub data set, or of a local folder; null: a folder has only one
    path: str | None = path_field()  # Local file or folder instead of the hub id
    demo: Demo | None
    mixture: Mixture | None
    replacement: Replacement | None
    schema: str | None = one_of(*SCHEMAS)  # Schema of the rows; null: found from the first rows
    columns: Columns
    groups: list[str] | None  # Keep only the examples of these groups
    select: Select | None
    num_workers: int | None = number(least=1)  # Processes that tokenize; null: one for each core
    template: str = path_field()  # Name of a shipped template, tokenizer (its own), or a .jinja file
    max_seq_len: int = number(least=8)  # Longest example, prompt and response, in tokens
    overlong: str = one_of("drop", "truncate", "error")  # What happens to examples that are longer
    epochs: int = number(least=1)  # Passes over the training examples
    num_checkpoints: int = number(least=1)  # C: checkpoints of the reference that score
    val_fraction: float = number(least=0, below=1)  # Fraction of the source rows that is held out
    limit: int | None = number(least=1)  # Read only the first rows
    max_row_mib: float = number(above=0)  # Largest row in MiB, uncompressed; larger rows are dropped

    @property
    def max_row_bytes(self) -> int:
        """Size of the largest row that is read, in bytes."""
        return max(1, int(self.max_row_mib * 2**20))


@dataclass(kw_only=True)
class Ntp:
    """The next-token prediction term of the loss."""

    weight: float = number(least=0)  # Weight of next-token prediction in the loss
    on: str = one_of("all", "confident", "unconfident")  # Examples that next-token prediction learns from
    prompt_weight: float = number(least=0)  # Weight of the prompt tokens in the loss; 0: responses only


@dataclass(kw_only=True)
class Mixup:
    """The Mixup term of the loss (recipe=sftmix)."""

    mu: float = number(least=0)  # Weight of the Mixup term in the loss
    alpha: float = number(above=0)  # Mixing ratio lambda ~ Beta(alpha, alpha)
    normalize_by: str = one_of(
        "tokens", "mixed_tokens"
    )  # Divide the Mixup sum by all response tokens or by the mixed ones
    pairing: str = one_of("random", "rank", "length")  # Which confident example is paired with which unconfident one


@dataclass(kw_only=True)
class Recipe:
    """The terms of the loss, and the examples of an optimizer step."""

    name: str
    global_batch_size: int = number(least=1)  # Examples of an optimizer step over all processes
    length_window: int = number(least=1)  # Sort by length within so many steps; 1: off
    neftune_alpha: float | None = number(above=0)  # Noise of size alpha / sqrt(L d) on the embeddings; null: none
    ntp: Ntp
    mixup: Mixup | None


@dataclass(kw_only=True)
class Optimizer:
    """AdamW."""

    lr: float = number(above=0)  # Peak learning rate; follows model.lr
    weight_decay: float = number(least=0)  # Weight decay, not on norms and biases
    betas: list[float] = checked(
        lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers in [0, 1)"
    )  # Betas of AdamW
    max_grad_norm: float = number(above=0)  # Norm at which gradients are clipped


@dataclass(kw_only=True)
class Scheduler:
    """Learning rate of each optimizer step."""

    name: str = one_of("cosine", "linear", "constant")  # Course after the warm-up; set by scheduler=
    warmup_ratio: float = number(least=0, below=1)  # Fraction of the optimizer steps in which the learning rate rises
    min_lr_ratio: float = number(least=0, most=1)  # The learning rate ends at this fraction of the peak


@dataclass(kw_only=True)
class Reference:
    """The reference: the model that scores the examples."""

    model: Model
    seed: int = number(least=0, most=MAX_SEED)  # Seed of the reference
    num_checkpoints: int = number(least=1)  # C: checkpoints that score
    keep_checkpoints: bool  # Keep the checkpoints after they were scored


@dataclass(kw_only=True)
class Confidence:
    """The scores that split the examples."""

    checkpoints: list[str] | None = path_field(
        holds=lambda c: len(c) > 0, expected="at least one folder"
    )  # Folders of models to score with; no reference is tuned
    path: str | None = path_field()  # A confidence.parquet; nothing is scored
    use: Any = checked(
        lambda u: all(_is_count(k) for k in u) and len(set(u)) == len(u) > 0 if isinstance(u, list) else _is_count(u),
        "a number of checkpoints (the last k) or a list of different checkpoints counted from 1",
    )  # Checkpoints that count: the last k, or a list from 1; null: all
    batch_tokens: int = number(least=1)  # Tokens of a scoring batch, padding included


BATCHES = "a number of batches, or a fraction up to 1"


def _is_limit(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, float) and 0 < value <= 1)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(kw_only=True)
class Split:
    """How the examples are split into confident and unconfident ones."""

    by: str = one_of("confidence", "random", "length", "group")  # What splits the examples into two halves
    seed: int = number(least=0, most=MAX_SEED)  # Seed of by=random; follows seed
    confident: str | None  # Group that is the confident half under by=group


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
    precision: str = one_of("auto", "32-true", "bf16-mixed")  # Precision of the computation
    layout: str = one_of("auto", "padded", "grouped", "packed")  # Layout of a micro-batch
    micro_batch_tokens: int = number(least=1)  # Tokens of one forward and backward pass; lower it if memory is short
    loss: str = one_of("fused", "dense")  # Implementation of the loss; dense: the equations of the paper as written
    attention: str = one_of("auto", "sdpa", "eager", "flash_attention_2")  # Implementation of attention
    compile: bool  # Compile the blocks of the model
    activation_checkpointing: str = one_of("none", "full")  # full: less memory, more time
    accumulate_whole: bool  # FSDP: keep whole gradients until the last micro-batch of a step
    save_every_n_steps: int = number(least=1)  # Optimizer steps between two training states
    keep: int = number(least=1)  # Training states that are kept
    stop_signal: str = checked(
        lambda name: name in STOP_SIGNALS, f"one of {', '.join(STOP_SIGNALS)}"
    )  # Signal that saves and stops, beside SIGTERM
    log_every_n_steps: int = number(least=1)  # Optimizer steps between two logged losses
    progress_bar: bool  # Show a progress bar
    overfit_batches: Any = checked(
        lambda n: n == 0 or _is_limit(n), BATCHES
    )  # Batches of an epoch, the same in every epoch; 0: off (debug=overfit)
    limit_train_batches: Any = checked(lambda n: _is_limit(n), BATCHES)  # Training batches of an epoch; null: all
    limit_val_batches: Any = checked(lambda n: _is_limit(n), BATCHES)  # Validation batches; null: all
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


@dataclass(kw_only=True)
class Slurm:
    """Request for each SLURM job (sweep=slurm)."""

    partition: str | None  # Partition
    account: str | None  # Account
    qos: str | None  # Quality of service
    hours: float = number(above=0)  # Time limit of a job, in hours; a job goes on in the next one
    cpus_per_gpu: int = number(least=1)  # CPU cores for each GPU
    mem_gb: float | None = number(above=0)  # Memory of a job, in GB; null: the cluster's default
    more: dict[str, str] | None  # Further options of sbatch: {constraint: h100}


@dataclass(kw_only=True)
class Sweep:
    """How the runs of a sweep are started. Nothing here changes what is learned."""

    launcher: str = one_of("local", "slurm")  # Set by sweep=local or sweep=slurm
    jobs: int | None = number(least=1)  # Runs at a time on this machine; null: one for each group of GPUs
    gpus_per_job: int | None = number(least=1)  # GPUs of each run; null: all
    slurm: Slurm | None


@dataclass(kw_only=True)
class Config:
    """The whole configuration."""

    mode: str = one_of(
        "train", "confidence", "list", "certify"
    )  # train; confidence: the first two stages; list: what exists; certify: the invariance check
    seed: int = number(least=0, most=MAX_SEED)  # Seed of the target
    root: str = path_field(always=True)  # Folder of everything that is written
    model: Model
    data: Data
    recipe: Recipe
    optimizer: Optimizer
    scheduler: Scheduler
    reference: Reference
    confidence: Confidence
    split: Split
    trainer: Trainer
    callbacks: dict[str, Any]  # Lightning callbacks of the target; choose callbacks=
    logger: dict[str, Any]  # Lightning loggers beside metrics.csv; choose logger=
    sweep: Sweep

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


def is_baseline(content: Mapping[str, Any]) -> bool:
    """Return whether a run is the NTP baseline: only next-token prediction of all responses, with weight 1.

    A baseline has no Mixup, noise, loss on prompts, or callback that can change what is learned.

    Args:
        content: The config of a run as in `run.json`, or the fields of its manifest.
    """
    recipe = content.get("recipe") or {}
    ntp = recipe.get("ntp") or {}
    return (
        ntp.get("weight") == 1
        and ntp.get("on") == "all"
        and not ntp.get("prompt_weight")
        and recipe.get("mixup") is None
        and recipe.get("neftune_alpha") is None
        and not result_changing(content.get("callbacks") or {})
    )


def from_dict(values: Mapping[str, Any]) -> Config:
    """A checked configuration that was written out by `to_dict`, as it was."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), literal(dict(values))))
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
    """A part of the configuration as plain containers."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
