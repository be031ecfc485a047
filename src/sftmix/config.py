"""Every name, type, unit and range that a YAML or the command line may use, checked at one boundary.

Dataclasses hold names, types, units and ranges; values, defaults included, stand in `conf/`.
"""

import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sftmix.data.shapes import SHAPES
from sftmix.errors import ConfigError
from sftmix.hub import looks_local

MAX_SEED = 2**31 - 1
STOP_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT")


def _number(
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
    return _checked(lambda x: above < x < below and least <= x <= most, expected)


def _one_of(*allowed: str) -> Any:
    return _checked(lambda x: x in allowed, f"one of {', '.join(allowed)}")


def _checked(holds: Callable[[Any], bool], expected: str) -> Any:
    return field(metadata={"holds": holds, "expected": expected})


@dataclass(kw_only=True)
class TinyInit:
    """How the embedded model is built."""

    seed: int = _number(least=0)
    vocab_size: int = _number(least=300)  # entries; 259 are bytes and special tokens
    hidden_size: int = _number(least=8)
    num_layers: int = _number(least=1)
    num_heads: int = _number(least=1)
    max_position_embeddings: int = _number(least=8)  # tokens


# What families call their head: its weight is read by itself, so an adapter on it would be passed by.
HEADS = ("lm_head", "embed_out", "output_embeddings", "output_layer")

TARGETS = "all-linear or a list of names of layers: [q_proj, v_proj]"


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) and name for name in value)


@dataclass(kw_only=True)
class Lora:
    """Adapters on linear layers in the place of all weights (Table 8)."""

    r: int = _number(least=1)  # rank
    alpha: int = _number(least=1)  # what the adapters add is scaled by alpha / r
    dropout: float = _number(least=0, below=1)  # of the adapters' inputs
    target_modules: Any = _checked(lambda t: t == "all-linear" or _are_names(t), TARGETS)
    lr_factor: float = _number(above=0)  # on model.lr


@dataclass(kw_only=True)
class Model:
    """A causal language model: a folder, a hub id with its commit, or one that is built here."""

    name: str
    path: str | None  # folder or hub id; None where `init` builds it
    revision: str | None  # commit of the hub id
    dtype: str = _one_of("float32", "bfloat16", "float16")  # of what is saved
    pad_token: str | None  # None: the tokenizer's own, or one made from its vocabulary
    lr: float = _number(above=0)  # peak where all weights are tuned
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


@dataclass(kw_only=True)
class Demo:
    """The embedded set's generator."""

    num_examples: int = _number(least=2, most=20000)
    seed: int = _number(least=0)


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
    split: str | None
    path: str | None  # a local file in the place of the hub id
    fraction: float = _number(above=0, most=1)  # of the instructions


@dataclass(kw_only=True)
class Select:
    """Which examples to train on (Table 7)."""

    by: str = _one_of("longest", "scores", "ids", "random")
    k: int | None = _number(least=2)  # examples
    at_least: float | None  # score
    path: str | None  # of scores or ids
    seed: int | None = _number(least=0)  # of the random part


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

    name: str
    hub_id: str | None
    revision: str | None  # commit of the hub id; None: that of today, remembered under `root`
    split: str | None
    path: str | None  # a local file or folder in the place of the hub id
    demo: Demo | None
    mixture: Mixture | None
    better: Better | None
    shape: str | None = _one_of(*SHAPES)  # None: as the first row that fits one shows
    columns: Columns
    groups: list[str] | None  # those to keep
    select: Select | None
    num_workers: int | None = _number(least=1)  # processes that tokenize; None: as many as there are cores
    template: str  # one that is shipped, tokenizer, or the path of a .jinja file
    max_seq_len: int = _number(least=8)  # tokens of prompt and response
    overlong: str = _one_of("drop", "truncate", "error")
    epochs: int = _number(least=1)
    num_checkpoints: int = _number(least=1)
    val_fraction: float = _number(least=0, below=1)  # of the source's rows
    limit: int | None = _number(least=1)  # rows


