"""A real pretrained model on real data, a few steps: the loss it starts from is the published one, and it falls."""

import pytest

from sftmix.artifacts import read_json, read_table
from sftmix.stages.recipe import run_recipe


def test_a_real_model_learns_from_real_data(compose, shared, tmp_path):
    plan = run_recipe(
        compose(
            "model=local",
            f"model.path={shared / 'models/stories260K'}",
            "model.lr=1e-3",
            "data=alpaca",
            f"data.path={shared / 'data/alpaca/alpaca_data.json'}",
            "data.limit=300",
            "data.val_fraction=0.5",
            "data.epochs=1",
            "reference.num_checkpoints=2",
            "recipe.warmup_ratio=0.3",
            "trainer=cpu",
            "trainer.progress_bar=false",
            f"root={tmp_path}",
        )
    )
    metrics = read_json(plan.target.folder / "metrics.json")
    assert metrics["val_loss_before"] == pytest.approx(3.74, abs=0.15)
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.1
    split = read_table(plan.target.folder / "split.parquet")["half"]
    assert abs(split.count("confident") - split.count("unconfident")) <= 1
    assert metrics["steps"] == -(-metrics["examples"] // 32)
