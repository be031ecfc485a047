"""Which artifacts runs share, which are made again, and what an interrupted or failed stage leaves."""

import itertools
import multiprocessing
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from paths import CONF
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.errors import InputError
from sftmix.stages import reference, target
from sftmix.stages import train as tuning
from sftmix.stages.models import load_model
from sftmix.stages.pipeline import run_pipeline


def test_the_checkpoints_are_gone_once_scored_and_the_last_is_the_model(small_run):
    _, plan = small_run
    assert not (plan.reference.folder / "checkpoints").exists()
    assert (plan.reference.folder / "model" / "model.safetensors").is_file()


def test_a_second_call_runs_nothing(copy_of_run, run, monkeypatch, capsys):
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    monkeypatch.setattr(target, "tune", None)
    assert run(root=root).target.folder.name == plan.target.folder.name
    assert capsys.readouterr().out.count("already there") == 3


def test_another_mu_shares_reference_and_confidence(copy_of_run, run, monkeypatch, capsys):
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    other = run("recipe.mixup.mu=0.7", root=root)
    assert other.reference.fingerprint == plan.reference.fingerprint
    assert other.confidence.fingerprint == plan.confidence.fingerprint
    assert other.target.fingerprint != plan.target.fingerprint
    assert capsys.readouterr().out.count("already there") == 2


def test_the_ntp_baseline_is_the_reference_run(copy_of_run, run, monkeypatch, capsys):
    """`recipe=ntp` at the reference's seed finds it, and is shown beside the target."""
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    baseline = run("recipe=ntp", "recipe.global_batch_size=16", root=root)
    assert baseline.target.folder.name == plan.reference.folder.name
    assert plan.baseline.folder.name == plan.reference.folder.name
    assert "already there" in capsys.readouterr().out


def test_the_reference_is_found_where_the_baseline_was_tuned_first(run, monkeypatch, capsys):
    baseline = run("recipe=ntp", "recipe.global_batch_size=16")
    assert reference.has_checkpoints(baseline.target.folder, 2)
    monkeypatch.setattr(reference, "tune", None)
    plan = run()
    assert plan.reference.folder == baseline.target.folder
    assert "reference   already there" in capsys.readouterr().out


ONE_STEP = ("data.demo.num_examples=14", "data.val_fraction=0.3", "recipe.global_batch_size=16")


def test_a_baseline_of_fewer_steps_than_checkpoints_trains_and_keeps_no_checkpoint(run):
    plan = run(*ONE_STEP, "recipe=ntp")
    metrics = read_json(plan.target.folder / "metrics.json")
    assert (metrics["steps"], metrics["val_examples"] > 0) == (1, True)
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.01, "the only step has a learning rate"
    assert not list((plan.target.folder / "checkpoints").glob("*"))
    with pytest.raises(InputError, match=r"set data\.num_checkpoints=1, or more steps by data\.epochs=2$"):
        run(*ONE_STEP)


def test_with_as_many_checkpoints_as_steps_the_first_is_not_the_base(run, compose, small_overrides, tmp_path):
    many = ("data.demo.num_examples=24", "data.val_fraction=0", "recipe.global_batch_size=8", "data.num_checkpoints=3")
    plan = run(*many, "recipe=ntp")
    config = compose(*small_overrides, *many, f"root={tmp_path}")
    base = load_model(config.model).state_dict()
    folders = reference.checkpoint_folders(plan.target.folder)
    assert [folder.name for folder in folders] == ["step-000001", "step-000002", "model"]
    weights = [base, *(AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)]
    for earlier, later in itertools.pairwise(weights):
        assert not torch.equal(earlier["lm_head.weight"], later["lm_head.weight"])


