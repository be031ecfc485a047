"""Every choice and every row of an ablation composes and checks; every wrong value is told in one line."""

import re
from dataclasses import fields, is_dataclass

import hydra
import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from paths import CONF
from sftmix.config.fields import inert_keys
from sftmix.config.load import RENAMED, from_hydra, keys_of, unknown_key
from sftmix.config.schema import Config, from_dict, to_dict
from sftmix.errors import ConfigError
from sftmix.reports.diff import MISSING, look_up
from sftmix.stages.plan import reference_config

OF_EVAL = ("suite", "judge", "generate")  # groups of eval.py
CHOICES = sorted(
    (group, file.stem)
    for file in CONF.rglob("*.yaml")
    if (group := str(file.parent.relative_to(CONF))) not in (".", "ablation", *OF_EVAL)
    and not file.stem.startswith("_")  # shared by the choices beside it
    and file.stem != "same"  # of the reference only
)
NEEDS = {
    "local": ["model.path=/folder"],
    "own": ["data.path=/file.jsonl"],
    "scores": ["data.select.path=/file.json", "data.select.k=9"],
    "ids": ["data.select.path=/file.json"],
}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_and_checks(compose, group, name, monkeypatch):
    if group == "logger":  # its package need not be installed
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = compose(f"{group}={name}", *(NEEDS.get(name, []) if group != "sweep" else []))
    if group == "data/select":
        by = "none" if config.data.select is None else config.data.select.by
        assert {"alpagasus": "ids"}.get(name, name) == by
    if group == "model/lora":
        assert (name == "none") == (config.model.lora is None)
    if group in ("model", "data", "recipe"):
        assert to_dict(config)[group]["name"] == (None if name in ("own", "local") else name)


def test_the_papers_settings_are_the_defaults(compose):
    """Section 4.1: AdamW, lr 2e-6, weight decay 0.1, warm-up 0.1, batch 32, alpha 0.5, mu 0.2; epochs by data set."""
    config = compose("model=llama", "data=alpaca")
    recipe = config.recipe
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.scheduler.warmup_ratio) == (2e-6, 0.1, 0.1)
    assert (config.scheduler.shape, config.scheduler.min_lr_ratio, recipe.global_batch_size) == ("cosine", 0, 32)
    assert (recipe.mixup.alpha, recipe.mixup.mu, config.reference.num_checkpoints) == (0.5, 0.2, 5)
    assert config.data.epochs == 3
    assert compose("data=ultrachat").data.epochs == 1


def test_the_reference_is_the_targets_model_unless_told_otherwise(compose):
    config = compose("model=local", "model.path=/x", "model.lr=0.5")
    assert config.reference.model == config.model
    assert config.optimizer.lr == 0.5
    config = compose("model=llama", "model@reference.model=gemma")
    assert (config.model.name, config.reference.model.path) == ("llama", "google/gemma-2b")
    config = compose("model=tiny", "model@reference.model=local", "reference.model.path=/y")
    assert (config.model.name, config.reference.model.path) == ("tiny", "/y")
    assert compose("model.init.hidden_size=16").reference.model.init.hidden_size == 16


def test_the_references_adapters_are_the_targets_unless_told_otherwise(compose):
    on, none, default = "model/lora=default", "model/lora@reference.model=none", "model/lora@reference.model=default"
    config = compose(on, "model.lora.r=8")
    assert (config.model.lora.r, config.model.lora.alpha, config.model.lora.dropout) == (8, 32, 0.05)
    assert config.reference.model == config.model
    assert compose(on, "model=llama", "model@reference.model=gemma").reference.model.lora == compose(on).model.lora
    config = compose(on, none)
    assert (config.model.lora is None, config.reference.model.lora is None) == (False, True)
    config = compose(default, "reference.model.lora.r=4")
    assert (config.model.lora, config.reference.model.lora.r) == (None, 4)
    config = compose(on, default, "reference.model.lora.target_modules=[q_proj,v_proj]")
    assert config.reference.model.lora.target_modules == ["q_proj", "v_proj"]
    assert config.model.lora.target_modules == "all-linear"


