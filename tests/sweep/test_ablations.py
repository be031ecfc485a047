"""Every ablation file composes, and each of its runs passes the check of the configuration."""

import math

import pytest
from omegaconf import OmegaConf

from ablations import ABLATIONS, runs_of
from paths import CONF
from sftmix.config.schema import to_dict


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_run_passes_the_check(compose, name):
    sweeper = OmegaConf.load(CONF / "ablation" / f"{name}.yaml").hydra.sweeper
    num_values = [len(str(values).split(",")) for values in sweeper.get("params", {}).values()]
    common, rows = runs_of(name)
    assert len(rows) == math.prod(num_values) * len(sweeper.get("runs", [()])) > 1
    configs = [to_dict(compose(*common, *row)) for row in rows]
    assert all(a != b for k, a in enumerate(configs) for b in configs[:k])  # no two runs are equal


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_file_is_headed_by_claim_cost_and_command(name):
    text = (CONF / "ablation" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    for word in ("Claim", "Cost", f"Command   python train.py ablation={name}\n"):
        assert f"\n# {word}" in text
