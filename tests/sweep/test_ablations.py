"""Every ablation file composes, and each of its rows passes the check of the configuration."""

import pytest

from ablations import ABLATIONS, runs_of
from paths import CONF
from sftmix.config.schema import to_dict

NUM_ROWS = {
    "main": 8, "healthcare": 4, "weak_reference": 2, "quality": 3, "mixup_role": 4, "ntp_subset": 6, "selection": 4,
    "lora": 2, "mu": 3, "alpha": 5, "mu_alpha": 9, "split": 3, "pairing": 3, "num_checkpoints": 5, "normalization": 2,
    "regularizers": 4, "seeds": 10,
}  # fmt: skip


def test_all_of_them_are_counted():
    assert set(ABLATIONS) == set(NUM_ROWS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_passes_the_check(compose, name):
    common, rows = runs_of(name)
    assert len(rows) == NUM_ROWS[name]
    configs = [to_dict(compose(*common, *row)) for row in rows]
    assert all(a != b for k, a in enumerate(configs) for b in configs[:k])  # no two rows are the same run


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_file_is_headed_by_claim_cost_and_command(name):
    text = (CONF / "ablation" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    for word in ("Claim", "Cost", f"Command   python train.py ablation={name}\n"):
        assert f"\n# {word}" in text
