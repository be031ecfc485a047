"""The page of mode=plan."""

import re
from pathlib import Path

import pytest

from sftmix.errors import InputError
from sftmix.sweep.sweep import run_sweep

LLAMA = ("model=llama", "data=alpaca", "trainer.devices=8")


@pytest.fixture
def page(compose, capsys, monkeypatch, tmp_path):
    """A function that prints the plan of runs, each a list of overrides, where no hub can be reached."""

    def unreachable(*_, **__):
        raise InputError("model: could not be read from the hub (no network); check the network")

    monkeypatch.setattr("sftmix.stages.inputs.check_on_hub", unreachable)
    monkeypatch.setattr("sftmix.stages.memory_choice.config_file", lambda *_: None)

    def printed(*runs, common=()):
        common = (*common, "mode=plan", f"root={tmp_path}", "trainer.progress_bar=false")
        assert run_sweep("sweep", common, runs or [()], lambda overrides: compose(*overrides)) == 0
        return capsys.readouterr().out

    return printed


def test_a_run_that_cannot_be_counted_has_upper_bounds_and_says_so(page, tmp_path):
    out = page(common=LLAMA)
    assert "device      8 GPUs, FSDP2, precision bf16-mixed; H100 SXM with 79.1 GiB (plan.gpu=h100)" in out
    assert "llama: 8,030,261,248 parameters" in out
    assert "data        alpaca: not counted, model: could not be read from the hub (no network)\n" in out
    assert "upper bounds instead: about 51,482 examples by its page, each of data.max_seq_len=512 tokens" in out
    assert re.search(r"\n  reference +4,827 +<79\.1M +1 x <2,048 +11\.2 +29\.\d +0\.\d\d +\d\.\d\d\n", out)
    assert "time        at most " in out
    assert out.count("fits in 79.1 GiB") == 3
    assert re.search(
        r"memory      scoring by llama on alpaca: fits .*\n +weights 3\.7; instants with it: gather 8\.5", out
    )
    assert "export 17.9" in out
    assert "settings    FSDP2: with DDP 1" in out
    assert "states      96.4 GB each for llama, written every 20 minutes: 8.0% of the time" in out
    assert "15.0 GiB when they are gathered for the export" in out
    assert not list(tmp_path.iterdir())


def test_an_unknown_number_of_examples_gives_no_hours(page):
    out = page(common=("model=llama", "data=ultrachat", "trainer.devices=8"))
    assert re.search(r"\n  target +\? +\? +1 x <8,192 +11\.2 +66\.\d +\? +\?\n", out)
    assert "time        no figure: the number of parameters or of examples is unknown" in out


def test_what_does_not_fit_names_what_makes_it_fit(page):
    out = page(common=("model=llama", "data=alpaca", "trainer=ddp", "trainer.devices=4"))
    assert "does not fit in 79.1 GiB" in out
    assert re.search(r"fits with .*trainer=fsdp trainer\.devices=4 \(\d\d\.\d GiB\)\n +or with model/lora=default", out)
    out = page(common=("model=llama", "data=alpaca", "trainer.devices=1", "model/lora=default", "plan.gpu=rtx4090"))
    assert "trainer.activation_checkpointing=full" in out


def test_small_models_are_held_by_each_gpu_and_the_plan_says_why(page):
    out = page(common=("model=gemma", "data=alpaca", "trainer.devices=8"))
    assert "device      8 GPUs, DDP, precision bf16-mixed" in out
    assert re.search(
        r"settings    DDP: \d\d\.\d GiB on each GPU for the largest possible micro-batch \(closed form", out
    )


def test_scoring_that_does_not_fit_names_what_makes_it_fit(page):
    out = page(common=("model=llama", "data=alpaca", "trainer=gpu", "plan.gpu=rtx4090", "recipe=sftmix"))
    assert re.search(
        r"scoring by llama on alpaca: does not fit .*\n.*\n +fits with trainer=fsdp trainer.devices=2", out
    )
    out = page(
        common=("model=gemma", "data=alpaca", "trainer=gpu", "plan.gpu=rtx4090", "confidence.batch_tokens=131072")
    )
    assert re.search(r"scoring by gemma .*\n.*\n +fits with confidence.batch_tokens=65536", out)


def test_a_family_that_was_not_simulated_has_no_figure(page):
    out = page(common=("model=gemma2", "data=alpaca", "trainer.devices=8"))
    assert "no figure, family gemma2 was not simulated, only llama, mistral, qwen2, gemma were" in out
    assert "disk        no figure" in out


def test_stages_that_runs_share_are_counted_once(page, small_overrides):
    runs = [("recipe=ntp",), ("recipe=sftmix",), ("recipe=sftmix", "recipe.mixup.mu=0.1")]
    out = page(*runs, common=[*small_overrides, "trainer=auto"])
    users = re.findall(r"\n  (ntp|reference|confidence|target) .*?  (\d+(?:, \d+)*)(?=\n)", out)
    assert users == [("ntp", "1, 2, 3"), ("confidence", "2, 3"), ("target", "2"), ("target", "3")]
    assert "3 runs of 4 different stages" in out


def test_a_finished_run_on_this_machine_replaces_the_assumed_speed(compose, small_run, small_overrides, capsys):
    config, _ = small_run
    common = [*small_overrides, f"root={config.root}", "mode=plan", "recipe.mixup.mu=0.7"]
    run_sweep("sweep", common, [()], lambda overrides: compose(*overrides))
    out = capsys.readouterr().out
    measured = re.search(r"speed measured in (\S+), its whole time", out)  # the newest, which may be of another test
    assert measured is not None
    assert (Path(config.root) / measured[1] / "run.json").is_file()
    assert re.search(r"\n  confidence .* 0\.?0? .*complete\n", out)
    assert "no figure, it is computed for GPUs only" in out


def test_tokens_per_second_replace_the_assumed_speed(page):
    out = page(common=(*LLAMA, "plan.tokens_per_second=1000"))
    assert "speed plan.tokens_per_second=1000" in out
    tokens = 3 * 51482 * 512
    assert re.search(rf"\n  target .* {tokens / 1000 / 3600:.1f} +{8 * tokens / 1000 / 3600:,.1f}\n", out)


def test_the_weights_of_ir_dro_take_one_more_forward_pass(page):
    """A third of the operations of training, and none if the losses were recorded."""

    def hours(*recipe):
        out = page(common=[*LLAMA, *recipe, "seed=1"])
        return float(re.search(r"\n  target .* ([\d.]+) +[\d,.]+\n", out).group(1))

    assert hours("recipe=ir_dro") / hours("recipe=ntp") == pytest.approx(4 / 3, rel=0.05)
    assert hours("recipe=ir_dro", "recipe.ntp.dro_losses=previous_epoch") == hours("recipe=ntp")


def test_kept_checkpoints_stay_on_disk(page):
    def stays(*overrides):
        return float(re.search(r"of which ([\d.]+) GB stay", page(common=[*LLAMA, *overrides])).group(1))

    assert stays("reference.keep_checkpoints=true") - stays() == pytest.approx(4 * 2 * 8.03, abs=0.2)
