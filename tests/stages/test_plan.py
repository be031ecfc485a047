"""What repeats a stage and what does not (DESIGN.md, section 2): a table of changes against fingerprints."""

import json
import shutil
from dataclasses import replace
from functools import cache
from operator import attrgetter

import pytest

from sftmix.config.fields import inert_keys
from sftmix.config.schema import Config
from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.stages import fingerprint
from sftmix.stages.inputs import check_inputs
from sftmix.stages.plan import baseline_config, is_reference, make_plan, reference_config

CPU = Device("cpu", "32-true", "grouped")


@pytest.fixture(scope="module")
def config_of(compose, small_overrides, tmp_path_factory):
    """A function that composes each config once: composing takes longer than planning, and plans change no config."""
    root = tmp_path_factory.mktemp("root")
    return cache(lambda *overrides: compose(*small_overrides, f"root={root}", *overrides))


@pytest.fixture
def fingerprints(config_of):
    def of(*overrides, device=CPU):
        plan = make_plan(config_of(*overrides), device)
        return [None if a is None else a.fingerprint for a in (plan.reference, plan.confidence, plan.target)]

    return of


def test_no_inert_key_enters_a_fingerprint(compose, small_overrides, tmp_path):
    judge = ("mode=check", "judge=gpt41", "judge.price={prompt: 2, completion: 8, date: today}")
    overrides = (*small_overrides, f"root={tmp_path}", "sweep=slurm", *judge)
    keys = [key for key in inert_keys(Config) if key not in ("root", "logger")]
    assert {"trainer.devices", "data.num_workers", "reference.keep_checkpoints", "sweep.slurm.hours"} <= set(keys)
    assert not {"trainer.precision", "trainer.limit_val_batches", "seed"} & set(keys)
    config = compose(*overrides)
    for key in keys:
        section, _, name = key.rpartition(".")
        setattr(attrgetter(section)(config) if section else config, name, "7")
    assert make_plan(config, CPU) == make_plan(compose(*overrides), CPU)


@pytest.mark.parametrize(
    ("override", "repeats"),
    [
        ("recipe.mixup.mu=0.5", "target"),
        ("recipe.mixup.alpha=1", "target"),
        ("recipe.mixup.normalize_by=mixed_tokens", "target"),
        ("recipe.ntp.on=confident", "target"),
        ("recipe.ntp.weight=0", "target"),
        ("recipe.ntp.prompt_weight=0.5", "target"),
        ("recipe.neftune_alpha=5", "target"),
        ("recipe.mixup.form=labels", "target"),
        ("recipe.ntp.label_smoothing=0.1", "target"),
        ("recipe.ntp.token_weight=dft", "target"),
        ("recipe.ntp.dro_temperature=1", "target"),
        ("optimizer.lr=0.5", "reference confidence target"),
        ("seed=1", "target"),
        ("confidence.use=1", "target"),
        ("reference.seed=1", "reference confidence target"),
        ("reference.epochs=2", "reference confidence target"),
        ("reference.epochs=1", ""),  # as the data
        ("confidence.from=base", "reference confidence target"),
        ("reference.num_checkpoints=3", "reference confidence target"),
        ("reference.model.lr=0.5", "reference confidence target"),
        ("model.lr=0.5", "reference confidence target"),
        ("model.dtype=bfloat16", "reference confidence target"),
        ("model/lora=default", "reference confidence target"),
        ("model/lora@reference.model=default", "reference confidence target"),
        ("optimizer.weight_decay=0", "reference confidence target"),
        ("scheduler=linear", "reference confidence target"),
        ("scheduler=constant", "reference confidence target"),
        ("scheduler.min_lr_ratio=0.1", "reference confidence target"),
        ("recipe.global_batch_size=8", "reference confidence target"),
        ("data.epochs=2", "reference confidence target"),
        ("data.demo.seed=1", "reference confidence target"),
        ("data.template=alpaca", "reference confidence target"),
        ("data.max_seq_len=100", "reference confidence target"),
        ("data.val_fraction=0.2", "reference confidence target"),
        ("data.limit=50", "reference confidence target"),
        ("trainer.micro_batch_tokens=100", ""),
        ("trainer.layout=packed", ""),
        ("trainer.compile=true", ""),
        ("trainer.log_every_n_steps=7", ""),
        ("trainer.profiler=simple", ""),
        ("debug=limit", "reference confidence target"),
        ("trainer.overfit_batches=2", "reference confidence target"),
        ("trainer.limit_val_batches=0.5", "reference confidence target"),
        ("confidence.batch_tokens=100", ""),
        ("logger=wandb", ""),
        ("callbacks=[checkpoint,learning_rate_monitor,mixup_diagnostics]", ""),
        ("callbacks=early_stopping", "target"),
        ("+callbacks.mine={_target_: torch.nn.Mine}", "target"),
        ("reference.keep_checkpoints=true", ""),
    ],
)
def test_a_change_repeats_the_stages_that_it_touches_and_no_other(fingerprints, override, repeats):
    before, after = fingerprints(), fingerprints(override)
    stages = ("reference", "confidence", "target")
    changed = [stage for stage, a, b in zip(stages, before, after, strict=True) if a != b]
    assert changed == repeats.split()


