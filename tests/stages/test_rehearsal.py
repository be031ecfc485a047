"""mode=check finds what would fail, names it in one line, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from paths import ROOT
from sftmix.errors import ConfigError, StageError, Stopped
from sftmix.stages.rehearsal import rehearsal_config, rehearse


def contents(*folders):
    """Return every file under folders, with its size."""
    return {path: path.lstat().st_size for folder in folders for path in folder.rglob("*") if not path.is_dir()}


def test_a_run_without_faults_passes(check):
    assert check("data.demo.num_examples=40") == {}


@pytest.mark.parametrize(
    ("overrides", "title", "says"),
    [
        (["data=own", "data.path=nowhere.json"], "files", "data.path=nowhere.json: no such file or folder"),
        (["model=local", "model.path=nowhere", "model.lr=1"], "files", "model.path=nowhere: no such folder"),
        (["trainer=gpu"], "device", "trainer.accelerator=gpu: no CUDA device is visible, expected at least one"),
        (["trainer.devices=4096", "trainer=ddp"], "device", "trainer.devices=4096: there are "),
        (["data.max_seq_len=8", "data.demo.num_examples=40"], "data", "0 examples to train on, expected at least 2"),
    ],
)
def test_a_fault_is_named(check, overrides, title, says):
    failed = check(*overrides)
    assert list(failed) == [title]
    assert says in failed[title][0]


def test_every_fault_of_the_files_is_named_at_once(check, tmp_path):
    failed = check(
        *("data=own", "data.path=nowhere.json", "data.template=nowhere.jinja", "model=local", "model.path=nowhere"),
        *("model.lr=1", f"confidence.checkpoints=[{tmp_path / 'first'},{tmp_path / 'second'}]"),
    )
    assert [text.partition(":")[0] for text in failed["files"]] == [
        "data.path=nowhere.json",
        "data.template=nowhere.jinja",
        "model.path=nowhere",
        f"confidence.checkpoints={tmp_path / 'first'}",
        f"confidence.checkpoints={tmp_path / 'second'}",
    ]


@pytest.fixture
def gated_hub(monkeypatch, tmp_path):
    """A hub that has every model, and lets nobody read them: its client reads the answers of such a server."""
    transport = sys.modules[type(huggingface_hub.get_session()).__mro__[-2].__module__.partition(".")[0]]

    def answer(request):
        if request.url.path.endswith("/auth-check"):
            return transport.Response(403, headers={"X-Error-Code": "GatedRepo"}, request=request)
        return transport.Response(200, json={"id": "a/b", "sha": "0" * 40}, request=request)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    huggingface_hub.set_client_factory(lambda: transport.Client(transport=transport.MockTransport(answer)))
    yield
    huggingface_hub.set_client_factory(lambda: transport.Client())


def test_a_license_that_was_not_accepted_is_found(check, gated_hub, tmp_path, shared):
    data = shared / "data/alpaca/alpaca_data.json"
    failed = check("model=llama", "data=alpaca", f"data.path={data}", "data.limit=60")
    assert failed == {
        "hub": [
            "model meta-llama/Llama-3.1-8B: could not be read from the hub (it is gated, and no account that has "
            "accepted its license is logged in); accept the license on "
            "https://huggingface.co/meta-llama/Llama-3.1-8B, log in with `hf auth login`, or give a local copy with "
            "model=local model.path=..."
        ]
    }
    assert not (tmp_path / "cache").exists()


def test_a_judge_without_its_key_is_found(check, checked, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert check("data.demo.num_examples=40", "judge=gpt41") == {
        "judge": [
            "judge gpt-4.1-2025-04-14: the environment variable OPENAI_API_KEY is not set, expected a key "
            "(export OPENAI_API_KEY=...)"
        ]
    }
    monkeypatch.setenv("OPENAI_API_KEY", "not a real one")
    text = checked("data.demo.num_examples=40", "judge=gpt41")[-1].text
    assert "the key in OPENAI_API_KEY is set; no request was sent" in text
    assert "real" not in text


def test_only_a_check_reads_the_judge(compose):
    with pytest.raises(ConfigError, match=r"^judge=fake: only mode=check reads it"):
        compose("judge=fake")


def test_a_stage_that_fails_is_one_line(check):
    def out_of_memory(_):
        raise StageError("rank 0 of 1 failed first:\ntorch.OutOfMemoryError: CUDA out of memory")

    failed = check("data.demo.num_examples=40", stages=out_of_memory)
    assert failed == {"stages": ["rank 0 of 1 failed first: torch.OutOfMemoryError: CUDA out of memory"]}


def test_the_longest_examples_are_rehearsed_with_few_steps(compose, tmp_path):
    short = rehearsal_config(compose("data.epochs=3", "recipe.global_batch_size=8"), 500, tmp_path)
    assert (short.data.select.by, short.data.select.k) == ("longest", 16)
    assert (short.data.epochs, short.trainer.limit_train_batches, short.root) == (1, 2, str(tmp_path))
    by_length = rehearsal_config(compose("split.by=length"), 500, tmp_path)
    assert by_length.data.select is None, "a selection could leave a subset empty"


SMALL = ("data.demo.num_examples=60", "model.init.hidden_size=32", "model.init.vocab_size=400", "recipe=ntp")


def test_a_batch_that_is_too_large_for_the_memory_is_one_line_with_what_helps(check, monkeypatch, tmp_path):
    from transformers import LlamaModel

    real = LlamaModel.forward

    def run_out(self, input_ids, **options):
        if input_ids.numel() > 100:  # a micro-batch, and not a probe
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return real(self, input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", run_out)
    failed = check(*SMALL, stages=None)
    assert list(failed) == ["stages"]
    (text,) = failed["stages"]
    assert text.startswith("out of memory: a step of tiny does not fit the memory (")
    assert "what helps, in this order: a lower trainer.micro_batch_tokens, " in text
    assert {path.name for path in (tmp_path / "runs").iterdir()} <= {"data", ".hashes.json"}


@pytest.mark.parametrize("overrides", [("data=own", "data.path=nowhere.json"), ("data.max_seq_len=8", *SMALL)])
def test_a_failed_check_leaves_prepared_data_only(check, tmp_path, monkeypatch, overrides):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert check(*overrides)
    left = contents(tmp_path).keys() - before.keys()
    assert all(file.is_relative_to(tmp_path / "runs/data") for file in left)
    assert (tmp_path / "runs").exists() == bool(left)


def test_a_sweep_is_not_rehearsed(compose, tmp_path):
    from sftmix.sweep.sweep import run_sweep

    with pytest.raises(ConfigError, match=r"^mode=check: it is for one run, not for a sweep"):
        run_sweep("sweep", [], [("seed=0",)], lambda _: compose("mode=check", f"root={tmp_path / 'runs'}"))


LOGGERS = """
from pathlib import Path
from lightning.pytorch.loggers.logger import DummyLogger