def test_the_peak_of_adapters_is_ten_times_that_of_all_weights(compose):
    on, none = "model/lora=default", "model/lora@reference.model=none"
    assert compose("model=llama", on).optimizer.lr == 2e-5
    assert compose("model=llama", on, "model.lr=1e-5", "recipe=ntp").optimizer.lr == 1e-4
    assert compose("model=llama", on, "model.lora.lr_factor=5").optimizer.lr == 1e-5
    assert compose("model=llama", on, "optimizer.lr=3e-4").optimizer.lr == 3e-4
    for overrides, lr in (
        ([on], 2e-5),
        ([on, "optimizer.lr=3e-4"], 3e-4),
        ([on, none], 2e-6),
        ([on, none, "optimizer.lr=3e-4"], 2e-6),
        (["model/lora@reference.model=default"], 2e-5),
        ([on, "model@reference.model=local", "reference.model.path=/x", "reference.model.lr=1e-5"], 1e-4),
    ):
        assert reference_config(compose("model=llama", *overrides)).optimizer.lr == lr, overrides


def test_the_papers_data_sets_have_the_papers_epochs_and_lengths(compose):
    expected = {
        "alpaca": (3, 512),
        "alpaca_gpt4": (3, 512),
        "alpaca_quality": (3, 512),
        "ultrachat": (1, 2048),
        "medalpaca": (2, 2048),
        "tulu3": (1, 2048),
    }
    for name, numbers in expected.items():
        data = compose(f"data={name}").data
        assert (data.epochs, data.max_seq_len) == numbers


def test_alpaca_high_is_the_first_row_of_alpaca_quality(compose):
    high, both = (to_dict(compose(f"data={name}").data) for name in ("alpaca_high", "alpaca_quality"))
    assert {k for k in high if high[k] != both[k]} == {"name", "groups"}


def test_demo_quality_is_the_demo_but_for_its_planted_qualities(compose):
    quality, demo = (to_dict(compose(f"data={name}").data) for name in ("demo_quality", "demo"))
    assert {k for k in quality if quality[k] != demo[k]} == {"name", "demo"}
    assert quality["demo"] == {**demo["demo"], "low_fraction": 0.5}


def test_the_seed_of_random_halves_is_the_runs_unless_told_otherwise(compose):
    assert compose("split.by=random", "seed=4").split.seed == 4
    assert compose("split.by=random", "seed=4", "split.seed=5").split.seed == 5


@pytest.mark.parametrize("by", [["random"], ["length"], ["group", "split.confident=rule/copying"]])
def test_ntp_on_one_part_goes_with_each_split(compose, by):
    config = compose("recipe=ntp", "recipe.ntp.on=confident", f"split.by={by[0]}", *by[1:])
    assert (config.needs_split, config.needs_confidence) == (True, False)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=own"], r"data\.path has no value: expected data\.path=FILE, a folder, or data\.hub_id"),
        (["data=own", "data.path=/x", "data.hub_id=a/b"], r"data\.hub_id=a/b: with data\.path it cannot take effect"),
        (["data.name=null"], r"data\.name has no value: only a file, a folder or a hub id can name the data set"),
        (["model.name=null"], r"model\.name has no value: only a folder or a hub id can name the model"),
        (["data=own", "data.hub_id=a/b"], r"data\.split has no value"),
        (["data=own", "data.hub_id=a/b", "data.split=train", "data.revision=main"], "expected its 40 hexadecimal"),
        (
            ["data=own", "data.path=/x", "data.schema=sharegpt"],
            "data.schema=sharegpt: expected one of instruction, prompt",
        ),
        (["data/select=scores", "data.select.path=/x"], r"expected one of data\.select\.k and data\.select\.at_least"),
        (["data/select=scores", "data.select.k=5"], r"data\.select\.path has no value: selecting by scores needs it"),
        (
            ["data/select=longest", "data.select.path=/x"],
            r"data\.select\.path=/x: selecting by longest does not read it",
        ),
        (["data/select=random", "data.select.k=null"], r"data\.select\.k has no value: selecting by random needs it"),
        (["data=medalpaca", "data.mixture.leave_out=[nothing]"], r"no source nothing, there are flashcards, wikidoc"),
        (["data=alpaca_quality", "data.replacement.fraction=0"], r"data\.replacement\.fraction=0\.0: expected above 0"),
        (["data=alpaca_quality", "data.replacement.hub_id=null"], r"data\.replacement\.path has no value"),
    ],
)
def test_data_settings_that_cannot_be_used_are_refused(compose, overrides, says):
    with pytest.raises(ConfigError, match=says):
        compose(*overrides)