@pytest.mark.parametrize(
    ("override", "repeats"),
    [
        ("model.lora.r=8", "reference confidence target"),
        ("model.lora.alpha=8", "reference confidence target"),
        ("model.lora.dropout=0", "reference confidence target"),
        ("model.lora.target_modules=[q_proj]", "reference confidence target"),
        ("model.lora.lr_factor=5", "reference confidence target"),
        ("model/lora@reference.model=none", "reference confidence target"),
        ("recipe.mixup.mu=0.5", "target"),
    ],
)
def test_a_change_of_adapters_repeats_what_it_touches(fingerprints, override, repeats):
    before, after = fingerprints("model/lora=default"), fingerprints("model/lora=default", override)
    changed = [s for s, a, b in zip(("reference", "confidence", "target"), before, after, strict=True) if a != b]
    assert changed == repeats.split()


def test_an_untuned_model_scores_whatever_the_adapters_and_the_seed_of_a_reference(fingerprints, config_of):
    base = ("confidence.from=base",)
    plain = fingerprints(*base)
    assert plain[0] is None
    for same in ("model/lora=default", "reference.seed=1", "optimizer.lr=0.5", "data.epochs=2", "model.dtype=bfloat16"):
        assert fingerprints(*base, same)[1] == plain[1]
    assert fingerprints(*base, "model@reference.model=tiny_weak")[1] != plain[1]
    plan = make_plan(config_of(*base), CPU)
    assert (plan.tunes_reference, plan.reads_reference, plan.scores_base) == (False, True, True)


def test_a_shorter_reference_is_not_the_baseline(config_of):
    config = config_of("reference.epochs=2", "data.epochs=3")
    plan = make_plan(config, CPU)
    assert plan.reference.fingerprint != plan.baseline.fingerprint
    assert plan.reference.fields["data"]["epochs"] == 2
    assert reference_config(config).data.epochs == 2
    assert make_plan(config_of("data.epochs=2"), CPU).reference.fingerprint == plan.reference.fingerprint
    assert not is_reference(replace(baseline_config(config)))


def test_the_first_epoch_splits_without_a_reference_or_scores(config_of):
    own = ("confidence.from=first_epoch", "data.epochs=2")
    plan, windowed = (make_plan(config_of(*own, *more), CPU) for more in ((), ("confidence.window=64",)))
    assert (plan.reference, plan.confidence, plan.reads_reference) == (None, None, False)
    assert plan.target.fields["confidence"] == "first_epoch"
    assert plan.target.fields["window"] == 128
    assert windowed.target.fingerprint != plan.target.fingerprint
    assert make_plan(config_of(*own, "confidence.window=128"), CPU).target.fingerprint == plan.target.fingerprint


def test_adapters_of_the_target_alone_leave_the_reference(fingerprints):
    none = "model/lora@reference.model=none"
    assert fingerprints("model/lora=default", none)[:2] == fingerprints()[:2]
    assert fingerprints("model/lora=default", none, "model.lora.r=8")[:2] == fingerprints()[:2]
    names = [fingerprints("model/lora=default", f"model.lora.target_modules=[{n}]") for n in ("a,b", "b,a")]
    assert names[0] == names[1], "their order says nothing"


@pytest.mark.parametrize("by", [(), ("recipe=ntp",), ("split.by=random",), ("recipe=neftune",)])
def test_another_schedule_is_another_run(fingerprints, monkeypatch, by):
    before = fingerprints(*by)
    monkeypatch.setattr(fingerprint, "SCHEDULE", fingerprint.SCHEDULE + 1)
    assert all(a is None or a != b for a, b in zip(before, fingerprints(*by), strict=True))