class Lines(DummyLogger):
    def __init__(self, save_dir):
        super().__init__()
        self.folder = Path(save_dir)

    def log_metrics(self, metrics, step=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lines.txt").open("a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")
"""


@pytest.fixture
def own_logger(tmp_path, monkeypatch):
    """A logger of the user, `own.Lines`, which writes what it receives into `save_dir`."""
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/own.py").write_text(LOGGERS)
    monkeypatch.syspath_prepend(tmp_path / "classes")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("own", None)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The root, the current folder, the folder of temporary files and the folders that the config names."""
    for name in ("here", "temporary", "given"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return [tmp_path / name for name in ("runs", "here", "temporary", "given")]


def prepared(root):
    """Return what a rehearsal may leave: prepared data, and the hashes of files that were read."""
    return {file for file in contents(root) if file.is_relative_to(root / "data") or file.name == ".hashes.json"}


def test_all_stages_are_rehearsed_with_the_loggers_and_nothing_is_left(checked, own_logger, places):
    root, given = places[0], places[-1]
    own = ["+logger.own._target_=own.Lines", f"+logger.own.save_dir={given / 'lines'}"]
    own += [
        "callbacks=checkpoint",
        f"callbacks.checkpoint.dirpath={given / 'best'}",
        "callbacks.checkpoint.monitor=null",
    ]
    results = checked(*SMALL, *own, stages=None)
    assert [result for result in results if not result.is_passed] == []
    (stages,) = [result.text for result in results if result.title == "stages"]
    assert stages == "2 steps of each stage, stopped, continued and exported; own received metrics"
    assert contents(*places).keys() == prepared(root) != set()
    assert list(given.iterdir()) == []


@pytest.mark.parametrize("in_step", [True, False])
def test_an_interrupted_rehearsal_leaves_nothing(check, places, monkeypatch, in_step):
    from transformers import LlamaModel

    real, came = LlamaModel.forward, []

    def interrupted(self, input_ids, **options):
        if input_ids.numel() > 100 and torch.is_grad_enabled() == in_step and not came:
            came.append(True)
            signal.raise_signal(signal.SIGINT)
        return real(self, input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", interrupted)
    with pytest.raises(Stopped if in_step else KeyboardInterrupt):
        check(*SMALL, stages=None)
    assert contents(*places).keys() == prepared(places[0]) != set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [[], ["recipe=ntp", "model/lora=default"], ["trainer=ddp", "trainer.devices=2"], ["logger=wandb"]],
)
def test_every_kind_of_run_is_rehearsed_and_nothing_is_left(compose, places, overrides):
    results = rehearse(compose(f"root={places[0]}", "mode=check", "data.demo.num_examples=200", *overrides))
    assert [result.title for result in results if not result.is_passed] == []
    (stages,) = [result.text for result in results if result.title == "stages"]
    assert stages.startswith("2 steps of each stage, stopped, continued and exported")
    assert ("wandb received metrics" in stages) == ("logger=wandb" in overrides)
    if "logger=wandb" in overrides:  # wandb removes its temporary folder when the process ends
        places.pop(2)
    assert contents(*places).keys() == prepared(places[0])


@pytest.mark.slow
def test_the_program_prints_a_table_and_its_exit_code_counts_faults(tmp_path):
    def run(*overrides):
        command = [sys.executable, ROOT / "train.py", "mode=check", "root=runs", *overrides]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"}
        )

    good, bad = run(), run("data=own", "data.path=nowhere.json", "judge=gpt41")
    assert (good.returncode, bad.returncode) == (0, 1)
    assert "\x1b" not in good.stdout + bad.stdout
    assert all(line.startswith(("ok     ", "remark ")) for line in good.stdout.splitlines())
    lines = bad.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAILED")][:-1] == [
        "FAILED files     data.path=nowhere.json: no such file or folder",
        "FAILED judge     judge gpt-4.1-2025-04-14: the environment variable OPENAI_API_KEY is not set, expected a key "
        "(export OPENAI_API_KEY=...)",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_rehearsal_of_what_reads_the_losses_of_an_epoch_has_a_second_one(compose, tmp_path):
    for overrides, epochs in (
        (["confidence.from=first_epoch", "reference.num_checkpoints=3"], 2),
        (["recipe=ir_dro", "recipe.ntp.dro_losses=previous_epoch"], 2),
        (["recipe=ir_dro"], 1),
    ):
        assert rehearsal_config(compose(*overrides), 100, tmp_path).data.epochs == epochs
