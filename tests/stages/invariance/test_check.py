"""The invariance check passes for the program as it is, and fails if the step depends on a variant."""

import json

import pytest

from sftmix.distributed.device import Device
from sftmix.errors import Stopped
from sftmix.stages.invariance import check
from sftmix.stages.invariance.check import FIRST, FSDP_OF_ONE, ONE_PROCESS, StepVariant, check_invariance, variants_of
from sftmix.training.module import SFTMixModule


@pytest.fixture
def in_this_process(monkeypatch):
    """Several processes import torch each, which takes long. They are tested with forks."""
    monkeypatch.setattr(check, "variants_of", lambda *_: ONE_PROCESS)


def test_every_variant_of_one_process_gives_the_same_step(compose, small_overrides, tmp_path, in_this_process):
    found = check_invariance(compose(*small_overrides, f"root={tmp_path}"))
    assert found.holds
    assert [variant["variant"] for variant in found.variants] == [variant.name for variant in ONE_PROCESS]
    assert all(variant["sftmix_gradient"] < 2e-6 for variant in found.variants)
    assert "all within 0.0001" in found.table()
    assert json.loads(found.file.read_text())["holds"]
    assert [path.name for path in tmp_path.glob("invariance-*")] == [found.file.name], "the gradients are deleted"


def test_noise_and_loss_on_prompts_do_not_depend_on_the_variant(compose, small_overrides, tmp_path, in_this_process):
    plain = check_invariance(compose(*small_overrides, f"root={tmp_path}"))
    found = check_invariance(
        compose(*small_overrides, f"root={tmp_path}", "recipe.neftune_alpha=20", "recipe.ntp.prompt_weight=0.5")
    )
    assert found.holds
    assert found.file != plain.file
    assert all(
        abs(a - b) > 1e-3 for a, b in zip(*(c.variants[0]["losses"].values() for c in (plain, found)), strict=True)
    )
    assert found.description.endswith("pairs of random subsets, noise of alpha 20, loss on prompts of weight 0.5")


def test_a_step_that_depends_on_its_micro_batches_is_found(
    compose, small_overrides, tmp_path, in_this_process, monkeypatch
):
    """Divide each micro-batch by its own number of tokens, an error that several trainers had."""
    whole = SFTMixModule.backward_of_step

    def backward_of_step(self, batch):
        own = [len(micro.labels) for micro in batch.micro_batches]
        return whole(self, batch._replace(num_tokens=sum(own) // len(own)))

    monkeypatch.setattr(SFTMixModule, "backward_of_step", backward_of_step)
    found = check_invariance(compose(*small_overrides, f"root={tmp_path}"))
    assert not found.holds
    off = {variant["variant"] for variant in found.variants if variant["ntp_gradient"] > found.tolerance}
    assert off == {"micro-batches of a half", "micro-batches of a pair"}
    assert "not all within" in found.table()
    assert "  off" in found.table()


def test_the_command_exits_with_one_if_a_difference_is_too_large(monkeypatch, small_overrides, tmp_path, conf):
    import runpy
    import sys

    monkeypatch.setattr(check, "variants_of", lambda *_: (FIRST, StepVariant("wrong", num_micro_batches=2)))
    whole = SFTMixModule.backward_of_step
    monkeypatch.setattr(
        SFTMixModule,
        "backward_of_step",
        lambda self, batch: whole(self, batch._replace(num_tokens=batch.num_tokens + len(batch.micro_batches))),
    )
    monkeypatch.setattr(sys, "argv", ["train.py", *small_overrides, "mode=certify", f"root={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(conf.parent / "train.py"), run_name="__main__")
    assert ended.value.code == 1


@pytest.mark.slow
def test_all_variants_with_two_processes(compose, small_overrides, tmp_path):
    found = check_invariance(compose(*small_overrides, f"root={tmp_path}"))
    assert found.holds, found.table()
    assert FSDP_OF_ONE.name in [variant["variant"] for variant in found.variants]
    assert sum("2 processes" in variant["variant"] for variant in found.variants) == 5


def test_a_variant_that_the_model_family_cannot_compute_is_marked(compose, small_overrides, tmp_path, monkeypatch):
    from sftmix.errors import InputError
    from sftmix.stages import language_model

    def cannot(_):
        raise InputError("packed sequences see each other")

    monkeypatch.setattr(check, "variants_of", lambda *_: (FIRST, StepVariant("packed", layout="packed")))
    monkeypatch.setattr(language_model, "check_packing", cannot)
    found = check_invariance(compose(*small_overrides, f"root={tmp_path}"))
    assert found.variants[1]["variant"] == "packed (the family cannot: grouped)"


def test_the_dense_loss_has_no_variant_with_chunks(compose, small_overrides):
    device = Device("cpu", "32-true", "padded")
    fused, dense = (
        {variant.name for variant in variants_of(compose(*small_overrides, f"trainer.loss={loss}"), device)}
        for loss in ("fused", "dense")
    )
    assert fused - dense == {"loss in chunks of 8 tokens"}
    assert dense < fused


@pytest.mark.parametrize("is_early", [True, False])
def test_a_stop_says_that_nothing_is_saved(compose, small_overrides, tmp_path, in_this_process, monkeypatch, is_early):
    """A process of a variant may end early, or complete the variant before it ends."""
    calls = []

    def run_stage(*_):
        calls.append(1)
        if is_early:
            raise Stopped("stopped at step 1, saved", 75)
        return 75

    monkeypatch.setattr(check, "run_stage_on_ranks", run_stage)
    says = f"^stopped after 0 of {len(ONE_PROCESS)} variants, whose results are not saved$"
    with pytest.raises(Stopped, match=says) as stopped:
        check_invariance(compose(*small_overrides, f"root={tmp_path}"))
    assert (stopped.value.code, stopped.value.is_saved, len(calls)) == (75, False, 1)
    assert not list(tmp_path.glob("invariance-*"))