@pytest.mark.parametrize("by", [(), ("recipe=ntp",), ("split.by=random",)])
def test_another_format_of_the_split_is_another_target_if_there_is_a_split(fingerprints, monkeypatch, by):
    before = fingerprints(*by)
    monkeypatch.setattr(fingerprint, "SPLIT_FORMAT", fingerprint.SPLIT_FORMAT + 1)
    after = fingerprints(*by)
    assert (before[:-1], before[-1] == after[-1]) == (after[:-1], by == ("recipe=ntp",))


def test_another_precision_is_another_run(fingerprints):
    before, after = fingerprints(), fingerprints(device=Device("gpu", "bf16-mixed", "packed"))
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert fingerprints(device=Device("gpu", "32-true", "packed")) == before


@pytest.mark.parametrize("other", ["split.by=random", "split.by=length", "recipe.mixup.pairing=length"])
def test_what_is_new_enters_a_fingerprint_only_where_it_is_in_use(compose, tmp_path, other):
    @cache
    def fields(*overrides):
        return make_plan(compose(*overrides, f"root={tmp_path}"), CPU).target.fields

    default, changed = fields(), fields(other)
    assert "split" not in default
    assert list(default["recipe"]["mixup"]) == ["mu", "alpha", "normalize_by"]
    assert list(default["data"]["source"]["demo"]) == ["num_examples", "seed"]
    assert ("split" in changed, "confidence" in changed) == ("split" in other, "split" not in other)
    assert ("pairing" in changed["recipe"]["mixup"]) == ("pairing" in other)
    assert fields("data=demo_quality")["data"]["source"]["demo"]["low_fraction"] == 0.5


def test_without_confidence_no_reference_is_planned_and_the_title_says_the_split(compose, tmp_path):
    @cache
    def plan(*overrides):
        return make_plan(compose(*overrides, f"root={tmp_path}"), CPU)

    group = ("split.by=group", "split.confident=rule/copying")
    titles = ["sftmix-random-tiny-demo-mu0.2-seed0", "sftmix-length-tiny-demo-mu0.2-seed0"]
    plans = [plan("split.by=random"), plan("split.by=length"), plan(*group)]
    assert [p.target.title for p in plans] == [*titles, "sftmix-group-tiny-demo-mu0.2-seed0"]
    assert all((p.reference, p.confidence) == (None, None) for p in plans)
    assert all(p.baseline.fingerprint == plan().baseline.fingerprint for p in plans)
    marks = [plan("split.by=random", "split.seed=1"), plan("split.by=group", "split.confident=x"), *plans, plan()]
    assert len({p.target.fingerprint for p in marks}) == 6
    half = plan("recipe=ntp", "recipe.ntp.on=confident", "split.by=random").target
    assert half.title == "ntp-random-tiny-demo-seed0"


def test_the_ntp_run_is_the_reference_of_the_same_seed(fingerprints):
    batch = "recipe.global_batch_size=16"
    assert fingerprints("recipe=ntp", batch)[2] == fingerprints()[0]
    assert fingerprints("recipe=ntp", batch, "seed=1")[2] != fingerprints()[0]
    assert fingerprints("recipe=ntp", batch, "seed=1")[2] == fingerprints("reference.seed=1")[0]


@pytest.fixture
def planned(config_of):
    return lambda *overrides: make_plan(config_of(*overrides), CPU)


def test_what_is_not_in_use_is_in_no_fingerprint(planned):
    """So that runs of before these settings are found again."""
    for recipe in ("ntp", "sftmix"):
        plan = planned(f"recipe={recipe}")
        for artifact in (plan.reference, plan.target, plan.baseline):
            if artifact is not None:
                terms = artifact.fields["recipe"]
                assert terms["ntp"] == {"weight": 1.0, "on": "all"}
                assert "neftune_alpha" not in terms


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["recipe=neftune"], "neftune-tiny-demo-noise5-seed0"),
        (["recipe=neftune", "recipe.neftune_alpha=10", "seed=1"], "neftune-tiny-demo-noise10-seed1"),
        (["recipe=instruction_modelling"], "instruction_modelling-tiny-demo-prompt1-seed0"),
        (
            ["recipe=instruction_modelling", "recipe.neftune_alpha=5"],
            "instruction_modelling-tiny-demo-noise5-prompt1-seed0",
        ),
        (["recipe.neftune_alpha=5"], "sftmix-tiny-demo-mu0.2-noise5-seed0"),
        (["recipe=eaft", "recipe.ntp.token_weight=dft"], "eaft-tiny-demo-dft-seed0"),
        (["recipe=dft"], "dft-tiny-demo-seed0"),
        (["recipe=eaft", "recipe.ntp.token_weight_power=2"], "eaft-tiny-demo-token_weight_power2-seed0"),
        (
            [
                "recipe=ir_dro",
                "recipe.ntp.label_smoothing=0.1",
                "recipe.ntp.dro_losses=previous_epoch",
                "data.epochs=2",
            ],
            "ir_dro-tiny-demo-label_smoothing0.1-dro_temperature1-previous_epoch-seed0",
        ),
        (["recipe.mixup.form=reweight"], "sftmix-tiny-demo-mu0.2-reweight-seed0"),
        (["recipe=neftune", "recipe.ntp.on=confident"], "neftune-tiny-demo-noise5-seed0"),
    ],
)
def test_a_related_recipe_is_an_artifact_of_its_own_beside_the_ntp_baseline(planned, overrides, title):
    plan, seeds = planned(*overrides), [o for o in overrides if o.startswith(("seed", "data."))]
    assert plan.target.title == title
    assert plan.baseline == planned("recipe=ntp", *seeds).target
    assert plan.target.fingerprint != plan.baseline.fingerprint
    if plan.reference is not None:
        assert plan.reference == planned().reference
        assert plan.confidence == planned().confidence


