"""Settings that are each allowed and cannot take effect together: an error, never ignored."""

import re

from sftmix.config.entries import MIXUP_DIAGNOSTICS, TARGET
from sftmix.config.schema import HEADS, TARGETS, Config, Data, Lora, Mixture, Model, Recipe, Scheduler, Select, Trainer
from sftmix.errors import ConfigError
from sftmix.hub import looks_local


def check_together(config: Config) -> None:
    """Settings that are each allowed and cannot take effect together."""
    _check_recipe(config.recipe)
    _check_scheduler(config.scheduler)
    _check_data(config.data)
    for key, model in (("model", config.model), ("reference.model", config.reference.model)):
        _check_model(key, model)
    _check_split(config)
    _check_confidence(config)
    _check_trainer(config.trainer)
    _check_sweep(config)
    _check_mode(config)
    _check_callbacks(config)


def _check_recipe(recipe: Recipe) -> None:
    if recipe.ntp.weight == 0 and recipe.mixup is None:
        raise ConfigError(f"recipe.ntp.weight=0: recipe {recipe.name} has no Mixup, so nothing would be learnt")
    if recipe.ntp.weight == 0 and recipe.ntp.on != "all":
        raise ConfigError(f"recipe.ntp.on={recipe.ntp.on}: with recipe.ntp.weight=0 it cannot take effect")
    if recipe.ntp.weight == 0 and recipe.ntp.prompt_weight > 0:
        raise ConfigError(
            f"recipe.ntp.prompt_weight={recipe.ntp.prompt_weight}: with recipe.ntp.weight=0 it cannot take effect"
        )
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
    if recipe.mixup is not None and recipe.name in ("ntp", "neftune", "instruction_modelling"):
        raise ConfigError(f"recipe.mixup: recipe {recipe.name} has no Mixup")
    _check_names(recipe)


def _check_scheduler(scheduler: Scheduler) -> None:
    if scheduler.name == "constant" and scheduler.min_lr_ratio != 0:
        raise ConfigError(f"scheduler.min_lr_ratio={scheduler.min_lr_ratio}: scheduler=constant ends at the peak")


def _check_callbacks(config: Config) -> None:
    for name, entry in config.callbacks.items():
        if entry[TARGET] == MIXUP_DIAGNOSTICS:
            every = entry.get("every_n_steps", 1)
            if not isinstance(every, int) or every < 1:
                raise ConfigError(f"callbacks.{name}.every_n_steps={every}: expected an integer of at least 1")
            if config.recipe.mixup is None:
                raise ConfigError(f"callbacks.{name}: it measures Mixup, and the recipe has no Mixup term")


def _check_names(recipe: Recipe) -> None:
    """No run is mistaken for another by its recipe's name: ntp is the baseline, and it alone."""
    noise, prompts = recipe.neftune_alpha, recipe.ntp.prompt_weight
    if recipe.name == "ntp" and noise is not None:
        raise ConfigError(f"recipe.neftune_alpha={noise}: recipe ntp is the baseline, without noise: recipe=neftune")
    if recipe.name == "ntp" and prompts > 0:
        raise ConfigError(
            f"recipe.ntp.prompt_weight={prompts}: recipe ntp is the baseline, with loss on responses alone: "
            f"recipe=instruction_modelling"
        )
    if recipe.name == "neftune" and noise is None:
        raise ConfigError("recipe.neftune_alpha=null: recipe neftune without noise is recipe=ntp")
    if recipe.name == "instruction_modelling" and prompts == 0:
        raise ConfigError(
            "recipe.ntp.prompt_weight=0: recipe instruction_modelling without loss on prompts is recipe=ntp"
        )


def _check_mode(config: Config) -> None:
    if config.mode == "confidence" and (not config.needs_confidence or config.confidence.path is not None):
        why = f"recipe {config.recipe.name} needs no confidence"
        if config.needs_split:
            why = f"split.by={config.split.by}" if config.confidence.path is None else "confidence.path has it"
        raise ConfigError(f"mode=confidence: nothing is scored, {why}")


