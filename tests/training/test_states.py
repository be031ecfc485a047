"""Training states: a run resumes to the same bits, on any number of ranks. Damaged states are not used."""

import errno
import json
import re
import shutil
from functools import cache
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from forked import run_ranks
from modules import FIELDS, TOTAL, close, fit, fit_ranks, same, small_data, small_module, states_in, weights_and_moments
from sftmix.artifacts.manifest import read_json
from sftmix.distributed import checkpoint_io
from sftmix.distributed.checkpoint_io import CheckpointFolderIO
from sftmix.distributed.process_group import barrier
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError, Stopped
from sftmix.training import states as states_module

RANK = "rank-00000.safetensors"


def train(folder, *callbacks, states=None, **arguments):
    """Train one process to the end, from a state if there is one. Return weights and moments."""
    module = small_module()
    states = states or states_in(folder)
    arguments = {"plugins": [CheckpointFolderIO()], "ckpt_path": states.find(), **arguments}
    trainer = fit(module, small_data(), folder.parent, states, *callbacks, **arguments)
    return weights_and_moments(module, trainer.optimizers[0])


class Interrupt(L.Callback):
    """Asks for a stop at a step."""

    def __init__(self, step, stop):
        self.step, self.stop = step, stop

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1:
            self.stop.asked = True


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption, and all its states."""
    folder = tmp_path_factory.mktemp("whole") / "states"
    return folder, train(folder, states=states_in(folder, keep=TOTAL))


def test_states_are_saved_by_the_clock(tmp_path, monkeypatch):
    """Each look at the clock takes half an hour, and there is one look for each step."""
    half_hours = iter(range(10**6))
    monkeypatch.setattr(states_module, "time", SimpleNamespace(monotonic=lambda: 1800 * next(half_hours)))
    states = states_in(tmp_path / "states", every=None, minutes=80, keep=TOTAL)
    train(tmp_path / "states", states=states)
    assert [int(folder.name[5:]) for folder in sorted((tmp_path / "states").iterdir())] == [3, 6, 9]


def test_large_states_are_written_in_several_files(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_io, "FILE_BYTES", 2000)
    stop = StopRequest()
    with pytest.raises(Stopped):
        train(tmp_path / "states", Interrupt(2, stop), states=states_in(tmp_path / "states", every=100, stop=stop))
    files = {file.name for file in (tmp_path / "states/step-00000002").glob("*.safetensors")}
    assert {RANK, "rank-00000-1.safetensors", "rank-00000-2.safetensors"} <= files
    assert same(train(tmp_path / "states", states=states_in(tmp_path / "states", every=100)), whole[1])


def test_lightning_does_not_broadcast_its_own_stop_before_every_step(tmp_path, monkeypatch):
    """The hook exists in this version of Lightning, and a Trainer without training states calls it."""
    called = []
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", lambda loop: called.append(loop))

    def steps_with_a_broadcast(ranks):
        counts = []
        for callbacks in ([], [states_in(tmp_path / "states", ranks, every=None)]):
            called.clear()
            fit_ranks("ddp", ranks, tmp_path, *callbacks)
            counts.append(len(called))
        return counts

    assert run_ranks(2, steps_with_a_broadcast, tmp_path) == [[TOTAL, 0]] * 2


@pytest.mark.parametrize("step", range(1, TOTAL + 1))
def test_a_run_that_is_stopped_after_any_step_resumes_to_the_same_bits(whole, tmp_path, step):
    stop, said = StopRequest(), []
    with pytest.raises(Stopped, match=f"stopped after step {step} of {TOTAL}, which is saved"):
        train(tmp_path / "states", Interrupt(step, stop), states=states_in(tmp_path / "states", every=100, stop=stop))
    assert [folder.name for folder in (tmp_path / "states").iterdir()] == [f"step-{step:08d}"]
    states = states_in(tmp_path / "states", said=said, every=100)
    assert same(train(tmp_path / "states", states=states), whole[1])
    assert said in ([f"goes on after step {step} of {TOTAL}"], [] if step == TOTAL else None)


def test_held_out_results_are_those_of_a_run_without_interruption(whole, tmp_path):
    """After the last step there is no training and no validation: the state holds the results."""
    last = CheckpointFolderIO().load_checkpoint(whole[0] / f"step-{TOTAL:08d}")["held_out"]
    for step in (4, 6, TOTAL):
        module = small_module()
        states = states_in(tmp_path / str(step))
        arguments = {"plugins": [CheckpointFolderIO()], "num_sanity_val_steps": -1}
        fit(module, small_data(), tmp_path, states, ckpt_path=whole[0] / f"step-{step:08d}", **arguments)
        assert module.held_out._asdict() == last["last"]


def run_as(kind, work, folder):
    """Call `work` in this process, or on forks for a kind such as fsdp2; return what the first rank returns."""
    if kind == "single":
        return work(SINGLE, "single")
    return run_ranks(int(kind[-1]), lambda ranks: work(ranks, kind[:-1]), folder)[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that trains two steps: the folder of the state, and the weights and moments. Each kind runs once."""

    @cache
    def write(kind, lora):
        folder = tmp_path_factory.mktemp(kind)

        def work(ranks, strategy):
            states = states_in(folder / "states", ranks, every=2, keep=1)
            return fit_ranks(strategy, ranks, folder, states, lora=lora, max_steps=2)

        return folder / "states", run_as(kind, work, folder)

    return write


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("writes", ["single", "ddp2", "fsdp2", "fsdp3"])
@pytest.mark.parametrize("reads", ["single", "ddp2", "fsdp2", "fsdp3", "fsdp1"])
def test_a_state_of_any_ranks_is_read_by_any_others(written, tmp_path, writes, reads, lora):
    if lora and (writes, reads) not in (("single", "fsdp2"), ("fsdp2", "single"), ("ddp2", "fsdp3")):
        pytest.skip("LoRA is tested in three combinations")
    folder, expected = written(writes, lora)
    shutil.copytree(folder, tmp_path / "states")

    def read(ranks, strategy):
        states = states_in(tmp_path / "states", ranks, every=2)
        arguments = {"lora": lora, "max_steps": 2, "ckpt_path": states.find()}
        return fit_ranks(strategy, ranks, tmp_path, states, **arguments)

    assert same(run_as(reads, read, tmp_path), expected)


