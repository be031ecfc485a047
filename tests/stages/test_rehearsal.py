"""mode=check finds what would fail, names it in one line, and leaves nothing behind."""

import shutil

import pytest

from sftmix.errors import StageError
from sftmix.stages import rehearsal
from sftmix.stages.rehearsal import rehearsal_config, rehearse


@pytest.fixture
def check(compose, monkeypatch, tmp_path):
    """Check a run whose stages are replaced, and return the failed checks by their titles."""

    def failed(*overrides, stages=lambda _: "done"):
        monkeypatch.setattr(rehearsal, "_rehearse_stages", stages)
        config = compose(f"root={tmp_path / 'runs'}", "mode=check", *overrides)
        return {result.title: result.text for result in rehearse(config) if result.is_passed is False}

    return failed


@pytest.fixture
def stories(shared, tmp_path):
    folder = tmp_path / "stories"
    shutil.copytree(shared / "models/stories260K", folder)
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder


def local(folder, shared):
    data = shared / "data/alpaca/alpaca_data.json"
    return f"model=local model.path={folder} model.lr=1e-3 data=alpaca data.path={data} data.limit=60".split()


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
        (["model=llama", "data=alpaca"], "hub", "model meta-llama/Llama-3.1-8B: could not be read from the hub"),
    ],
)
def test_a_fault_is_named_and_what_needs_it_is_skipped(check, monkeypatch, overrides, title, says):
    monkeypatch.setattr(rehearsal, "check_hub", _no_hub if title == "hub" else lambda *_: None)
    failed = check(*overrides)
    assert list(failed) == [title]
    assert says in failed[title]


def _no_hub(config, tunes_reference):
    from sftmix.hub import unavailable

    raise unavailable("model", config.model.path, OSError("no access to a gated repository"), "model=local")


def test_a_weights_file_that_is_cut_in_half_is_found(check, stories, shared):
    (file,) = stories.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    failed = check(*local(stories, shared))
    assert "is cut off" in failed["files"]


def test_a_template_without_an_end_token_is_found(check, stories, shared, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    failed = check(*local(stories, shared), f"data.template={template}")
    assert set(failed) == {"data"}


def test_a_folder_that_cannot_be_written_is_found_with_other_faults(check, tmp_path):
    (tmp_path / "runs").write_text("a file")
    failed = check("trainer=gpu")
    assert {"folder", "device"} <= failed.keys()


def test_a_stage_that_fails_is_one_line(check):
    def out_of_memory(_):
        raise StageError("rank 0 of 1 failed first:\ntorch.OutOfMemoryError: CUDA out of memory")

    failed = check("data.demo.num_examples=40", stages=out_of_memory)
    assert failed == {"stages": "rank 0 of 1 failed first: torch.OutOfMemoryError: CUDA out of memory"}


def test_the_longest_examples_are_rehearsed_with_few_steps(compose, tmp_path):
    short = rehearsal_config(compose("data.epochs=3", "recipe.global_batch_size=8"), 500, tmp_path)
    assert (short.data.select.by, short.data.select.k) == ("longest", 16)
    assert (short.data.epochs, short.trainer.limit_train_batches, short.root) == (1, 2, str(tmp_path))
    by_length = rehearsal_config(compose("split.by=length"), 500, tmp_path)
    assert by_length.data.select is None, "a selection could leave a subset empty"


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["recipe=ntp", "model/lora=default"], ["trainer=ddp", "trainer.devices=2"]])
def test_all_stages_are_rehearsed_and_nothing_is_left(compose, tmp_path, overrides):
    root = tmp_path / "runs"
    results = rehearse(compose(f"root={root}", "mode=check", "data.demo.num_examples=200", *overrides))
    assert [result.title for result in results if not result.is_passed] == []
    assert results[-1].text.startswith("2 steps of each stage, stopped, continued and exported")
    assert {path.name for path in root.iterdir()} <= {"data", ".hashes.json"}