@dataclass(kw_only=True)
class Ntp:
    """Next-token prediction's part of the loss."""

    weight: float = _number(least=0)
    on: str = _one_of("all", "confident", "unconfident")


@dataclass(kw_only=True)
class Mixup:
    """The Mixup term."""

    mu: float = _number(least=0)  # its weight
    alpha: float = _number(above=0)  # lambda ~ Beta(alpha, alpha)
    normalize_by: str = _one_of("tokens", "mixed_tokens")


@dataclass(kw_only=True)
class Recipe:
    """Optimization, and the terms of the loss."""

    name: str
    global_batch_size: int = _number(least=1)  # examples per optimizer step over all ranks
    lr: float = _number(above=0)  # peak
    weight_decay: float = _number(least=0)
    betas: list[float] = _checked(lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers in [0, 1)")
    warmup_ratio: float = _number(least=0, below=1)  # fraction of the steps
    max_grad_norm: float = _number(above=0)
    length_window: int = _number(least=1)  # optimizer steps
    ntp: Ntp
    mixup: Mixup | None


@dataclass(kw_only=True)
class Reference:
    """The LLM that scores."""

    model: Model
    seed: int = _number(least=0, most=MAX_SEED)
    num_checkpoints: int = _number(least=1)  # C
    keep_checkpoints: bool  # after they were scored


@dataclass(kw_only=True)
class Confidence:
    """Whose perplexities make the confidence."""

    checkpoints: list[str] | None = _checked(lambda c: len(c) > 0, "at least one folder")
    path: str | None  # a confidence.parquet
    use: Any = _checked(
        lambda u: all(_is_count(k) for k in u) and len(set(u)) == len(u) > 0 if isinstance(u, list) else _is_count(u),
        "a number of checkpoints (the last k) or a list of different checkpoints counted from 1",
    )
    batch_tokens: int = _number(least=1)  # per batch, padding included


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(kw_only=True)
class Trainer:
    """Where it runs. Nothing here changes what is learnt, but for the precision."""

    accelerator: str = _one_of("auto", "cpu", "gpu")
    strategy: str = _one_of("auto", "single", "ddp", "fsdp")
    devices: int | None = _number(least=1)  # processes of a node; None: all visible GPUs
    num_nodes: int = _number(least=1)
    node_rank: int = _number(least=0)
    rdzv_endpoint: str | None = _checked(lambda e: re.fullmatch(r"[^:]+:\d{1,5}", e) is not None, "host:port")
    rdzv_timeout: float = _number(above=0)  # seconds
    precision: str = _one_of("auto", "32-true", "bf16-mixed")
    layout: str = _one_of("auto", "padded", "grouped", "packed")
    micro_batch_tokens: int = _number(least=1)  # of one backward
    attention: str = _one_of("auto", "sdpa", "eager", "flash_attention_2")
    compile: bool  # the blocks of the model
    activation_checkpointing: str = _one_of("none", "full")
    save_every_n_steps: int = _number(least=1)  # optimizer steps between two saved states
    keep: int = _number(least=1)  # saved states
    stop_signal: str = _checked(lambda name: name in STOP_SIGNALS, f"one of {', '.join(STOP_SIGNALS)}")
    log_every_n_steps: int = _number(least=1)
    progress_bar: bool


@dataclass(kw_only=True)
class Wandb:
    """Weights & Biases."""

    mode: str = _one_of("online", "offline", "disabled")
    project: str
    entity: str | None
    group: str | None


@dataclass(kw_only=True)
class Logger:
    """Where figures go beside metrics.csv."""

    wandb: Wandb | None


@dataclass(kw_only=True)
class Config:
    """The whole configuration."""

    mode: str = _one_of("train", "certify")
    seed: int = _number(least=0, most=MAX_SEED)
    root: str
    model: Model
    data: Data
    recipe: Recipe
    reference: Reference
    confidence: Confidence
    trainer: Trainer
    logger: Logger

    @property
    def needs_split(self) -> bool:
        """Whether the target needs confident and unconfident halves."""
        return self.recipe.mixup is not None or self.recipe.ntp.on != "all"


def from_hydra(cfg: DictConfig) -> Config:
    """The composed configuration as typed objects, every name, type and range checked.

    Raises:
        ConfigError: the key, the value it has, and what is allowed.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(Config), container)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} has no value, set it by {missing[0]}=...")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain_omegaconf(error)) from None
    assert isinstance(config, Config)
    _expand_home(config)
    for key, value, rule in _rules(config):
        if value is not None and not rule.metadata["holds"](value):
            raise ConfigError(f"{key}={value}: expected {rule.metadata['expected']}")
    _check_together(config)
    return config


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


def keys_of(dotted: str) -> list[str] | None:
    """The names allowed below a key of the configuration, or None where it is no group."""
    kind: Any = Config
    for name in dotted.split(".") if dotted else ():
        kind = next((_dataclass_of(get_type_hints(kind)[f.name]) for f in fields(kind) if f.name == name), None)
        if kind is None:
            return None
    return [f.name for f in fields(kind)]


# How a group is written whose keys are easily taken for its values.
WRITTEN = {"data.columns": "; one of these comes first: 'data.columns={instruction: COLUMN OF THE FILE}'"}


def unknown_key(dotted: str, value: str | None = None) -> str:
    """The line that says that a key does not exist, with what does beside it."""
    given = dotted if value is None else f"{dotted}={value}"
    known = dotted.split(".")
    while known and keys_of(".".join(known[:-1])) is None:
        known.pop()
    parent, name = ".".join(known[:-1]), known[-1] if known else dotted
    allowed = keys_of(parent) or []
    if name == "True" and "on" in allowed:
        return f'{parent}: YAML reads a bare on as true, write it in quotes: "on": ...'
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    written = WRITTEN.get(parent, "")
    return f"{given}: no such key, {hint}{parent or 'the configuration'} has {', '.join(allowed)}{written}"


def explain_omegaconf(error: OmegaConfBaseException) -> str:
    """An error of OmegaConf in one line: the key, the value, what is allowed."""
    key = error.full_key or ""
    first = str(error).split("\n")[0]
    if first.startswith("Key ") and "not in" in first:
        return unknown_key(key or first.split("'")[1])
    if "Missing mandatory value" in first or "missing value" in first.lower():
        name = first.rsplit("'", 2)[-2] if "'" in first else key
        wanted = name.split(".")[-1] if key.startswith("reference.model.") else None
        at = f"model.{wanted}" if wanted else key or name
        return f"{at} has no value, set it by {at}=..."
    if "is not a ListConfig" in first:
        return f"{key}={error.value}: expected a list: {shlex.quote(f'{key}=[{error.value}]')}"
    return f"{key}: {first}" if key and key not in first else first


def _check_together(config: Config) -> None:
    """Settings that are each allowed and cannot take effect together."""
    recipe, data = config.recipe, config.data
    if recipe.ntp.weight == 0 and recipe.mixup is None:
        raise ConfigError(f"recipe.ntp.weight=0: recipe {recipe.name} has no Mixup, so nothing would be learnt")
    if recipe.ntp.weight == 0 and recipe.ntp.on != "all":
        raise ConfigError(f"recipe.ntp.on={recipe.ntp.on}: with recipe.ntp.weight=0 it cannot take effect")
    if recipe.mixup is not None:
        if recipe.ntp.weight == 0 and recipe.mixup.mu == 0:
            raise ConfigError("recipe.mixup.mu=0: with recipe.ntp.weight=0 nothing would be learnt")
        if recipe.global_batch_size % 2:
            raise ConfigError(
                f"recipe.global_batch_size={recipe.global_batch_size}: expected an even number, since Mixup takes "
                f"whole pairs"
            )
    if recipe.mixup is None and recipe.name == "sftmix":
        raise ConfigError("recipe.mixup=null: recipe sftmix without Mixup is recipe=ntp")
    if recipe.mixup is not None and recipe.name == "ntp":
        raise ConfigError("recipe.mixup: recipe ntp has no Mixup")
    _check_data(data)
    for key, model in (("model", config.model), ("reference.model", config.reference.model)):
        _check_model(key, model)
    _check_confidence(config)
    _check_trainer(config.trainer)


def _check_trainer(trainer: Trainer) -> None:
    if trainer.num_nodes > 1 and trainer.rdzv_endpoint is None:
        raise ConfigError(
            "trainer.rdzv_endpoint has no value: several nodes meet at host:port, a free port of the first node"
        )
    if trainer.num_nodes == 1 and trainer.rdzv_endpoint is not None:
        raise ConfigError(f"trainer.rdzv_endpoint={trainer.rdzv_endpoint}: with trainer.num_nodes=1 nobody meets there")
    if trainer.node_rank >= trainer.num_nodes:
        raise ConfigError(f"trainer.node_rank={trainer.node_rank}: there are {trainer.num_nodes} nodes, counted from 0")
    if trainer.strategy == "single" and (trainer.num_nodes > 1 or (trainer.devices or 1) > 1):
        raise ConfigError("trainer.strategy=single: it is one process, choose trainer=ddp or trainer=fsdp for several")


def _check_data(data: Data) -> None:
    made_of = data.demo or data.mixture
    for key in ("path", "hub_id"):
        if data.demo is not None and getattr(data, key) is not None:
            raise ConfigError(
                f"data.{key}={getattr(data, key)}: data {data.name} is made here and reads nothing, choose "
                f"data=alpaca or another"
            )
    if data.path is None and data.hub_id is None and made_of is None:
        raise ConfigError(f"data.path has no value: data {data.name} needs data.path=FILE, a folder, or data.hub_id")
    if data.path is None and data.hub_id is not None:
        if data.split is None:
            raise ConfigError("data.split has no value: a data set of the hub needs one")
        _check_commit("data", data.hub_id, data.revision)
    if data.path is not None and data.hub_id is not None and data.name == "own":
        raise ConfigError(f"data.hub_id={data.hub_id}: with data.path it cannot take effect, give one of them")
    if data.mixture is not None:
        _check_mixture(data.mixture)
    if data.better is not None:
        if data.better.path is None and data.better.hub_id is None:
            raise ConfigError("data.better.path has no value: set it or data.better.hub_id")
        if data.better.path is None:
            _check_commit("data.better", data.better.hub_id, data.better.revision)
    if data.select is not None:
        _check_select(data.select)


def _check_mixture(mixture: Mixture) -> None:
    for name in mixture.leave_out:
        if name not in mixture.sources:
            raise ConfigError(f"data.mixture.leave_out: no source {name}, there are {', '.join(mixture.sources)}")
    if not mixture.taken:
        raise ConfigError("data.mixture.leave_out: no source is left")
    for name, source in mixture.sources.items():
        _check_commit(f"data.mixture.sources.{name}", source.hub_id, source.revision)
        if source.cap is not None and source.cap < 1:
            raise ConfigError(f"data.mixture.sources.{name}.cap={source.cap}: expected at least 1")


# What each selection needs; scores take one of k and at_least beside it.
SELECTIONS = {"longest": {"k"}, "scores": {"path"}, "ids": {"path"}, "random": {"k", "seed"}}


def _check_select(select: Select) -> None:
    """A selection has what it needs, and nothing that it does not read."""
    given = {key for key in ("k", "at_least", "path", "seed") if getattr(select, key) is not None}
    if select.by == "scores":
        if len(given & {"k", "at_least"}) != 1:
            raise ConfigError("data.select.by=scores: expected one of data.select.k and data.select.at_least")
        given -= {"k", "at_least"}
    for key in sorted(given - SELECTIONS[select.by]):
        raise ConfigError(f"data.select.{key}={getattr(select, key)}: selecting by {select.by} does not read it")
    for key in sorted(SELECTIONS[select.by] - given):
        raise ConfigError(f"data.select.{key} has no value: selecting by {select.by} needs it")


def _check_commit(key: str, hub_id: str | None, revision: str | None) -> None:
    """A revision of a data set is a commit, or left open."""
    if revision is not None:
        _check_pinned(key, hub_id, revision)


def _check_model(key: str, model: Model) -> None:
    if model.path is not None and model.init is not None:
        raise ConfigError(
            f"{key}.path={model.path}: model {model.name} is built here and reads no folder, choose model=local"
        )
    if model.path is None and model.init is None:
        raise ConfigError(f"{key}.path={model.path}: expected a folder or hub id")
    if model.init is not None:
        size, heads = model.init.hidden_size, model.init.num_heads
        if size % (2 * heads):
            raise ConfigError(f"{key}.init.num_heads={heads}: expected half of a divisor of hidden_size={size}")
    if model.lora is not None:
        _check_lora(f"{key}.lora", model.lora)
    if model.path is not None and looks_local(model.path):
        if model.revision is not None:
            raise ConfigError(f"{key}.revision={model.revision}: a folder has none, it counts by its files")
    elif model.path is not None:
        _check_pinned(key, model.path, model.revision)


def _check_lora(key: str, lora: Lora) -> None:
    """No adapter on the head: the loss reads its weight, and the adapter would be passed by."""
    if lora.target_modules is None:
        raise ConfigError(f"{key}.target_modules has no value: expected {TARGETS}")
    names = [] if isinstance(lora.target_modules, str) else lora.target_modules
    head = next((name for name in names if name.split(".")[-1] in HEADS), None)
    if head is not None:
        raise ConfigError(
            f"{key}.target_modules=[{', '.join(names)}]: {head} is the head, which takes no adapter; expected other "
            f"linear layers"
        )


def _check_pinned(key: str, hub_id: str | None, revision: str | None) -> None:
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        raise ConfigError(
            f"{key}.revision={revision}: {hub_id} is read from the hub at a pinned commit, expected its 40 hexadecimal "
            f"digits"
        )


def _check_confidence(config: Config) -> None:
    conf, recipe = config.confidence, config.recipe
    if config.reference.model != config.model and (not config.needs_split or conf.checkpoints or conf.path):
        why = "with confidence.checkpoints or confidence.path" if config.needs_split else f"under recipe {recipe.name}"
        raise ConfigError(f"reference.model={config.reference.model.name}: no reference is tuned {why}")
    if conf.checkpoints is not None and conf.path is not None:
        raise ConfigError("confidence.path: with confidence.checkpoints it cannot take effect, give one of them")
    if not config.needs_split:
        for key in ("checkpoints", "path", "use"):
            if getattr(conf, key) is not None:
                raise ConfigError(f"confidence.{key}={getattr(conf, key)}: recipe {recipe.name} needs no confidence")
    elif conf.path is None and conf.use is not None:
        num = len(conf.checkpoints) if conf.checkpoints else config.reference.num_checkpoints
        if (max(conf.use) if isinstance(conf.use, list) else conf.use) > num:
            raise ConfigError(f"confidence.use={conf.use}: there are {num} checkpoints")


def _expand_home(config: Config) -> None:
    """Read ~ as the home folder, wherever a path is given."""

    def expanded(path: str | None) -> Any:
        return str(Path(path).expanduser()) if path is not None and path.startswith("~") else path

    config.root, config.data.path, config.data.template = map(
        expanded, (config.root, config.data.path, config.data.template)
    )
    for part in (config.data.better, config.data.select):
        if part is not None:
            part.path = expanded(part.path)
    config.model.path, config.reference.model.path = expanded(config.model.path), expanded(config.reference.model.path)
    config.confidence.path = expanded(config.confidence.path)
    if config.confidence.checkpoints is not None:
        config.confidence.checkpoints = [expanded(folder) for folder in config.confidence.checkpoints]


def _rules(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    for f in fields(config):
        value, key = getattr(config, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from _rules(value, f"{key}.")
        elif f.metadata:
            yield key, list(value) if isinstance(value, ListConfig) else value, f


def _dataclass_of(hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((option for option in options if is_dataclass(option)), None)