def test_a_run_resumes_under_another_strategy(tmp_path):
    """Stopped in one process after step 4, continued by two under FSDP2: the weights of an uninterrupted run."""
    expected, stop = fit_ranks("single", SINGLE, tmp_path), StopRequest()
    with pytest.raises(Stopped):
        fit_ranks("single", SINGLE, tmp_path, Interrupt(4, stop), states_in(tmp_path / "states", every=100, stop=stop))

    def read(ranks):
        states = states_in(tmp_path / "states", ranks)
        return fit_ranks("fsdp", ranks, tmp_path, states, ckpt_path=states.find())

    assert close(run_ranks(2, read, tmp_path)[0], expected)


def test_the_newest_few_are_kept(tmp_path):
    train(tmp_path / "states", states=states_in(tmp_path / "states", every=2))
    assert sorted(folder.name for folder in (tmp_path / "states").iterdir()) == ["step-00000008", "step-00000009"]


def flip(file, bit=None):
    """Flip one bit of a file, in the middle unless another one is given."""
    content = bytearray(file.read_bytes())
    place = len(content) // 2 if bit is None else bit // 8
    content[place] ^= 1 << (0 if bit is None else bit % 8)
    file.write_bytes(content)


def swap(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


DAMAGES = [
    (lambda f: (f / "complete.json").unlink(), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text('{"rank'), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text(""), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text("[]"), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text("{}"), "complete.json is damaged: its content does not match"),
    (lambda f: (f / "complete.json").write_bytes(b"\xff\xfe"), "complete.json is missing or damaged"),
    (lambda f: flip(f / "complete.json", 8 * 60), "complete.json is"),
    (lambda f: (f / RANK).unlink(), f"{RANK} is missing"),
    (lambda f: cut(f / RANK), rf"{RANK} has \d+ bytes, expected \d+"),
    (lambda f: (f / RANK).write_bytes(b""), rf"{RANK} has 0 bytes, expected \d+"),
    (lambda f: flip(f / RANK), f"{RANK} is damaged: its content does not match its checksum"),
    (lambda f: flip(f / RANK, 3), f"{RANK} is damaged: its content does not match its checksum"),
    (lambda f: flip(f / RANK, 8 * (f / RANK).stat().st_size - 1), f"{RANK} is damaged: its content"),
    (lambda f: flip(f / "content.json", 8 * 12), "content.json is damaged: its content does not match its checksum"),
    (lambda f: swap(f / RANK, f.with_name("step-00000001") / RANK), f"{RANK} is damaged: its content does not"),
    (lambda f: swap(f / RANK, f / "content.json"), "bytes, expected"),
    (lambda f: (f / "rank-00001.safetensors").write_bytes((f / RANK).read_bytes()), "rank-00001.safetensors is not"),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_state_is_reported_and_the_one_before_is_used(whole, tmp_path, number):
    damage, says = DAMAGES[number]
    for step in (1, 3, 4):
        shutil.copytree(whole[0] / f"step-{step:08d}", tmp_path / f"step-{step:08d}")
    damage(tmp_path / "step-00000004")
    said = []
    assert states_in(tmp_path, said=said).find() == tmp_path / "step-00000003"
    assert len(said) == 1
    assert "step-00000004: damaged or incomplete, not used and removed" in said[0]
    assert re.search(says, said[0]), said[0]
    assert not (tmp_path / "step-00000004").exists()


def test_a_state_under_the_name_of_another_step_is_not_used(whole, tmp_path):
    shutil.copytree(whole[0] / "step-00000003", tmp_path / "step-00000005")
    said = []
    assert states_in(tmp_path, said=said).find() is None
    assert "it is the state after step 3" in said[0]


def test_without_an_intact_state_the_first_step_is_named(whole, tmp_path):
    shutil.copytree(whole[0] / "step-00000003", tmp_path / "step-00000003")
    flip(tmp_path / "step-00000003" / RANK)
    said = []
    states = states_in(tmp_path, said=said)
    assert states.find() is None
    assert said[-1] == "no intact training state is left: training starts from the first step"
    assert states.find() is None
    assert len(said) == 2, "a run without any state prints nothing"


def test_a_flipped_bit_in_the_part_of_any_rank_is_found_by_all(tmp_path):
    def write(ranks):
        states = states_in(tmp_path / "states", ranks)
        fit_ranks("fsdp", ranks, tmp_path, states, max_steps=2)
        if ranks.rank == 1:
            flip(tmp_path / "states/step-00000002/rank-00001.safetensors")
        barrier()
        return str(states.find())

    assert run_ranks(2, write, tmp_path) == [str(tmp_path / "states/step-00000001")] * 2


def test_a_state_of_another_configuration_is_refused_with_the_field_that_differs(whole):
    other = {**FIELDS, "recipe": {"lr": 0.2, "betas": [0.9, 0.999]}}
    with pytest.raises(InputError, match=r"step-00000009: the state of another run: recipe\.lr was 0\.1 and is 0\.2"):
        states_in(whole[0], fields=other).find()


def test_a_full_disk_leaves_the_last_complete_state(tmp_path, monkeypatch):
    save_file, calls = checkpoint_io.save_file, []

    def full(tensors, file, metadata):
        calls.append(file)
        if len(calls) < 4:
            return save_file(tensors, file, metadata)
        file.write_bytes(b"cut")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_io, "save_file", full)
    says = r"step-00000004: .* cannot be written .*No space left on device\); the state after step 3 stays"
    with pytest.raises(InputError, match=says):
        train(tmp_path / "states")
    assert sorted(folder.name for folder in (tmp_path / "states").iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_disk_that_is_full_for_one_rank_is_an_error_of_all(tmp_path, strategy):
    full_rank = 0 if strategy == "ddp" else 1

    def write(ranks):
        if ranks.rank == full_rank:
            error = OSError(errno.ENOSPC, "No space left on device")
            checkpoint_io.save_file = lambda *_, **__: (_ for _ in ()).throw(error)
        try:
            fit_ranks(strategy, ranks, tmp_path, states_in(tmp_path / "states", ranks), max_steps=1)
        except InputError as error:
            return str(error)

    said = run_ranks(2, write, tmp_path)
    assert all("No space left on device); no state was saved before it" in text for text in said)


def test_the_files_hold_no_pickle(whole):
    folder = whole[0] / "step-00000003"
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
    assert read_json(folder / "content.json")["global_step"] == 3
    assert json.loads((folder / "complete.json").read_text())["files"].keys() == {RANK, "content.json"}


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                pl_module._pending[-1].losses[-1].fill_(float("nan"))

    states = states_in(tmp_path / "states")
    with pytest.raises(InputError, match=r"step 3: the norm of the gradient is nan, expected a finite number"):
        fit(
            small_module(),
            small_data(),
            tmp_path,
            Poison(),
            states,
            plugins=[CheckpointFolderIO()],
            log_every_n_steps=50,
        )
    assert sorted(folder.name for folder in (tmp_path / "states").iterdir()) == ["step-00000001", "step-00000002"]
    assert torch.isfinite(next(small_module().parameters())).all()
