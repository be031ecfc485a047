"""Every ablation file composes, and each of its runs passes the check of the configuration."""

import math

import pytest
from omegaconf import OmegaConf

from ablations import ABLATIONS, runs_of
from paths import CONF
from sftmix.config.schema import to_dict
from sftmix.stages import inputs
from sftmix.sweep.sweep import run_sweep


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


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("healthcare", {"waiting  model=": 4, "medical_meadow_wikidoc_patient_information is not known yet": 4}),
        ("quality", {"waiting": 3, "not known yet": 0}),
        ("selection", {"waiting  data/select=longest": 2, "missing  data/select=alpagasus": 2, "no such file": 2}),
    ],
)
def test_rows_are_listed_without_network_and_without_a_file(compose, tmp_path, monkeypatch, capsys, name, says):
    """A file that is not there is named, and a commit that only the hub knows. Nothing is written."""
    monkeypatch.setattr(inputs, "newest_commit", None)
    monkeypatch.setenv("ALPAGASUS", str(tmp_path / "none.json"))
    common, rows = runs_of(name)
    root = tmp_path / "runs"
    overrides = [*common, "trainer=cpu", "mode=list", f"root={root}"]
    assert run_sweep(name, overrides, rows, lambda given: compose(*given)) == 0
    listed = capsys.readouterr().out
    assert {text: listed.count(text) for text in says} == says
    assert ("2 runs without an input" in listed) is (name == "selection")
    assert not root.exists()
