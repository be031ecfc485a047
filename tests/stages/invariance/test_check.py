"""The certificate holds for the program as it is, and fails for one that is wrong."""

import json

import pytest

from sftmix.stages.invariance import check as certifying
from sftmix.stages.invariance.check import certify
from sftmix.stages.invariance.variants import FSDP_ALONE, WAYS, Way
from sftmix.training.module import SFTMixModule


@pytest.fixture
def in_this_process(monkeypatch):
    """The ways of one process: those of several take an import of torch each, and are tested with forks."""
    monkeypatch.setattr(certifying, "ways_of", lambda *_: WAYS)


def test_every_way_of_one_process_gives_the_same_step(compose, small_overrides, tmp_path, in_this_process):
    found = certify(compose(*small_overrides, f"root={tmp_path}"))
    assert found.holds
    assert [row["way"] for row in found.rows] == [way.name for way in WAYS]
    assert all(row["sftmix_gradient"] < 2e-6 for row in found.rows)
    assert "all within 0.0001" in found.table()
    assert json.loads(found.file.read_text())["holds"]
    assert [path.name for path in tmp_path.glob("certificate-*")] == [found.file.name], "gradients are gone"


def test_noise_and_loss_on_prompts_do_not_depend_on_the_way(compose, small_overrides, tmp_path, in_this_process):
    plain = certify(compose(*small_overrides, f"root={tmp_path}"))
    found = certify(
        compose(*small_overrides, f"root={tmp_path}", "recipe.neftune_alpha=20", "recipe.ntp.prompt_weight=0.5")
    )
    assert found.holds
    assert found.file != plain.file
    assert all(abs(a - b) > 1e-3 for a, b in zip(*(c.rows[0]["losses"].values() for c in (plain, found)), strict=True))
    assert found.said.endswith("pairs of random halves, noise of alpha 20, loss on prompts of weight 0.5")


def test_a_step_that_depends_on_its_cut_is_found(compose, small_overrides, tmp_path, in_this_process, monkeypatch):
    """Each micro-batch divided by its own tokens: what several trainers did, and what this is there to find."""
    whole = SFTMixModule.backward_of_step

    def backward_of_step(self, batch):
        own = [len(micro.labels) for micro in batch.micro_batches]
        return whole(self, batch._replace(num_tokens=sum(own) // len(own)))

    monkeypatch.setattr(SFTMixModule, "backward_of_step", backward_of_step)
    found = certify(compose(*small_overrides, f"root={tmp_path}"))
    assert not found.holds
    off = {row["way"] for row in found.rows if row["ntp_gradient"] > found.tolerance}
    assert off == {"micro-batches of a half", "micro-batches of a pair"}
    assert "not all within" in found.table()
    assert "  off" in found.table()


def test_the_command_ends_with_one_where_it_does_not_hold(monkeypatch, small_overrides, tmp_path, conf):
    import runpy
    import sys

    monkeypatch.setattr(certifying, "ways_of", lambda *_: (WAYS[0], Way("wrong", parts=2)))
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
def test_the_whole_certificate_with_two_processes(compose, small_overrides, tmp_path):
    found = certify(compose(*small_overrides, f"root={tmp_path}"))
    assert found.holds, found.table()
    assert FSDP_ALONE.name in [row["way"] for row in found.rows]
    assert sum("2 processes" in row["way"] for row in found.rows) == 5


def test_a_way_that_the_family_cannot_take_is_named_so(compose, small_overrides, tmp_path, monkeypatch):
    from sftmix.errors import InputError
    from sftmix.models.language_model import SFTMixLM

    def cannot(self):
        raise InputError("packed sequences see each other")

    monkeypatch.setattr(certifying, "ways_of", lambda *_: (WAYS[0], Way("packed into one row", layout="packed")))
    monkeypatch.setattr(SFTMixLM, "check_packing", cannot)
    found = certify(compose(*small_overrides, f"root={tmp_path}"))
    assert found.rows[1]["way"] == "packed into one row (the family cannot: grouped)"
