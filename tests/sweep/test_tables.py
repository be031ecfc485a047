"""Tables from their rows to a report: two of them in this process for a few steps, all of them by the real commands."""

import json
import re
import subprocess
import sys

import pytest

from ablations import ABLATIONS, runs_of
from paths import ROOT
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.reports.tables.paper import read_paper
from sftmix.stages.pipeline import run_pipeline

SMALL = (
    "data.demo.num_examples=200",
    "data.epochs=1",
    "model.init.hidden_size=32",
    "model.init.num_layers=1",
    "model.init.vocab_size=400",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
)
TINY = ("model=tiny", "data=demo", "data.num_checkpoints=2")
PAPERS = read_paper().tables
OVERRIDES = {
    "quality": ("model=tiny", "data=demo_quality", "data.num_checkpoints=2"),
    "weak_reference": (*TINY, "model@reference.model=same,tiny_weak", "optimizer.lr=1e-3"),
    "selection": (*TINY, "data/select=longest,random", "data.demo.num_examples=1400"),
    "num_checkpoints": ("model=tiny", "data=demo", "data.num_checkpoints=3", "confidence.use=1,2,3"),
    "seeds": (*TINY, "seed=0,1"),
    "study_lr": (*TINY, "data.select.k=60", "data.val_fraction=0.2", "seed=0,1"),
    "study_size": (*TINY, "data.demo.num_examples=4000"),  # its rows select up to 3,072 examples
    "study": (*TINY, "data.select.k=60", "data.val_fraction=0.2", "seed=0,1"),
    "study_why": (*TINY, "data.select.k=60", "data.val_fraction=0.2", "seed=0,1"),
    "split_source": (*TINY, "data.epochs=2"),  # the subsets of the first epoch are mixed from the second on
}


@pytest.mark.parametrize("name", ["mixup_role", "quality"])
def test_the_runs_of_a_table_run(compose, tmp_path, name):
    common, rows = runs_of(name, *OVERRIDES.get(name, TINY), *SMALL, f"root={tmp_path}")
    plans = [run_pipeline(compose(*common, *row)) for row in rows]
    metrics = [read_json(plan.target.folder / "metrics.json") for plan in plans]
    assert len({plan.target.folder for plan in plans}) == len(rows)
    assert all(m["steps"] >= 2 and m["val_loss"] < m["val_loss_before"] for m in metrics)
    assert len({m["val_loss"] for m in metrics}) == len(rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One root for all tables, since they share references."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_table_is_one_command_and_what_comes_out_is_a_table(root, name):
    def called(script, *arguments):
        command = [sys.executable, str(ROOT / script), *arguments, f"root={root}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=root)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    out = called("train.py", f"ablation={name}", *SMALL, *OVERRIDES.get(name, TINY), "sweep.jobs=2")
    found = re.search(r"\n(\d+) of (\d+) runs done\n", out)
    assert found.group(1) == found.group(2)
    (folder,) = root.glob(f"sweeps/{name}-????????")
    rows = json.loads((folder / MANIFEST).read_text())["runs"]
    assert all((root / row["target"] / "model").is_dir() for row in rows)
    table = called("report.py", f"table={name}", "format=markdown")
    losses = [f"{read_json(root / row['target'] / 'metrics.json')['val_loss']:.4f}" for row in rows]
    if "seed=0,1" not in OVERRIDES.get(name, ()):  # otherwise the cells are means
        assert all(loss in table for loss in losses), (losses, table)
    assert ("not evaluated" in table) is (name in PAPERS)
    board = called("report.py", f"sweep={folder}")
    assert f"{len(rows)} of {len(rows)} runs done" in board
