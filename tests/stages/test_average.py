"""recipe=checkpoint_average: the mean of the checkpoints of the reference as a run. recipe=ntp_matched_compute."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prepared import write_rows
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.config.recipe import is_baseline
from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.provenance.runs import damage_of, find_baseline, read_run, read_val_sets
from sftmix.reports.curves import compare_curves
from sftmix.reports.run_page.sections import read_curve_pictures, read_facts
from sftmix.stages.context import RunContext
from sftmix.stages.plan import make_plan
from sftmix.stages.reference import checkpoint_folders
from sftmix.stages.workload import matched_compute


def test_the_mean_of_the_checkpoints_is_a_run_like_any_other(run, compose, small_overrides, tmp_path, capsys):
    overrides = "recipe=checkpoint_average", f"data.val_path={write_rows(tmp_path / 'more.jsonl', number=5, start=300)}"
    plan = run(*overrides)
    folder, reference = plan.target.folder, plan.reference.folder
    checkpoints = checkpoint_folders(reference)
    assert len(checkpoints) == 2
    stored = [load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints]
    for name, weight in load_file(folder / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, torch.stack([s[name] for s in stored]).mean(0), rtol=1e-6, atol=1e-7)
    assert damage_of(folder) is None
    record, metrics = (read_json(folder / name) for name in ("run.json", "metrics.json"))
    assert record["averaged"] == [checkpoint.name for checkpoint in checkpoints]
    assert (metrics["steps"], record["cost"]["trained_parameters"]) == (0, 0)
    assert metrics["val_loss_before"] == read_json(reference / "metrics.json")["val_loss_before"]
    assert (metrics["val_sets"]["more"]["examples"], metrics["val_sets"]["more"]["loss_before"]) == (5, None)
    assert (
        read_val_sets(folder)["more"].over([*read_val_sets(folder)["more"].nll]) == metrics["val_sets"]["more"]["loss"]
    )
    assert not is_baseline(plan.target.fields)
    assert find_baseline(folder, plan.target.fields) == reference

    config = compose(*small_overrides, f"root={tmp_path}")
    encoded = RunContext(config).encoded(config.model)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    table = read_table(folder / "val.parquet")
    for k, example in enumerate(encoded.val[:3]):
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        nll = -logprobs[example.num_prompt_tokens - 1 :].sum().item()
        assert (table["example_id"][k], table["nll"][k]) == (example.example_id, pytest.approx(nll, rel=1e-5))
    assert metrics["val_perplexity"] == pytest.approx(math.exp(sum(table["nll"]) / sum(table["num_tokens"])))
    with pytest.raises(InputError, match="has no curves, since it took no steps: its model is the mean"):
        compare_curves([folder], tmp_path)
    with pytest.raises(InputError, match="has no curves"):
        read_curve_pictures(folder, "checkpoint_average", reference)
    trained = dict(read_facts(read_run(folder, plan.target.fields)))["Training"]
    assert trained == f"none: the mean of the checkpoints {', '.join(record['averaged'])}"
    other = make_plan(
        compose(*small_overrides, "recipe=checkpoint_average", "seed=1"), Device("cpu", "32-true", "grouped")
    )
    assert other.reference.fields["seed"] == 1
    capsys.readouterr()
    assert run(*overrides).target.folder == folder
    assert f"target      already there: {folder}" in capsys.readouterr().out


def test_the_epochs_of_ntp_have_the_forward_tokens_that_the_stages_have_recorded(small_run, compose, small_overrides):
    """By the token counts of `run.json` of the three stages of SFTMix, which the stages have counted while they ran."""
    config, plan = small_run
    recorded = [read_json(a.folder / "run.json")["tokens"] for a in (plan.reference, plan.confidence, plan.target)]
    matched = matched_compute(config, RunContext(config).encoded(config.model))
    assert [matched.reference, matched.scoring, matched.target] == recorded
    per_epoch = recorded[0] / config.data.epochs
    assert matched.epochs - 1 < sum(recorded) / per_epoch <= matched.epochs


def test_ntp_of_matched_compute_trains_for_the_matched_epochs(run, capsys):
    plan = run("recipe=ntp_matched_compute", "trainer.limit_train_batches=1")
    folder = plan.target.folder
    found = read_json(folder / "run.json")["matched_compute"]
    assert read_json(folder / "metrics.json")["steps"] == found["epochs"] == 5
    total = sum(found[name] for name in ("reference", "scoring", "target"))
    assert f"{total:,} forward tokens of SFTMix" in capsys.readouterr().out
    assert not is_baseline(plan.target.fields)
    assert plan.target.fields["recipe"]["matched"] == {"num_checkpoints": 2, "reference_epochs": 1}