def test_a_configuration_has_no_key(compose):
    def names(part):
        for f in fields(part):
            value = getattr(part, f.name)
            yield f.name
            if is_dataclass(value):
                yield from names(value)

    everything = compose("logger=wandb", "sweep=slurm", "model/lora=default", "data/select=random")
    secret = {n for n in names(everything) if re.search("key|token|secret|password|credential", n)}
    weights = {"token_weight", "token_weight_power"}
    assert secret == {"pad_token", "micro_batch_tokens", "batch_tokens", "tokens_per_second", "tokenizer", *weights}
    with pytest.raises(ConfigError, match=r"sweep\.slurm\.more\.export: it sets a key, .* set the variable in"):
        compose("sweep=slurm", "sweep.slurm.more={export: 'ALL,WANDB_API_KEY=abc'}")


def test_a_mixture_that_leaves_all_out_is_refused(compose):
    names = compose("data=medalpaca").data.mixture.sources
    with pytest.raises(ConfigError, match="no source is left"):
        compose("data=medalpaca", f"data.mixture.leave_out=[{','.join(names)}]")


def test_revisions_are_pinned_and_nothing_follows_the_files_precision(compose):
    for name in ("llama", "mistral", "gemma", "gemma2", "qwen"):
        model = compose(f"model={name}").model
        assert len(model.revision) == 40
        assert model.dtype == "bfloat16"
    for name in ("alpaca", "ultrachat", "tulu3"):
        assert len(compose(f"data={name}").data.revision) == 40


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["recipe.mixup.mu=abc"], "recipe.mixup.mu=abc: expected a number, at least 0"),
        (["recipe.mixup.mu=-1"], "recipe.mixup.mu=-1.0: expected at least 0"),
        (["recipe.mixup.alpha=0"], "recipe.mixup.alpha=0.0: expected above 0"),
        (["data.epochs=2.5"], "data.epochs=2.5: expected an integer, at least 1"),
        (["data.epochs=true"], "data.epochs=true: expected an integer, at least 1"),
        (["recipe.mixup.pairing=random"], "recipe.mixup.pairing=random: expected one of across, free, within, rank"),
        (["recipe.mixup.pairing=null"], "recipe.mixup.pairing=null: expected one of across, free, within, rank"),
        (["split.by=[length]"], "split.by=[length]: expected one of confidence, random, length, group"),
        (["trainer.compile=maybe"], "trainer.compile=maybe: expected true or false"),
        (["trainer.devices=two"], "trainer.devices=two: expected an integer, at least 1, or null"),
        (["optimizer.betas=[a,b]"], "optimizer.betas[0]=a: expected two numbers in [0, 1)"),
        (["split=length"], "split=length: expected a section with the keys by, seed, confident"),
        (["root=null"], "root=null: expected a text"),
        (["data.val_fraction=1"], "data.val_fraction=1.0: expected at least 0 and below 1"),
        (["data.val_seed=1", "data.val_fraction=0"], "data.val_seed=1: nothing is held out"),
        (["data/select=longest", "data.select.block=1"], "data.select.block=1: selecting by longest does not read it"),
        (["+recipe.extra=1"], "recipe.extra: no such key"),
        (["recipe.ntp.on=some"], "recipe.ntp.on=some: expected one of all, confident, unconfident"),
        (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: expected two numbers in [0, 1)"),
        (["scheduler.min_lr_ratio=2"], "scheduler.min_lr_ratio=2.0: expected at least 0 and at most 1"),
        (
            ["scheduler=constant", "scheduler.min_lr_ratio=0.1"],
            "scheduler.min_lr_ratio=0.1: scheduler=constant ends at",
        ),
        (["model=local"], "model.path has no value, set it by model.path=..."),
        (["model.path=/x"], "model.path=/x: model tiny is built here and reads no folder, choose model=local"),
        (["recipe.global_batch_size=5"], "recipe.global_batch_size=5: expected an even number"),
        (["trainer.micro_batch_tokens=0"], "trainer.micro_batch_tokens=0: expected at least 1"),
        (["trainer.rdzv_endpoint=here"], "trainer.rdzv_endpoint=here: expected host:port"),
        (["trainer.num_nodes=2"], "trainer.rdzv_endpoint has no value: several nodes need host:port"),
        (["trainer.rdzv_endpoint=a:1"], "trainer.rdzv_endpoint=a:1: it is only used with trainer.num_nodes > 1"),
        (["trainer.node_rank=1"], "trainer.node_rank=1: there are 1 nodes, counted from 0"),
        (["trainer=gpu", "trainer.devices=2"], "trainer.strategy=single: this is one process"),
        (["trainer.stop_signal=SIGKILL"], "trainer.stop_signal=SIGKILL: expected one of SIGUSR1, SIGUSR2"),
        (
            ["trainer.limit_train_batches=0"],
            "trainer.limit_train_batches=0: expected a number of batches, or a fraction",
        ),
        (["trainer.limit_val_batches=1.5"], "trainer.limit_val_batches=1.5: expected a number of batches, or a frac"),
        (["trainer.overfit_batches=-1"], "trainer.overfit_batches=-1: expected a number of batches, or a fraction"),
        (["debug=overfit", "trainer.limit_train_batches=1"], "trainer.limit_train_batches: with trainer.overfit_bat"),
        (["trainer.profiler=fast"], "trainer.profiler=fast: expected one of simple, advanced, pytorch"),
        (["trainer.keep=0"], "trainer.keep=0: expected at least 1"),
        (
            ["trainer.activation_checkpointing=some"],
            "trainer.activation_checkpointing=some: expected one of auto, none, full",
        ),
        (["trainer.layout=sorted"], "trainer.layout=sorted: expected one of auto, padded, grouped, packed"),
        (["trainer.attention=fast"], "trainer.attention=fast: expected one of auto, sdpa, eager, torch_varlen, fla"),
        (["recipe.length_window=0"], "recipe.length_window=0: expected at least 1"),
        (["data.groups=a"], "data.groups=a: expected a list: 'data.groups=[a]'"),
        (["confidence.checkpoints=/a"], "confidence.checkpoints=/a: expected a list: 'confidence.checkpoints=[/a]'"),
        (["recipe=ntp", "recipe.ntp.weight=0"], "recipe.ntp.weight=0: recipe ntp has no Mixup"),
        (["recipe.ntp.weight=0", "recipe.mixup.mu=0"], "recipe.mixup.mu=0: with recipe.ntp.weight=0 nothing"),
        (["recipe.ntp.weight=0", "recipe.ntp.on=confident"], "recipe.ntp.on=confident: with recipe.ntp.weight=0"),
        (["recipe=neftune", "recipe.neftune_alpha=0"], "recipe.neftune_alpha=0.0: expected above 0"),
        (["recipe.ntp.prompt_weight=-1"], "recipe.ntp.prompt_weight=-1.0: expected at least 0"),
        (
            ["recipe.ntp.weight=0", "recipe.ntp.prompt_weight=1"],
            "recipe.ntp.prompt_weight=1.0: with recipe.ntp.weight=0 it cannot take effect",
        ),
        (["recipe.ntp.label_smoothing=1"], "recipe.ntp.label_smoothing=1.0: expected at least 0 and below 1"),
        (["recipe.ntp.token_weight=probability"], "recipe.ntp.token_weight=probability: expected one of dft, eaft"),
        (["recipe=eaft", "recipe.ntp.token_weight_power=0"], "recipe.ntp.token_weight_power=0.0: expected above 0"),
        (["recipe.ntp.token_weight_power=2"], "recipe.ntp.token_weight_power=2.0: without recipe.ntp.token_weight it"),
        (["recipe=ir_dro", "recipe.ntp.dro_temperature=0"], "recipe.ntp.dro_temperature=0.0: expected above 0"),
        (
            ["recipe.ntp.dro_losses=previous_epoch"],
            "recipe.ntp.dro_losses=previous_epoch: without recipe.ntp.dro_temperature it cannot take effect",
        ),
        (
            ["recipe=ir_dro", "recipe.ntp.dro_losses=epoch"],
            "recipe.ntp.dro_losses=epoch: expected one of step, previous_epoch",
        ),
        (
            ["recipe=ir_dro", "recipe.ntp.dro_losses=previous_epoch", "data.epochs=1"],
            "data.epochs=1: recipe.ntp.dro_losses=previous_epoch weights from the second epoch on, expected at least 2",
        ),
        (
            ["recipe=ir_dro", "recipe.ntp.dro_losses=previous_epoch", "debug=limit"],
            "trainer.limit_train_batches=8: recipe.ntp.dro_losses=previous_epoch needs the loss of every example",
        ),
        (["recipe=ir_dro", "recipe.ntp.prompt_weight=1"], "recipe.ntp.prompt_weight=1.0: the weights of IR-DRO are of"),
        *(
            (["recipe.ntp.weight=0", f"recipe.ntp.{key}"], f"recipe.ntp.{key}: with recipe.ntp.weight=0 it cannot")
            for key in ("label_smoothing=0.1", "token_weight=dft", "dro_temperature=1.0")
        ),
        (["recipe.mixup.form=R"], "recipe.mixup.form=R: expected one of full, reweight, labels"),
        (["recipe.mixup.form=labels", "recipe.mixup.mu=0"], "recipe.mixup.form=labels: with recipe.mixup.mu=0 it"),
        (["recipe=neftune", "recipe.ntp.weight=0"], "recipe.ntp.weight=0: recipe neftune has no Mixup"),
        (["recipe=neftune", "confidence.use=1"], "confidence.use=1: recipe neftune needs no confidence"),
        (["recipe=ntp", "confidence.use=1"], "confidence.use=1: recipe ntp needs no confidence"),
        (["confidence.use=4"], "confidence.use=4: there are 3 checkpoints"),
        (["confidence.use=[0]"], "confidence.use=[0]: expected a number of checkpoints"),
        (["confidence.use=last"], "confidence.use=last: expected a number of checkpoints"),
        (["confidence.checkpoints=[]"], "confidence.checkpoints=[]: expected at least one folder"),
        (["confidence.checkpoints=[/a]", "confidence.path=/b"], "confidence.path: with confidence.checkpoints"),
        (["data.path=/x.json"], "data.path=/x.json: data demo is made here and reads nothing, choose data=alpaca"),
        (["data.hub_id=a/b"], "data.hub_id=a/b: data demo is made here"),
        (
            ["data=alpaca", "data.revision=main"],
            "data.revision=main: tatsu-lab/alpaca is read from the hub at a pinned",
        ),
        (["model=local", "model.path=a/b"], "model.revision=None: a/b is read from the hub at a pinned commit"),
        (["model=local", "model.path=/x", "model.revision=main"], "model.revision=main: a folder has none"),
        (["model.init.num_heads=3"], "model.init.num_heads=3: expected half of a divisor of hidden_size=128"),
        (["seed=4294967296"], "seed=4294967296: expected at least 0 and at most 2147483647"),
        (
            ["recipe=ntp", "model@reference.model=gemma"],
            "reference.model=gemma: no reference is tuned under recipe ntp",
        ),
        (
            ["confidence.path=/c", "model@reference.model=gemma"],
            "reference.model=gemma: no reference is tuned with conf",
        ),
        (["split.by=half"], "split.by=half: expected one of confidence, random, length, group"),
        (["split.by=random", "split.seed=-1"], "split.seed=-1: expected at least 0"),
        (["split.seed=3"], "split.seed=3: split.by=confidence draws no random numbers"),
        (["split.by=length", "split.seed=3"], "split.seed=3: split.by=length draws no random numbers"),
        (["split.by=group"], "split.confident has no value: split.by=group needs the group"),
        (["split.confident=high"], "split.confident=high: split.by=confidence reads no groups, set split.by=group"),
        (["split.by=random", "split.confident=a"], "split.confident=a: split.by=random reads no groups"),
        (["recipe=ntp", "split.by=random"], "split.by=random: recipe ntp on all examples needs no split"),
        (["confidence.from=nothing"], "confidence.from=nothing: expected one of reference, base"),
        (["confidence.from=[base]"], "confidence.from"),
        (["recipe=ntp", "confidence.from=base"], "confidence.from=base: recipe ntp needs no confidence"),
        (["split.by=random", "confidence.from=base"], "confidence.from=base: split.by=random needs no confidence"),
        (
            ["confidence.from=base", "confidence.checkpoints=[a]"],
            "confidence.checkpoints=['a']: with confidence.from=base it cannot take effect",
        ),
        (["confidence.from=base", "confidence.use=1"], "confidence.use=1: with confidence.from=base it cannot"),
        (["confidence.from=base", "confidence.path=/c"], "confidence.path=/c: with confidence.from=base it cannot"),
        (
            ["confidence.from=base", "reference.epochs=1"],
            "reference.epochs=1: no reference is tuned with confid",
        ),
        (
            ["confidence.path=/c", "reference.epochs=1"],
            "reference.epochs=1: no reference is tuned with confid",
        ),
        (["recipe=ntp", "reference.epochs=1"], "reference.epochs=1: recipe ntp tunes no reference"),
        (
            ["recipe=checkpoint_average", "reference.seed=1"],
            "reference.seed=1: recipe checkpoint_average averages checkpoints of seed=0",
        ),
        (
            ["recipe=checkpoint_average", "model/lora=default"],
            "model.lora: recipe checkpoint_average averages whole weights, and the mean of the factors of adapters",
        ),
        (
            ["recipe=checkpoint_average", "callbacks=learning_rate_monitor"],
            "callbacks.learning_rate_monitor: recipe checkpoint_average trains nothing",
        ),
        (
            ["recipe=ntp_matched_compute", "recipe.ntp.token_weight=dft"],
            "recipe.comparison=matched_compute: it compares plain next-token prediction (recipe=ntp)",
        ),
        (["recipe.comparison=sum"], "recipe.comparison=sum: expected one of checkpoint_average, matched_compute"),
        (["reference.epochs=0"], "reference.epochs=0: expected at least 1"),
        (["confidence.window=64"], "confidence.window=64: only confidence.from=first_epoch ranks within windows"),
        (["confidence.from=first_epoch", "confidence.window=1"], "confidence.window=1: expected at least 2"),
        (["confidence.from=first_epoch", "confidence.use=1"], "confidence.use=1: with confidence.from=first_epoch it"),
        (["confidence.from=first_epoch", "reference.epochs=1"], "reference.epochs=1: no reference is tuned with conf"),
        (
            ["confidence.from=first_epoch", "model@reference.model=gemma"],
            "reference.model=gemma: no reference is tuned with confidence.from=first_epoch",
        ),
        (["confidence.from=first_epoch", "data.epochs=1"], "data.epochs=1: confidence.from=first_epoch means Mixup"),
        (
            ["confidence.from=first_epoch", "recipe.ntp.on=confident"],
            "confidence.from=first_epoch: recipe.ntp.on=confident needs the subsets in the first epoch",
        ),
        (["confidence.from=first_epoch", "recipe=ntp"], "confidence.from=first_epoch: recipe ntp needs no confidence"),
        (
            ["confidence.from=first_epoch", "split.by=length"],
            "confidence.from=first_epoch: split.by=length needs no confidence",
        ),
        (["confidence.from=first_epoch", "recipe=mixup_only"], "confidence.from=first_epoch: with recipe.ntp.weight=0"),
        (["confidence.from=first_epoch", "debug=limit"], "trainer.limit_train_batches="),
        (["confidence.from=first_epoch", "debug=overfit"], "trainer.overfit_batches="),
        (["confidence.from=first_epoch", "mode=confidence"], "mode=confidence: with confidence.from=first_epoch"),
        (["split.by=random", "confidence.use=1"], "confidence.use=1: split.by=random needs no confidence"),
        (["split.by=random", "confidence.path=/c"], "confidence.path=/c: split.by=random needs no confidence"),
        (["split.by=length", "confidence.checkpoints=[/a]"], "confidence.checkpoints=['/a']: split.by=length needs no"),
        (
            ["split.by=random", "model@reference.model=gemma"],
            "reference.model=gemma: no reference is tuned under split.by=random",
        ),
        (
            ["recipe.mixup.pairing=random"],
            "recipe.mixup.pairing=random: expected one of across, free, within, rank, length",
        ),
        (
            ["recipe.mixup.pairing=free", "recipe.mixup.mu=0"],
            "recipe.mixup.pairing=free: with recipe.mixup.mu=0 it cannot take effect",
        ),
        (
            ["callbacks=mixup_diagnostics", "recipe.mixup.pairing=within"],
            "callbacks.mixup_diagnostics: it compares the subsets of partners, expected pairs across the subsets",
        ),
        (
            ["split.by=length", "recipe.mixup.pairing=rank"],
            "recipe.mixup.pairing=rank: split.by=length has no confidence to rank by",
        ),
        (["data=demo_quality", "data.demo.low_fraction=1"], "data.demo.low_fraction=1.0: expected above 0 and below 1"),
        (["data.demo=null"], "data.path has no value: expected data.path=FILE"),
        (["model/lora=default", "model.lora.r=0"], "model.lora.r=0: expected at least 1"),
        (["model/lora=default", "model.lora.alpha=0"], "model.lora.alpha=0: expected at least 1"),
        (["model/lora=default", "model.lora.dropout=1"], "model.lora.dropout=1.0: expected at least 0 and below 1"),
        (["model/lora=default", "model.lora.lr_factor=0"], "model.lora.lr_factor=0.0: expected above 0"),
        (["model/lora=default", "model.lora.lr_factor=x"], "model.lora.lr_factor=x: expected a number, above 0"),
        (["model/lora=default", "model.lr=x"], "model.lr=x: expected a number, above 0"),
        (
            ["model.lora=default"],
            "model.lora=default: expected a section with the keys r, alpha",
        ),
        (
            ["model/lora=default", "model.lora.target_modules=q_proj"],
            "model.lora.target_modules=q_proj: expected all-linear or a list of names of layers",
        ),
        (["model/lora=default", "model.lora.target_modules=null"], "model.lora.target_modules has no value: expected"),
        (
            ["model/lora=default", "model.lora.target_modules=[q_proj,lm_head]"],
            "model.lora.target_modules=[q_proj, lm_head]: lm_head is the head, which takes no adapter",
        ),
        (
            ["model/lora@reference.model=default", "reference.model.lora.target_modules=[embed_out]"],
            "reference.model.lora.target_modules=[embed_out]: embed_out is the head",
        ),
        (
            ["model/lora=default", "model/lora@reference.model=none", "recipe=ntp"],
            "reference.model=tiny: no reference is tuned under recipe ntp",
        ),
    ],
)
def test_a_wrong_value_is_told_with_key_value_and_range(compose, overrides, says):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_a_bare_on_in_a_yaml_is_told(conf):
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose("config")
    OmegaConf.set_struct(cfg, False)
    cfg.recipe.ntp = yaml.safe_load("{weight: 1.0, on: all}")
    with pytest.raises(ConfigError, match='YAML reads a bare on as true, write it in quotes: "on"'):
        from_hydra(cfg)