def test_a_local_file_counts_by_its_bytes(compose, small_overrides, tmp_path):
    def data_fingerprint(path):
        overrides = ("data.demo=null", f"data.path={path}", f"root={tmp_path}")
        return make_plan(compose(*small_overrides, *overrides), CPU).target.fingerprint

    first, copy = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps([{"instruction": "A", "output": "B"}]))
    shutil.copy(first, copy)
    assert data_fingerprint(first) == data_fingerprint(copy)
    copy.write_text(json.dumps([{"instruction": "A", "output": "C"}]))
    assert data_fingerprint(first) != data_fingerprint(copy)


def test_a_template_counts_by_its_text(compose, small_overrides, tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    overrides = (*small_overrides, f"data.template={template}", f"root={tmp_path}")
    before = make_plan(compose(*overrides), CPU).target.fingerprint
    template.write_text("{{ messages }}.")
    assert make_plan(compose(*overrides), CPU).target.fingerprint != before


@pytest.mark.parametrize("file", ["good.jsonl", "good.jsonl.gz", "good.CSV.GZ", "good"])
def test_a_data_set_is_called_by_its_file_without_endings(compose, file):
    assert compose("data=own", f"data.path=/x/{file}").data.title == "good"


def test_unnamed_data_and_models_are_called_by_their_hub_id_or_folder(compose):
    assert compose("data=own", "data.hub_id=lab/set-1.5", "data.split=train").data.title == "set-1.5"
    assert compose("model=local", "model.path=/x/tuned-1.5/").model.title == "tuned-1.5"


def test_the_name_of_a_yaml_of_ones_own_names_the_folders(conf, tmp_path):
    import hydra

    from sftmix.config.load import from_hydra
    from sftmix.stages.plan import examples_artifact

    own = tmp_path / "conf" / "data"
    own.mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "A", "output": "B"}))
    for name, base, named in (("mymed", "own", "name: mymed"), ("mine", "alpaca", "name: mine"), ("plain", "own", "")):
        (own / f"{name}.yaml").write_text(f"defaults: [{base}, _self_]\n{named}\npath: {tmp_path / 'rows.jsonl'}\n")

    def config(choice):
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            overrides = [f"hydra.searchpath=[file://{own.parent}]", f"data={choice}", f"root={tmp_path}"]
            return from_hydra(hydra.compose("config", overrides))

    for choice, name in (("mymed", "mymed"), ("mine", "mine"), ("plain", "rows")):
        plan = make_plan(config(choice), CPU)
        assert plan.target.folder.name.startswith(f"sftmix-tiny-{name}-mu0.2-seed0-")
        assert plan.reference.folder.name.startswith(f"ntp-tiny-{name}-seed0-")
        assert plan.confidence.folder.name.startswith(f"confidence-tiny-{name}-seed0-")
        assert examples_artifact(config(choice)).folder.name.startswith(f"examples-{name}-")
    (own / "bad.yaml").write_text(f"defaults: [own, _self_]\nname: my/med\npath: {tmp_path / 'rows.jsonl'}\n")
    with pytest.raises(InputError, match=r"data\.name=my/med: expected a name without / for folders"):
        config("bad")


def test_a_root_that_cannot_be_written_is_told(compose, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"root=.*file/runs: cannot be written"):
        check_inputs(compose(f"root={tmp_path / 'file/runs'}"))
