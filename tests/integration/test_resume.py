"""What ends a stage early, and that the same command goes on to the same bits."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import sealed
from sftmix.artifacts.manifest import entry_of, read_json
from sftmix.errors import InputError, Stopped
from sftmix.stages.pipeline import run_pipeline
from sftmix.training import loggers, scoring
from sftmix.training.module import SFTMixModule

NTP = ("recipe=ntp", "trainer.save_every_n_steps=2", "trainer.log_every_n_steps=2")


@pytest.fixture(scope="module")
def whole_run(compose, small_overrides, tmp_path_factory):
    """The plan of an uninterrupted NTP run."""
    return run_pipeline(compose(*small_overrides, *NTP, f"root={tmp_path_factory.mktemp('whole')}"))


def weights(plan):
    return load_file(plan.target.folder / "model/model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def ask_at(monkeypatch, step, number):
    """Send this process a signal during a training step."""
    whole = SFTMixModule.training_step

    def training_step(self, batch, batch_idx):
        if self.step == step - 1:
            os.kill(os.getpid(), number)
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(SFTMixModule, "training_step", training_step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_at_the_next_step_and_the_same_command_goes_on(
    whole_run, run, tmp_path, monkeypatch, number, capsys
):
    with monkeypatch.context() as patch:
        ask_at(patch, 3, number)
        with pytest.raises(Stopped, match="stopped after step 3 of 7, which is saved"):
            run(*NTP, root=tmp_path / "cut")
    assert signal.getsignal(number) == signal.SIG_DFL
    got = run(*NTP, root=tmp_path / "cut")
    assert "goes on after step 3 of 7" in capsys.readouterr().out
    assert same(weights(got), weights(whole_run))
    figures = [(plan.target.folder / "logs/metrics.csv").read_text().splitlines() for plan in (whole_run, got)]
    names = figures[0][0].split(",")
    timed = {k for k, name in enumerate(names) if name.startswith("perf/")}
    rows = [[",".join(v for k, v in enumerate(row.split(",")) if k not in timed) for row in rows] for rows in figures]
    assert rows[0] == rows[1], "each figure once, as if nothing had happened"
    metrics = [read_json(plan.target.folder / "metrics.json") for plan in (whole_run, got)]
    for name in ("steps", "val_loss_before", "val_loss", "train_loss_last_step"):
        assert metrics[0][name] == metrics[1][name]


def test_a_run_with_noise_and_loss_on_prompts_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    overrides = ("recipe=neftune", "recipe.ntp.prompt_weight=0.5", *NTP[1:])
    expected = run(*overrides, root=tmp_path / "whole")
    with monkeypatch.context() as patch:
        ask_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped after step 3 of 7"):
            run(*overrides, root=tmp_path / "cut")
    assert same(weights(run(*overrides, root=tmp_path / "cut")), weights(expected))
    assert not same(weights(run("recipe=instruction_modelling", "recipe.ntp.prompt_weight=0.5")), weights(expected))


def test_a_stop_in_scoring_keeps_what_was_scored(run, tmp_path, monkeypatch):
    expected = run(root=tmp_path / "whole")
    whole, calls = scoring._score_batch, []
    with monkeypatch.context() as patch:

        def asked(*arguments):
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*arguments)

        patch.setattr(scoring, "BATCHES_PER_PART", 1)
        patch.setattr(scoring, "_score_batch", asked)
        with pytest.raises(Stopped, match="stopped in confidence, checkpoint 1/2; what was scored is written"):
            run("confidence.batch_tokens=500", root=tmp_path / "cut")
        assert len(list((tmp_path / "cut").glob("confidence-*.partial/parts-01-*/part-*.parquet"))) == 2
    got = run("confidence.batch_tokens=500", root=tmp_path / "cut")
    assert got.target.folder.name == expected.target.folder.name


def test_a_run_that_is_cut_off_after_its_last_step_only_finishes(whole_run, run, tmp_path, monkeypatch, capsys):
    from sftmix.stages import train as tuning

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "warn_if_logits_differ", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(*NTP, root=tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(SFTMixModule, "training_step", lambda *_: pytest.fail("no step is left"))
        got = run(*NTP, root=tmp_path / "cut")
    assert "goes on after step 7 of 7" in capsys.readouterr().out
    assert same(weights(got), weights(whole_run))
    lines = [(plan.target.folder / "logs/metrics.csv").read_text().count("\n") for plan in (whole_run, got)]
    assert lines[0] == lines[1]
    assert read_json(got.target.folder / "metrics.json")["val_loss"] == pytest.approx(
        read_json(whole_run.target.folder / "metrics.json")["val_loss"], rel=1e-12
    )


def test_a_stop_at_the_last_step_leaves_the_export_to_the_next_command(run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        ask_at(patch, 7, signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped after step 7 of 7, which is saved") as stopped:
            run(*NTP)
    assert stopped.value.code == 75
    assert not list(tmp_path.glob("ntp-*/manifest.json"))
    run(*NTP)
    assert "goes on after step 7 of 7" in capsys.readouterr().out


def test_the_first_interrupt_saves_at_the_next_step(whole_run, run, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        ask_at(patch, 4, signal.SIGINT)
        with pytest.raises(Stopped, match="stopped after step 4 of 7, which is saved") as stopped:
            run(*NTP, "trainer.save_every_n_steps=200", root=tmp_path / "cut")
    assert stopped.value.code == 130
    assert "interrupt: saving at the next step, then ending" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(weights(run(*NTP, root=tmp_path / "cut")), weights(whole_run))
    assert "goes on after step 4 of 7" in capfd.readouterr().out


def test_the_second_interrupt_ends_a_run_within_its_step(run, tmp_path, monkeypatch):
    whole = SFTMixModule.backward_of_step

    def interrupted(self, batch):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, batch)

    monkeypatch.setattr(SFTMixModule, "backward_of_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*NTP)
    (partial,) = tmp_path.glob("ntp-*.partial")
    assert [folder.name for folder in (partial / "states").iterdir()] == ["step-00000002"]


PHASES = {
    "reading data": "sftmix.stages.prepare.example_columns",
    "tokenizing": "sftmix.stages.prepare._encode_shard",
    "finding out the devices": "sftmix.stages.plan.choose_device",
    "loading the model": "sftmix.stages.train.prepare_language_model",
    "measuring the held-out loss": "sftmix.training.module.reshard",
    "exporting": "sftmix.stages.train.load_causal_lm",
    "writing the record": "sftmix.stages.train.run_metadata",
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_outside_of_the_steps_ends_the_run_at_once(run, tmp_path, monkeypatch, phase):
    signals = [(signal.SIGTERM, Stopped)]
    if phase in ("tokenizing", "exporting"):
        signals += [(signal.SIGUSR2, Stopped), (signal.SIGINT, KeyboardInterrupt)]
    for number, error in signals:
        with monkeypatch.context() as patch:
            patch.setattr(PHASES[phase], lambda *_, number=number, **__: os.kill(os.getpid(), number))
            with pytest.raises(error) as ended:
                run(*NTP)
        if error is Stopped:
            assert (str(ended.value), ended.value.code) == (f"stopped by {number.name}", 75)
        assert not list(tmp_path.glob("ntp-*/manifest.json"))
    if phase == "exporting":
        assert run(*NTP).target.is_complete


def test_a_second_signal_does_not_disturb_the_end():
    from sftmix.distributed.stopping import StopRequest

    with StopRequest(["SIGTERM"]).listening():
        with pytest.raises(Stopped), StopRequest(["SIGTERM"]).listening():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped), StopRequest(["SIGTERM"]).listening():
        os.kill(os.getpid(), signal.SIGTERM)


def test_figures_survive_two_kills(whole_run, run, tmp_path, monkeypatch):
    """The second one hits between the reading of the figures and their being written again."""
    with monkeypatch.context() as patch:
        ask_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(*NTP, root=tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(loggers.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(*NTP, root=tmp_path / "cut")
    got = run(*NTP, root=tmp_path / "cut")
    lines = [(plan.target.folder / "logs/metrics.csv").read_text().count("\n") for plan in (whole_run, got)]
    assert lines[0] == lines[1]


def test_a_run_that_goes_on_is_the_same_run_for_weights_and_biases(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    with monkeypatch.context() as patch:
        ask_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(*NTP, "logger=wandb")
    plan = run(*NTP, "logger=wandb")
    files = sorted(plan.target.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2, "one of each process"
    assert len({file.stem for file in files}) == 1, "of one run"


def poison(monkeypatch, what, step):
    """A loss, or a gradient, that is no number."""
    whole = SFTMixModule.backward_of_step

    def backward_of_step(self, batch):
        loss = whole(self, batch)
        if self.step == step - 1:
            if what == "loss":
                self._pending[-1].losses[0].fill_(float("nan"))
            else:
                next(self.lm.parameters()).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(SFTMixModule, "backward_of_step", backward_of_step)


@pytest.mark.parametrize(("what", "says"), [("loss", "loss is nan"), ("gradient", "norm of the gradient is (inf|nan)")])
def test_a_loss_that_is_no_number_ends_the_run_with_its_step_and_examples(run, tmp_path, monkeypatch, what, says):
    """Found at step 4, where figures are read: the state that falls on step 4 is not saved."""
    poison(monkeypatch, what, step=3)
    with pytest.raises(
        InputError, match=rf"^step 3: the {says}, expected a finite number; its examples: [0-9a-f]{{16}}, "
    ):
        run(*NTP, "trainer.log_every_n_steps=4")
    (partial,) = tmp_path.glob("ntp-*.partial")
    assert [folder.name for folder in (partial / "states").iterdir()] == ["step-00000002"]


def test_a_checkpoint_of_a_step_that_went_wrong_is_not_kept(run, tmp_path, monkeypatch):
    poison(monkeypatch, "loss", step=3)
    with pytest.raises(InputError, match="step 3: the loss is nan"):
        run("trainer.log_every_n_steps=100", "trainer.save_every_n_steps=100")
    (partial,) = tmp_path.glob("ntp-*.partial")
    assert not list((partial / "checkpoints").glob("*")), "the first of two falls on step 4"


def test_a_clock_that_jumps_back_harms_nothing(whole_run, run, tmp_path, monkeypatch):
    ticks = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    with monkeypatch.context() as patch:
        ask_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(*NTP, root=tmp_path / "cut")
    assert same(weights(run(*NTP, root=tmp_path / "cut")), weights(whole_run))


def test_a_state_of_another_configuration_is_refused_with_its_field(run, tmp_path, monkeypatch, compose):
    with monkeypatch.context() as patch:
        ask_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(*NTP)
    (partial,) = tmp_path.glob("ntp-*.partial")
    state = partial / "states/step-00000003/content.json"
    state_text = state.read_text().replace('"weight_decay": 0.1', '"weight_decay": 0.2')
    state.write_text(state_text)
    files = read_json(state.with_name("complete.json"))["files"]
    write_json(state.with_name("complete.json"), sealed({"files": {**files, "content.json": entry_of(state)}}))
    with pytest.raises(InputError, match=r"another run: recipe\.weight_decay was 0\.2 and is 0\.1"):
        run(*NTP)


def test_a_root_that_cannot_be_written_is_one_line(compose, small_overrides, tmp_path, monkeypatch):
    from sftmix.stages import inputs

    def read_only(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(inputs.tempfile, "TemporaryFile", read_only)
    with pytest.raises(InputError, match=r"^root=.*: cannot be written \(Read-only file system\), expected a "):
        run_pipeline(compose(*small_overrides, f"root={tmp_path}"))


def test_states_are_gone_when_the_run_is_complete(run):
    plan = run(*NTP)

    assert not (plan.target.folder / "states").exists()
