"""trainer.loss=dense trains a whole run with the equations as the paper writes them."""

import csv

import pytest

from sftmix.models import language_model
from sftmix.stages.pipeline import run_pipeline

SHORT = ("split.by=random", "data.demo.num_examples=60", "data.epochs=1", "recipe.global_batch_size=8")


def losses(root) -> dict[str, list[float]]:
    (file,) = root.glob("*/logs/metrics.csv")
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/loss"]]
    return {name: [float(row[name]) for row in rows] for name in ("train/loss", "train/ntp_loss", "train/mixup_loss")}


def refuse(*_, **__):
    raise AssertionError("the other implementation of the loss was called")


def test_a_run_with_the_dense_loss_has_the_losses_of_the_fused_one(compose, small_overrides, tmp_path, monkeypatch):
    found, fingerprints = [], []
    for loss, other in (("fused", "dense_sftmix_loss"), ("dense", "fused_sftmix_loss")):
        root = tmp_path / loss
        config = compose(
            *small_overrides, *SHORT, f"trainer.loss={loss}", "trainer.log_every_n_steps=1", f"root={root}"
        )
        with monkeypatch.context() as patch:
            patch.setattr(language_model, other, refuse)
            run_pipeline(config)
        found.append(losses(root))
        fingerprints.append({file.parent.parent.name for file in root.glob("*/logs/metrics.csv")})
    fused, dense = found
    assert len(fused["train/loss"]) >= 5
    assert fused["train/loss"][-1] < fused["train/loss"][0]
    for name, values in fused.items():
        assert dense[name] == pytest.approx(values, rel=1e-5), name
    assert fingerprints[0] == fingerprints[1], "the implementation does not change what is learned"
