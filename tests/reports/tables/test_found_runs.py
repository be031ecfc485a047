"""A table shows the runs under a root by what they are, whichever command made them."""

import csv
import io
import random
import shutil
from pathlib import Path

import hydra
import pytest

from sftmix.artifacts.files import write_json
from sftmix.artifacts.tables import write_table
from sftmix.config.load import from_hydra
from sftmix.config.schema import to_dict
from sftmix.reports.page import write_pages
from sftmix.reports.tables import found_runs as found
from sftmix.reports.tables.found_runs import with_found_runs
from sftmix.reports.tables.table import table
from sftmix.stages.plan import plan_run
from sftmix.sweep.jobs import PlannedRun, plan_jobs
from sftmix.sweep.manifest import sweep_folder, write_manifest
from sftmix.sweep.store import find_sweeps

TINY = ("model=tiny", "data=demo", "trainer=cpu")


class Runs:
    """Leaves the files of runs that no one tuned, under the fingerprints that train.py gives them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def config(self, *overrides):
        small = () if any(o.startswith("data=") for o in overrides) else ("data.demo.num_examples=120",)
        return from_hydra(hydra.compose("config", [*TINY, *small, f"root={self.root}", *overrides]))

    def leave(self, *overrides, loss=2.0):
        """Leave the run of a single train.py, and the NTP baseline that it was tuned from; return its folder."""
        config = self.config(*overrides)
        _, plan = plan_run(config)
        if plan.reference is not None:
            self._write(plan.reference, config, "reference", 2.0)
        self._write(plan.target, config, "target", loss)
        return plan.target.folder

    def _write(self, artifact, config, stage, loss):
        if artifact.folder.exists():
            return
        artifact.folder.mkdir(parents=True)
        rng = random.Random(artifact.folder.name)
        nll = [10 * (loss + 0.1 * k + rng.gauss(0, 0.02)) for k in range(30)]
        ids = [f"e{k}" for k in range(30)]
        write_table(artifact.folder / "val.parquet", {"example_id": ids, "num_tokens": [10] * 30, "nll": nll})
        write_json(artifact.folder / "metrics.json", {"val_loss": loss, "val_examples": 30, "seconds": 1.0})
        write_json(artifact.folder / "run.json", {"config": to_dict(config), "stage": stage})
        write_json(artifact.folder / "manifest.json", {"title": artifact.title, "fields": dict(artifact.fields)})

    def sweep(self, name, *overrides, own):
        """Leave the manifest of a sweep over some rows."""
        common = [*TINY, f"root={self.root}", *overrides]
        rows = []
        for row in own:
            config = self.config(*overrides, *row)
            rows.append(PlannedRun(tuple(row), config, plan_run(config)[1]))
        shared, jobs = plan_jobs(rows, common)
        folder = sweep_folder(self.root, name, rows)
        head = {"name": name, "command": "python train.py", "common": common, "composed_by": []}
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, head, rows, jobs, shared)
        return folder

    def table(self, name, *given, form="csv", composed_by=()):
        sweeps, unreadable = find_sweeps(self.root)
        sweeps, left_out = with_found_runs(name, sweeps, self.root, given, composed_by)
        lines = [*unreadable, *left_out]
        return write_pages(table(name, sweeps, given=given, unreadable=lines, ablations=["alpha", "split"]), form)

    def losses(self, name, *given):
        """The held-out losses of ours: (page, row) -> (loss, seeds)."""
        found = {}
        for row in csv.DictReader(io.StringIO(self.table(name, *given))):
            if "Held-out loss" in row["table"] and row["column"] in ("all", "seeds"):
                found.setdefault((row["page"] if "page" in row else row["table"], row["row"]), []).append(row)
        return {key: [c["value"] or c["text"] for c in cells] for key, cells in found.items()}


COMPOSED: dict = {}  # the same rows are composed for every table


@pytest.fixture
def runs(tmp_path, conf, monkeypatch):
    def composed(overrides, compose=found._composed):
        key = tuple(overrides)
        if key not in COMPOSED:
            COMPOSED[key] = compose(overrides)
        return COMPOSED[key]

    monkeypatch.setattr(found, "_composed", composed)
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        yield Runs(tmp_path / "runs")


def seeds_in(runs, name, row, *given):
    """The number of seeds of a row on each page that has it."""
    return [cells[1] for (_, label), cells in runs.losses(name, *given).items() if label == row and len(cells) > 1]


def test_single_runs_are_in_the_table(runs):
    """`mode=list` found this run, and `table=mu` said "not run"."""
    for seed in (0, 1):
        runs.leave("recipe.mixup.mu=0.2", f"seed={seed}", loss=1.9)
        runs.leave("recipe=ntp", f"seed={seed}")
    text = runs.table("mu", form="text")
    (line,) = [line for line in text.splitlines() if line.startswith("  mu 0.2") and "[" in line and "±" in line]
    assert ": better" in line
    assert line.split()[-2:] == ["30", "2"]
    assert "sftmix-tiny-demo-mu0.2-seed0" in text
    assert "sftmix-tiny-demo-mu0.2-seed1" in text
    assert "mu 0.1" in text
    assert "recipe.mixup.mu=0.1" in text, "the command of a row that was not run"


def test_runs_of_a_sweep_whose_manifest_was_deleted_are_in_the_table(runs):
    rows = [("recipe.mixup.mu=0.1",), ("recipe.mixup.mu=0.5",)]
    for row in rows:
        runs.leave(*row)
    folder = runs.sweep("mu", own=rows)
    before = runs.losses("mu")
    shutil.rmtree(folder)
    assert {label: cells for (_, label), cells in runs.losses("mu").items()} == {
        label: cells for (_, label), cells in before.items()
    }


def test_a_run_that_another_ablation_shares_is_in_both_tables(runs):
    runs.leave("recipe.mixup.alpha=0.5", "recipe.mixup.mu=0.2")
    runs.leave("recipe.mixup.alpha=0.2", "recipe.mixup.mu=0.2")
    runs.sweep("alpha", own=[("recipe.mixup.alpha=0.5",), ("recipe.mixup.alpha=0.2",)])
    assert seeds_in(runs, "mu", "mu 0.2") == ["1"]
    assert seeds_in(runs, "alpha", "recipe.mixup.alpha=0.5") == ["1"]
    assert seeds_in(runs, "alpha", "recipe.mixup.alpha=0.2") == ["1"]
    assert "left out: 1 complete run in" in runs.table("mu", form="text")
    assert seeds_in(runs, "mu", "mu 0.2", "recipe.mixup.alpha=0.2") == ["1"]


def test_a_single_run_joins_the_sweep_of_the_same_settings(runs):
    runs.leave("recipe.mixup.mu=0.2", "seed=0")
    runs.leave("recipe.mixup.mu=0.2", "seed=1")
    runs.sweep("mu", own=[("recipe.mixup.mu=0.2", "seed=0"), ("recipe.mixup.mu=0.1", "seed=0")])
    assert seeds_in(runs, "mu", "mu 0.2") == ["2"]


def test_runs_of_other_data_or_another_model_are_on_another_page(runs, tmp_path):
    for name in ("a", "b"):
        rows = [f'{{"instruction": "say {name} {k}", "output": "{name} {k}"}}' for k in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        runs.leave("data=own", f"data.path={tmp_path / f'{name}.jsonl'}", "recipe.mixup.mu=0.2", loss=1.0)
    runs.leave("recipe.mixup.mu=0.2", loss=3.0)
    runs.leave("recipe.mixup.mu=0.2", "model=tiny_weak", "seed=1", loss=4.0)
    assert seeds_in(runs, "mu", "mu 0.2") == ["1"] * 4
    text = runs.table("mu", form="text")
    assert sum(line.startswith("ours: ") for line in text.splitlines()) == 4
    assert f"data.path={tmp_path / 'a.jsonl'}" in text
    assert "model=tiny_weak" in text
    assert seeds_in(runs, "mu", "mu 0.2", "model=tiny", "data=demo") == ["1"]
    assert seeds_in(runs, "mu", "mu 0.2", "model=tiny_weak") == ["1"]


def test_runs_of_one_name_and_other_content_are_not_averaged(runs, tmp_path):
    """The data file of the same path was changed between two seeds."""
    file = tmp_path / "a.jsonl"
    for seed in (0, 1):
        file.write_text("\n".join(f'{{"instruction": "say {k} {seed}", "output": "{k}"}}' for k in range(40)))
        runs.leave("data=own", f"data.path={file}", "recipe.mixup.mu=0.2", f"seed={seed}", loss=1.0 + seed)
    assert seeds_in(runs, "mu", "mu 0.2") == ["1", "1"]


def test_a_table_of_models_and_data_keeps_other_files_apart(runs, tmp_path):
    """Table 1 varies the data itself, so other data of the same choice is a line of its own."""
    runs.leave("recipe=sftmix", loss=1.0)
    runs.leave("recipe=sftmix", "data.demo.num_examples=160", "seed=1", loss=3.0)
    found = runs.losses("main", "model=tiny", "data=demo")
    losses = [float(cells[0]) for cells in found.values() if cells[0] not in ("not run",)]
    assert 1.0 < min(x for x in losses) < 3.0 < max(losses) + 0.5
    assert not any(len(cells) > 1 and cells[1] == "2" for cells in found.values())


def test_unfinished_and_damaged_runs_are_shown_as_what_they_are(runs):
    good, torn, lost = (runs.leave("recipe.mixup.mu=0.2", f"seed={seed}") for seed in (0, 1, 2))
    other = runs.leave("recipe.mixup.mu=0.1")
    (torn / "val.parquet").write_bytes(b"PAR1 torn")
    (lost / "run.json").write_text("{")
    (other / "val.parquet").unlink()
    unfinished = runs.leave("recipe.mixup.mu=0.5")
    unfinished.rename(unfinished.with_name(unfinished.name + ".partial"))
    text = runs.table("mu", form="text")
    assert seeds_in(runs, "mu", "mu 0.2") == ["1"]
    assert good.name in text
    assert f"seed=1 damaged: {torn / 'val.parquet'}: cannot be read, expected a parquet file" in text
    assert f"left out: damaged: {lost.name}" in text
    assert f"damaged: {other / 'val.parquet'}" in text
    assert f"left out: unfinished: {unfinished.name}.partial, the command that started it continues it" in text


def test_a_run_that_a_killed_command_has_not_removed_after_its_replacement_is_not_counted(runs):
    folder = runs.leave("recipe.mixup.mu=0.2")
    shutil.copytree(folder, folder.with_name(folder.name + ".old"))
    assert folder.name + ".old" not in runs.table("mu", form="text")


def test_printed_commands_say_where_configurations_are_read(runs):
    runs.leave("recipe.mixup.alpha=0.5")
    own = ("--config-dir", "my files")
    text = runs.table("alpha", form="text", composed_by=own)
    assert "python train.py --config-dir 'my files' ablation=alpha hydra.mode=RUN" in text


def test_an_interrupted_row_of_a_sweep_is_unfinished(runs):
    folder = runs.leave("recipe.mixup.mu=0.2")
    runs.leave("recipe.mixup.mu=0.1")
    runs.sweep("mu", own=[("recipe.mixup.mu=0.1",), ("recipe.mixup.mu=0.2",)])
    folder.rename(folder.with_name(folder.name + ".partial"))
    assert [cells[0] for (_, label), cells in runs.losses("mu").items() if label == "mu 0.2"] == ["unfinished"]


def test_methods_that_the_table_does_not_vary_are_not_its_rows(runs):
    runs.leave("split.by=random", "recipe.mixup.mu=0.2")
    runs.leave("recipe.neftune_alpha=5", "recipe.mixup.mu=0.2")
    runs.leave("model/lora=default", "recipe.mixup.mu=0.2")
    runs.leave("confidence.from=base", "recipe.mixup.mu=0.2")
    runs.leave("reference.epochs=1", "recipe.mixup.mu=0.2")
    assert seeds_in(runs, "mu", "mu 0.2") == []
    assert "left out: 5 complete runs in" in runs.table("mu", form="text")
    assert seeds_in(runs, "mu", "mu 0.2", "split.by=random") == ["1"]
    assert seeds_in(runs, "split", "split.by=random") == ["1"]
