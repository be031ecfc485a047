"""The dashboard of an ablation, as the object that would be published; publishing itself wants an account."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftmix.errors import InputError
from sftmix.reports import dashboard as module
from sftmix.reports.dashboard import build_dashboard, publish

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces, at its import


@pytest.fixture
def built():
    pytest.importorskip("wandb_workspaces")
    return build_dashboard(
        "mu",
        title="Table 9, the weight mu",
        claim="a moderate <b>weight</b> is best.",
        project="sftmix",
        entity="someone",
        groups=["mu-1234abcd", "mu-5678abcd"],
        command="python train.py ablation=mu",
    )


def grids(built):
    return [block for block in built.blocks if hasattr(block, "panels")]


def test_it_shows_losses_diagnostics_confidence_and_runs(built):
    plotted = [y for grid in grids(built) for panel in grid.panels for y in getattr(panel, "y", [])]
    assert {"val/loss", "train/loss", "mixup/token_share", "mixup/grad_cosine", "mixup/ntp_loss_confident"} <= {
        getattr(y, "name", y) for y in plotted
    }
    bars = [m.name for grid in grids(built) for panel in grid.panels for m in getattr(panel, "metrics", [])]
    assert bars == ["val/loss.last", "val/loss_confident", "val/loss_unconfident"]
    media = [key for grid in grids(built) for panel in grid.panels for key in getattr(panel, "media_keys", [])]
    assert media == ["mixup/lam", "confidence/histogram"]


def test_it_shows_the_runs_of_the_sweeps_alone(built):
    for grid in grids(built):
        for runset in grid.runsets:
            assert (runset.project, runset.entity) == ("sftmix", "someone")
            assert "Group" in runset.filters
            assert "mu-1234abcd" in runset.filters
            assert "mu-5678abcd" in runset.filters
    assert [r.filters.split("'")[1] for grid in grids(built) for r in grid.runsets if "JobType" in r.filters]


def test_its_claim_is_text(built):
    assert built.blocks[0].text == "Claim: a moderate <b>weight</b> is best."
    assert built.title == "SFTMix: Table 9, the weight mu"


def test_every_figure_that_it_shows_is_logged(built):
    source = "".join(file.read_text() for folder in ("training", "stages") for file in
                     (ROOT / "src/sftmix" / folder).glob("*.py"))  # fmt: skip
    shown = [getattr(y, "name", y) for grid in grids(built) for panel in grid.panels for y in getattr(panel, "y", [])]
    assert len(shown) >= 9
    for name in shown:
        assert f'"{name}"' in source or f'"{name.rsplit("_", 1)[0]}' in source, name


def test_without_an_account_or_its_package_one_line_says_so(built, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    environment = {**os.environ, "NETRC": str(tmp_path / "netrc")}
    (tmp_path / "sweeps/mu-1").mkdir(parents=True)
    manifest = {"name": "mu", "command": "python train.py ablation=mu", "common": [], "rows": [], "shared": []}
    (tmp_path / "sweeps/mu-1/manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, str(ROOT / "report.py"), "dashboard=mu", "logger=wandb", f"root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: dashboard: no key of Weights & Biases, log in with `wandb login`"
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(InputError, match=r"pip install 'sftmix\[dashboard\]'"):
        module._packages()


def test_what_their_client_refuses_is_one_line(monkeypatch):
    import wandb

    class Refused:
        def save(self):
            raise RuntimeError("no such entity\nand more")

    class Api:
        api_key = "secret"

    monkeypatch.setattr(wandb, "api", Api())
    with pytest.raises(InputError, match=r"refused it \(no such entity\)$"):
        publish(Refused())