def test_a_renamed_key_of_a_users_own_file_is_refused_with_the_new_name(conf, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("defaults: [ntp, _self_]\nname: mine\nmax_grad_norm: 0.5\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nrecipe: {lr: 1.0e-3}\n")
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    for override, said in (
        ("recipe=mine", "recipe.max_grad_norm: this key is now optimizer.max_grad_norm"),
        ("experiment=mine", "recipe.lr: this key is now optimizer.lr"),
    ):
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            cfg = hydra.compose("config", [override, searched])
        with pytest.raises(ConfigError) as error:
            from_hydra(cfg)
        assert str(error.value) == said


def test_limits_of_batches_count_steps_as_lightning_does(compose):
    for overrides, steps in (
        ([], 10),
        (["debug=overfit"], 2),
        (["trainer.limit_train_batches=3"], 3),
        (["trainer.limit_train_batches=30"], 10),
        (["trainer.limit_train_batches=0.25"], 2),
        (["debug=profile"], 10),
    ):
        assert compose(*overrides).trainer.steps_per_epoch(10) == steps


def test_every_renamed_key_leads_to_a_key_that_exists(compose):
    composed = to_dict(compose("callbacks=mixup_diagnostics", "data=alpaca_quality"))
    for old, new in RENAMED.items():
        assert look_up(composed, old) is MISSING, old
        assert look_up(composed, new.partition(",")[0]) is not MISSING, new


def test_the_keys_of_a_group_are_known():
    assert keys_of("recipe.mixup") == ["mu", "alpha", "normalize_by", "pairing", "form"]
    assert keys_of("recipe.nothing") is None
    assert unknown_key("seed.a", "1").endswith("expected seed=VALUE, or 'seed={a: VALUE}' if it is a mapping")
    assert unknown_key("recipe.mixup.muu", "1").startswith("recipe.mixup.muu=1: no such key, did you mean mu?")


def test_a_related_recipe_is_next_token_prediction_with_one_field_changed(compose):
    ntp = to_dict(compose("recipe=ntp").recipe)
    neftune, prompts = (to_dict(compose(f"recipe={name}").recipe) for name in ("neftune", "instruction_modelling"))
    assert {k: v for k, v in neftune.items() if v != ntp[k]} == {"name": "neftune", "neftune_alpha": 5.0}
    assert {k for k in prompts if prompts[k] != ntp[k]} == {"name", "ntp"}
    assert prompts["ntp"] == {**ntp["ntp"], "prompt_weight": 1.0}
    for name, changed in (
        ("label_smoothing", {"label_smoothing": 0.02}),
        ("dft", {"token_weight": "dft"}),
        ("eaft", {"token_weight": "eaft"}),
        ("ir_dro", {"dro_temperature": 1.0}),
    ):
        other = to_dict(compose(f"recipe={name}").recipe)
        assert other == {**ntp, "name": name, "ntp": {**ntp["ntp"], **changed}}
    both = compose("recipe=sftmix", "recipe.neftune_alpha=5", "recipe.ntp.prompt_weight=0.5").recipe
    assert (both.neftune_alpha, both.ntp.prompt_weight, both.mixup.mu) == (5.0, 0.5, 0.2)


def test_the_record_of_an_earlier_version_is_read_without_the_keys_that_it_did_not_have(compose):
    record = to_dict(compose())
    del record["plan"], record["trainer"]["save_every_minutes"]
    del record["model"]["quantization"], record["reference"]["model"]["quantization"]
    for key in ("label_smoothing", "token_weight", "token_weight_power", "dro_temperature", "dro_losses"):
        del record["recipe"]["ntp"][key]
    del record["recipe"]["mixup"]["form"]
    record["recipe"]["mixup"]["pairing"] = "random"  # the earlier name of across
    config = from_dict(record)
    assert config.recipe == compose().recipe
    assert (config.trainer.save_every_minutes, config.model.quantization) == (None, None)
    del record["trainer"]["keep"]  # it cannot be null
    with pytest.raises(MissingMandatoryValue):
        from_dict(record)


def test_the_key_that_python_reserves_is_read_written_and_recorded_without_its_underscore(compose):
    config = compose("confidence.from=base")
    record = to_dict(config)
    assert config.confidence.from_ == record["confidence"]["from"] == "base"
    assert from_dict(record).confidence.from_ == "base"
    del record["confidence"]["from"]
    assert from_dict(record).confidence.from_ == "reference"
    assert "from" in keys_of("confidence")
    assert "confidence.from" not in inert_keys(Config)
