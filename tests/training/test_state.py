"""Saved states: bitwise, complete or not there, readable by any number of ranks."""

import errno
import json
import re
import shutil

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from forked import run_ranks
from sftmix.distributed.process_group import barrier
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.sharding import replicate, shard_over_all, whole
from sftmix.errors import InputError
from sftmix.models.language_model import SFTMixLM
from sftmix.models.tiny import tiny_llama
from sftmix.training import state
from sftmix.training.optim import adamw
from sftmix.training.state import States

FIELDS = {"data": {"sha256": "a"}, "recipe": {"lr": 0.1, "betas": [0.9, 0.999]}}
SHAPE = {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 64}  # 400 rows: uneven over 3


def made(tokenizer, strategy="single", seed=0, ranks=SINGLE):
    lm = SFTMixLM(tiny_llama(tokenizer, **SHAPE, seed=seed))
    if strategy == "fsdp":
        shard_over_all(lm, torch.device("cpu"), bfloat16=False)
    if strategy == "ddp":
        replicate(lm, torch.device("cpu"))
    return lm, adamw(lm, lr=0.1, weight_decay=0.1, betas=(0.9, 0.999))


def take_steps(lm, optimizer, number, first=0):
    """Steps whose gradients are a function of the step alone, the same on every number of ranks."""
    for step in range(first, first + number):
        for parameter in lm.parameters():
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            if hasattr(parameter, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                drawn = distribute_tensor(drawn, parameter.device_mesh, parameter.placements)
            parameter.grad = drawn
        optimizer.step()


def everything(lm, optimizer):
    """Weights and moments, whole."""
    found = {name: whole(p.detach()).clone() for name, p in lm.named_parameters()}
    for name, p in lm.named_parameters():
        for key, value in optimizer.state[p].items():
            found[f"{key} of {name}"] = whole(value.detach() if isinstance(value, torch.Tensor) else value).clone()
    return found


def same(got, expected):
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.fixture
def saved(tiny_tokenizer, tmp_path):
    """A state of one process after three steps, and what it holds after five."""
    lm, optimizer = made(tiny_tokenizer)
    states = States(tmp_path / "states", SINGLE, 2, FIELDS)
    take_steps(lm, optimizer, 3)
    states.save(3, lm, optimizer, {"seconds": 1.5, "val_loss_before": None})
    take_steps(lm, optimizer, 2, first=3)
    return states, everything(lm, optimizer)


def test_a_state_goes_on_to_the_same_bits(saved, tiny_tokenizer):
    states, expected = saved
    lm, optimizer = made(tiny_tokenizer, seed=1)
    found = states.find(print)
    assert states.load(found, lm, optimizer) == (3, {"seconds": 1.5, "val_loss_before": None})
    take_steps(lm, optimizer, 2, first=3)
    assert same(everything(lm, optimizer), expected)


@pytest.mark.parametrize("writes", ["single", "ddp2", "fsdp2", "fsdp3"])
@pytest.mark.parametrize("reads", ["single", "ddp2", "fsdp2", "fsdp3", "fsdp1"])
def test_a_state_of_any_ranks_is_read_by_any_others(tiny_tokenizer, tmp_path, writes, reads):
    def run(kind, work):
        if kind == "single":
            return work(SINGLE, "single")
        return run_ranks(int(kind[-1]), lambda ranks: work(ranks, kind[:-1]), tmp_path)[0]

    def write(ranks, strategy):
        lm, optimizer = made(tiny_tokenizer, strategy)
        take_steps(lm, optimizer, 2)
        States(tmp_path / "states", ranks, 2, FIELDS).save(2, lm, optimizer, {})
        return everything(lm, optimizer)

    def read(ranks, strategy):
        lm, optimizer = made(tiny_tokenizer, strategy, seed=1)
        states = States(tmp_path / "states", ranks, 2, FIELDS)
        assert states.load(states.find(print), lm, optimizer)[0] == 2
        return everything(lm, optimizer)

    expected = run(writes, write)
    assert same(run(reads, read), expected)


def test_the_newest_few_are_kept(tiny_tokenizer, tmp_path):
    lm, optimizer = made(tiny_tokenizer)
    states = States(tmp_path, SINGLE, 2, FIELDS)
    for step in (1, 2, 3, 10):
        take_steps(lm, optimizer, 1, first=step)
        states.save(step, lm, optimizer, {})
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def flip(file, bit=None):
    """Flip one bit of a file, in the middle unless another is named."""
    content = bytearray(file.read_bytes())
    place = len(content) // 2 if bit is None else bit // 8
    content[place] ^= 1 << (0 if bit is None else bit % 8)
    file.write_bytes(content)


def swap(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


RANK = "rank-00000.safetensors"


DAMAGES = [
    (lambda f: (f / "complete.json").unlink(), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text('{"rank'), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text(""), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text("[]"), "complete.json is missing or damaged"),
    (lambda f: (f / "complete.json").write_text("{}"), "complete.json is damaged: its content does not match"),
    (lambda f: (f / "complete.json").write_bytes(b"\xff\xfe"), "complete.json is missing or damaged"),
    (lambda f: flip(f / "complete.json", 8 * 60), "complete.json is"),
    (lambda f: (f / RANK).unlink(), f"{RANK} is missing"),
    (lambda f: _cut(f / RANK), rf"{RANK} has \d+ bytes, expected \d+"),
    (lambda f: (f / RANK).write_bytes(b""), rf"{RANK} has 0 bytes, expected \d+"),
    (lambda f: flip(f / RANK), f"{RANK} is damaged: its content does not match its checksum"),
    (lambda f: flip(f / RANK, 3), f"{RANK} is damaged: its content does not match its checksum"),
    (lambda f: flip(f / RANK, 8 * (f / RANK).stat().st_size - 1), f"{RANK} is damaged: its content"),
    (lambda f: flip(f / "saved.json", 8 * 12), "saved.json is damaged: its content does not match its checksum"),
    (lambda f: swap(f / RANK, f.with_name("step-00000003") / RANK), f"{RANK} is damaged: its content does not"),
    (lambda f: swap(f / RANK, f / "saved.json"), "bytes, expected"),
    (lambda f: (f / "rank-00001.safetensors").write_bytes((f / RANK).read_bytes()), "rank-00001.safetensors is not"),
]


def test_a_damaged_state_is_reported_and_the_one_before_is_used(saved, tiny_tokenizer, tmp_path):
    states, expected = saved
    lm, optimizer = made(tiny_tokenizer)
    take_steps(lm, optimizer, 4)
    states.save(4, lm, optimizer, {})
    shutil.copytree(states.folder / "step-00000003", tmp_path / "intact")
    for number, (damage, says) in enumerate(DAMAGES):
        folder = tmp_path / str(number)
        shutil.copytree(states.folder, folder)
        damage(folder / "step-00000004")
        shutil.rmtree(folder / "step-00000003")  # a swap has damaged it too
        shutil.copytree(tmp_path / "intact", folder / "step-00000003")
        said = []
        found = States(folder, SINGLE, 2, FIELDS).find(said.append)
        assert found == folder / "step-00000003"
        assert len(said) == 1
        assert "step-00000004: damaged or incomplete, not used and removed" in said[0]
        assert re.search(says, said[0]), said[0]
        assert not (folder / "step-00000004").exists()
    states.load(found, lm, optimizer)
    take_steps(lm, optimizer, 2, first=3)
    assert same(everything(lm, optimizer), expected)


def test_a_state_under_the_name_of_another_step_is_not_used(saved):
    states, _ = saved
    (states.folder / "step-00000003").rename(states.folder / "step-00000005")
    said = []
    assert states.find(said.append) is None
    assert "saved.json is of step 3" in said[0]


def test_without_an_intact_state_the_first_step_is_named(saved):
    states, _ = saved
    flip(states.folder / "step-00000003" / RANK)
    said = []
    assert states.find(said.append) is None
    assert said[-1] == "no intact training state is left: training starts from the first step"
    assert states.find(said.append) is None
    assert len(said) == 2, "a run without any state prints nothing"


def test_a_state_of_an_earlier_version_has_sizes_only_and_is_used(saved):
    states, _ = saved
    folder = states.folder / "step-00000003"
    sizes = {name: (folder / name).stat().st_size for name in (RANK, "saved.json")}
    (folder / "complete.json").write_text(json.dumps(sizes))
    assert states.find(print) == folder
    (folder / "complete.json").write_text(json.dumps({**sizes, RANK: sizes[RANK] + 1}))
    assert states.find(print) is None


def test_a_flipped_bit_in_the_part_of_any_rank_is_found_by_all(tiny_tokenizer, tmp_path):
    def write(ranks):
        lm, optimizer = made(tiny_tokenizer, "fsdp")
        states = States(tmp_path / "states", ranks, 2, FIELDS)
        for step in (1, 2):
            take_steps(lm, optimizer, 1, first=step)
            states.save(step, lm, optimizer, {})
        if ranks.rank == 1:
            flip(tmp_path / "states/step-00000002/rank-00001.safetensors")
        barrier()
        return str(states.find(lambda _: None))

    assert run_ranks(2, write, tmp_path) == [str(tmp_path / "states/step-00000001")] * 2


def _cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def test_a_state_of_another_configuration_is_refused_with_the_field_that_differs(saved):
    states, _ = saved
    other = States(states.folder, SINGLE, 2, {**FIELDS, "recipe": {"lr": 0.2, "betas": [0.9, 0.999]}})
    with pytest.raises(InputError, match=r"step-00000003: the state of another run: recipe\.lr was 0\.1 and is 0\.2"):
        other.find(print)


def test_a_full_disk_leaves_the_last_complete_state(saved, tiny_tokenizer, monkeypatch):
    states, _ = saved
    lm, optimizer = made(tiny_tokenizer)
    take_steps(lm, optimizer, 4)

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(InputError, match=r"step-00000004: .* No space left on device\); the state after step 3 stays"):
        states.save(4, lm, optimizer, {})
    assert states.find(print) == states.folder / "step-00000003"
    assert [folder.name for folder in states.folder.iterdir()] == ["step-00000003"], "nothing half-written"


def test_a_disk_that_is_full_for_one_rank_is_told_by_all(tiny_tokenizer, tmp_path):
    def write(ranks):
        lm, optimizer = made(tiny_tokenizer, "fsdp")
        take_steps(lm, optimizer, 1)
        if ranks.rank == 1:
            state.save_file = lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        try:
            States(tmp_path / "states", ranks, 2, FIELDS).save(1, lm, optimizer, {})
        except InputError as error:
            return str(error)

    said = run_ranks(2, write, tmp_path)
    assert all("No space left on device); no state was saved before it" in text for text in said)


def test_the_files_hold_no_pickle(saved):
    states, _ = saved
    folder = states.find(print)
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "saved.json").read_text())["step"] == 3


def test_frozen_parameters_are_not_in_a_state(tmp_path):
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    optimizer = AdamW([model.weight])
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    States(tmp_path, SINGLE, 1, FIELDS).save(1, model, optimizer, {})
    from safetensors import safe_open

    with safe_open(tmp_path / "step-00000001/rank-00000.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["exp_avg/weight", "exp_avg_sq/weight", "weight/weight"]
