"""Marks of fields: which keys change nothing that is learned, which are paths."""

import pytest

from sftmix.config.fields import inert_keys, is_inert
from sftmix.config.schema import Config


@pytest.mark.parametrize(
    ("key", "inert"),
    [
        ("trainer", True),
        ("trainer.devices", True),
        ("trainer.precision", False),
        ("trainer.overfit_batches", False),
        ("logger.wandb.project", True),
        ("sweep.slurm.hours", True),
        ("data.num_workers", True),
        ("reference.keep_checkpoints", True),
        ("model/lora", False),
        ("callbacks.early_stopping.patience", False),
        ("data", False),
        ("seed", False),
        ("nosuch.key", False),
    ],
)
def test_a_key_is_inert_by_its_own_mark_or_that_of_its_section(key, inert):
    assert is_inert(key, Config) == inert


def test_inert_keys_are_the_leaves_of_inert_sections():
    keys = inert_keys(Config)
    assert {"root", "mode", "trainer.devices", "sweep.slurm.hours", "logger"} <= set(keys)
    assert all(is_inert(key, Config) for key in keys)
    assert not {"trainer", "sweep", "trainer.precision", "optimizer.lr"} & set(keys)