def test_the_same_call_gives_the_same_bits(small_run, run):
    _, plan = small_run
    again = run()
    for name in ("val.parquet", "split.parquet"):
        assert read_table(again.target.folder / name) == read_table(plan.target.folder / name)
    weights = [AutoModelForCausalLM.from_pretrained(p.target.folder / "model").state_dict() for p in (plan, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_checkpoints_that_are_gone_with_their_scores_are_tuned_again(copy_of_run, run, capsys):
    plan, root = copy_of_run
    for stage in (plan.confidence, plan.target):
        shutil.rmtree(root / stage.folder.name)
    before = read_table(root / plan.reference.folder.name / "val.parquet")
    again = run(root=root)
    assert "its checkpoints and their scores are missing" in capsys.readouterr().out
    assert read_table(again.reference.folder / "val.parquet") == before


def test_folders_of_another_trainer_are_scored_in_the_references_place(copy_of_run, run, capsys):
    plan, root = copy_of_run
    folders = [root / p.folder.name / "model" for p in (plan.reference, plan.target)]
    scored = run(f"confidence.checkpoints=[{folders[0]},{folders[1]}]", root=root)
    assert scored.reference is None
    table = read_table(scored.confidence.folder / "confidence.parquet")
    assert set(table["checkpoint"]) == {1, 2}
    assert "reference" not in capsys.readouterr().out.split("confidence  scoring")[0].split("device")[1]
    own = read_table(root / plan.confidence.folder.name / "confidence.parquet")
    last = {i: n for i, c, n in zip(own["example_id"], own["checkpoint"], own["nll"], strict=True) if c == 2}
    first = {i: n for i, c, n in zip(table["example_id"], table["checkpoint"], table["nll"], strict=True) if c == 1}
    assert first == last, "the reference's last checkpoint is its tuned model"


def test_which_checkpoints_count_needs_no_training_of_a_reference(copy_of_run, run, monkeypatch):
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    for use in ("1", "[1]"):
        other = run(f"confidence.use={use}", root=root)
        assert other.confidence.fingerprint == plan.confidence.fingerprint
        split = read_table(other.target.folder / "split.parquet")
        scores = read_table(other.confidence.folder / "confidence.parquet")
        wanted = 2 if use == "1" else 1
        ppl = {
            i: -(2.718281828459045 ** (nll / n))
            for i, c, n, nll in zip(
                *(scores[k] for k in ("example_id", "checkpoint", "num_tokens", "nll")), strict=True
            )
            if c == wanted
        }
        assert split["confidence"] == pytest.approx([ppl[i] for i in split["example_id"]], rel=1e-12)


def test_a_confidence_file_made_elsewhere_is_enough(copy_of_run, run, monkeypatch):
    plan, root = copy_of_run
    file = root / plan.confidence.folder.name / "confidence.parquet"
    monkeypatch.setattr(reference, "tune", None)
    other = run(f"confidence.path={file}", "recipe.mixup.mu=0.3", root=root)
    assert (other.reference, other.confidence) == (None, None)
    assert read_table(other.target.folder / "split.parquet") == read_table(
        root / plan.target.folder.name / "split.parquet"
    )


def _tune_in_turn(overrides, root, tuned):
    import hydra

    from sftmix.config.load import from_hydra

    whole = reference.tune
    reference.tune = lambda *a, **k: (tuned.put(1), whole(*a, **k))[1]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        run_pipeline(from_hydra(hydra.compose("config", [*overrides, f"root={root}"])))


@pytest.mark.slow
def test_of_two_runs_at_once_one_tunes_the_reference_for_both(small_overrides, tmp_path):
    context = multiprocessing.get_context("spawn")
    tuned = context.Queue()
    keep = "reference.keep_checkpoints=true"
    runs = [
        context.Process(target=_tune_in_turn, args=((*small_overrides, keep, f"recipe.mixup.mu={mu}"), tmp_path, tuned))
        for mu in (0.1, 0.5)
    ]
    for process in runs:
        process.start()
    for process in runs:
        process.join(240)
    assert [process.exitcode for process in runs] == [0, 0]
    assert tuned.qsize() == 1
    assert len(list(tmp_path.glob("sftmix-*/manifest.json"))) == 2


def test_a_stage_that_fails_leaves_nothing_that_looks_complete(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tuning, "export", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    assert not list(tmp_path.glob("*/manifest.json"))
    monkeypatch.undo()
    assert run().target.is_complete