def _check_trainer(trainer: Trainer) -> None:
    if trainer.num_nodes > 1 and trainer.rdzv_endpoint is None:
        raise ConfigError(
            "trainer.rdzv_endpoint has no value: several nodes meet at host:port, a free port of the first node"
        )
    if trainer.num_nodes == 1 and trainer.rdzv_endpoint is not None:
        raise ConfigError(f"trainer.rdzv_endpoint={trainer.rdzv_endpoint}: with trainer.num_nodes=1 nobody meets there")
    if trainer.node_rank >= trainer.num_nodes:
        raise ConfigError(f"trainer.node_rank={trainer.node_rank}: there are {trainer.num_nodes} nodes, counted from 0")
    if trainer.overfit_batches and trainer.limit_train_batches is not None:
        raise ConfigError("trainer.limit_train_batches: with trainer.overfit_batches it cannot take effect")
    if trainer.strategy == "single" and (trainer.num_nodes > 1 or (trainer.devices or 1) > 1):
        raise ConfigError("trainer.strategy=single: it is one process, choose trainer=ddp or trainer=fsdp for several")


def _check_sweep(config: Config) -> None:
    sweep = config.sweep
    if (sweep.launcher == "slurm") != (sweep.slurm is not None):
        raise ConfigError(f"sweep.launcher={sweep.launcher}: choose sweep=local or sweep=slurm")
    for option, value in ((sweep.slurm and sweep.slurm.more) or {}).items():
        if option == "export" and re.search(r"(?i)(key|token|secret|password)\w*=", value):
            raise ConfigError(
                "sweep.slurm.more.export: it sets a key, which the sweep would write to its files; set the variable in "
                "the environment of this command, which SLURM passes on to its jobs"
            )
    if sweep.launcher == "slurm" and sweep.jobs is not None:
        raise ConfigError(f"sweep.jobs={sweep.jobs}: SLURM's own queue decides how many run at a time")
    if sweep.gpus_per_job is not None and config.trainer.accelerator == "cpu" and sweep.launcher == "local":
        raise ConfigError(f"sweep.gpus_per_job={sweep.gpus_per_job}: trainer.accelerator=cpu takes no GPU")


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
    if data.replacement is not None:
        if data.replacement.path is None and data.replacement.hub_id is None:
            raise ConfigError("data.replacement.path has no value: set it or data.replacement.hub_id")
        if data.replacement.path is None:
            _check_commit("data.replacement", data.replacement.hub_id, data.replacement.revision)
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


def _check_split(config: Config) -> None:
    split, recipe = config.split, config.recipe
    if split.by != "confidence" and not config.needs_split:
        raise ConfigError(f"split.by={split.by}: recipe {recipe.name} on all examples needs no split")
    if split.by == "group" and split.confident is None:
        raise ConfigError("split.confident has no value: split.by=group needs the group that plays the confident part")
    if split.by != "group" and split.confident is not None:
        raise ConfigError(f"split.confident={split.confident}: split.by={split.by} reads no groups, set split.by=group")
    if split.by != "random" and split.seed != config.seed:
        raise ConfigError(f"split.seed={split.seed}: split.by={split.by} draws nothing")
    if recipe.mixup is not None and recipe.mixup.pairing == "rank" and split.by != "confidence":
        raise ConfigError(f"recipe.mixup.pairing=rank: split.by={split.by} has no confidence to rank by")


def _check_confidence(config: Config) -> None:
    conf, recipe = config.confidence, config.recipe
    unscored = f"split.by={config.split.by}" if config.needs_split else f"recipe {recipe.name}"
    if config.reference.model != config.model and (not config.needs_confidence or conf.checkpoints or conf.path):
        why = "with confidence.checkpoints or confidence.path" if config.needs_confidence else f"under {unscored}"
        raise ConfigError(f"reference.model={config.reference.model.name}: no reference is tuned {why}")
    if conf.checkpoints is not None and conf.path is not None:
        raise ConfigError("confidence.path: with confidence.checkpoints it cannot take effect, give one of them")
    if not config.needs_confidence:
        for key in ("checkpoints", "path", "use"):
            if getattr(conf, key) is not None:
                raise ConfigError(f"confidence.{key}={getattr(conf, key)}: {unscored} needs no confidence")
    elif conf.path is None and conf.use is not None:
        num = len(conf.checkpoints) if conf.checkpoints else config.reference.num_checkpoints
        if (max(conf.use) if isinstance(conf.use, list) else conf.use) > num:
            raise ConfigError(f"confidence.use={conf.use}: there are {num} checkpoints")
