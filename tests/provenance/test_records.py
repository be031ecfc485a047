"""A record holds numbers and what made them; no text of examples, no weights, no path of the machine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from resealed import write_json, write_table
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.errors import InputError
from sftmix.provenance import records
from sftmix.provenance.records import record_run, record_sweep, without_paths
from sftmix.provenance.runs import find_baseline


@pytest.fixture
def runs(small_run, tmp_path):
    """A copy of the small run, to alter: target and baseline."""
    config, plan = small_run
    shutil.copytree(config.root, tmp_path / "runs")
    target, baseline = (tmp_path / "runs" / artifact.folder.name for artifact in (plan.target, plan.baseline))
    passport = read_json(target / "run.json")
    passport["command"] += [f"data.path={tmp_path}/my data/x.json", "'data.template=/home/me/t.jinja'"]
    passport["config"]["confidence"]["checkpoints"] = [f"{tmp_path}/a", "~/b/c"]
    write_json(target / "run.json", passport)
    return target, baseline


def text_of(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_record_of_a_run_has_its_numbers_and_no_path_or_text(runs, tmp_path):
    target, baseline = runs
    folder = record_run(target, tmp_path / "experiments")
    manifest, metrics = read_json(target / "manifest.json"), read_json(target / "metrics.json")
    assert folder.name == f"{manifest['completed'][:10]}_{manifest['title']}"
    files = text_of(folder)
    assert set(files) == {"README.md", "run.json"}
    readme = files["README.md"]
    for name in ("val_loss_before", "val_loss"):
        assert f"{metrics[name]:.4f}" in readme
    ntp = read_json(baseline / "metrics.json")["val_loss"]
    assert f"{ntp:.4f}" in readme
    assert f"{metrics['val_loss'] - ntp:+.4f}" in readme
    assert "n=1 seed" in readme
    assert "120 rows, 120 examples kept as they are; 106 trained on, 14 held out" in readme
    assert read_json(target / "run.json")["packages"]["torch"].split("+")[0] in readme
    assert "python train.py" in readme
    assert "data.path=x.json" in readme
    answers = [
        entry[key] for entry in read_json(target / "answers.json") for key in ("instruction", "response", "answer")
    ]
    examples = read_table(next(target.parent.glob("confidence-*")) / "examples.parquet")
    for text in files.values():
        assert str(tmp_path) not in text
        assert "/home" not in text
        assert not [x for x in (*answers, *examples["instruction"]) if x and len(x) > 12 and x in text]
    copy = read_json(folder / "run.json")
    assert copy["config"]["confidence"]["checkpoints"] == ["a", "c"]
    assert copy["config"]["root"] == Path(read_json(target / "run.json")["config"]["root"]).name
    assert copy["config"]["recipe"] == read_json(target / "run.json")["config"]["recipe"]


def test_the_index_has_a_line_more_and_nothing_is_written_over(runs, tmp_path):
    target, baseline = runs
    to = tmp_path / "experiments"
    to.mkdir()
    before = (ROOT / "experiments" / "README.md").read_text()
    (to / "README.md").write_text(before)
    folder = record_run(target, to, "mine")
    lines = (to / "README.md").read_text().splitlines()
    assert lines[:-1] == before.splitlines()
    assert lines[-1].startswith(f"| [{folder.name}]({folder.name}/README.md) | what does recipe sftmix (mu 0.2) with")
    assert len(re.findall(r"(?<!\\)\|", lines[-1])) == 4
    with pytest.raises(InputError, match="this record exists already"):
        record_run(target, to, "mine")
    assert (to / "README.md").read_text().splitlines() == lines
    record_run(baseline, to, "theirs")
    assert "recipe NTP with model tiny" in (to / "README.md").read_text().splitlines()[-1]
    assert sorted(f.name for f in to.iterdir() if f.is_dir()) == sorted(
        f"{folder.name[:10]}_{name}" for name in ("mine", "theirs")
    )


@pytest.mark.parametrize("shift", [-1.0, 1.0, 0.0])
def test_the_outcome_is_what_the_numbers_say(runs, tmp_path, shift):
    target, baseline = runs
    theirs = read_table(baseline / "val.parquet")
    noise = [0.001 * n * (-1) ** k for k, n in enumerate(theirs["num_tokens"])] if not shift else [0.0] * 14
    nll = [x + shift * n + e for x, n, e in zip(theirs["nll"], theirs["num_tokens"], noise, strict=True)]
    write_table(target / "val.parquet", {**theirs, "nll": nll})
    readme = (record_run(target, tmp_path / "to") / "README.md").read_text()
    (outcome,) = [line for line in readme.splitlines() if line.startswith("Outcome: ")]
    assert f"minus NTP {shift:+.4f} [" in outcome
    assert ": no clear difference, n=1 seed, 14 examples (14 examples, at least 20 are needed)" in outcome
    assert "14 examples" in outcome


def test_a_baseline_is_at_the_same_settings(runs):
    target, baseline = runs
    fields = read_json(target / "manifest.json")["fields"]
    assert find_baseline(target, fields) == baseline
    assert find_baseline(target, {**fields, "seed": 7}) is None
    assert find_baseline(target, {**fields, "recipe": {**fields["recipe"], "lr": 7.0}}) is None


def sweep_of(target, baseline):
    row = {
        "overrides": ["recipe.mixup.mu=0.2"],
        "target": target.name,
        "baseline": baseline.name,
        "confidence": None,
        "command": f"python train.py data.path={target.parent}/x.json recipe.mixup.mu=0.2",
        "state": "done",
        "cause": None,
        "log": None,
        "seconds": 1.0,
    }
    folder = target.parent / "sweeps" / "mu-0a1b2c3d"
    folder.mkdir(parents=True)
    content = {"name": "mu", "command": f"python train.py ablation=mu data.path={target.parent}/x.json"}
    waiting = {**row, "overrides": ["recipe.mixup.mu=0.5"], "target": "nowhere", "state": "waiting"}
    content |= {
        "common": [f"data.path={target.parent}/x.json"],
        "composed_by": [],
        "runs": [row, waiting],
        "shared": [],
    }
    write_json(folder / "manifest.json", content)
    return folder


def test_a_record_of_a_sweep_has_the_leaderboard_and_the_papers_table(runs, tmp_path):
    target, baseline = runs
    folder = record_sweep(sweep_of(target, baseline), tmp_path / "to")
    assert folder.name.endswith("_mu")
    files = text_of(folder)
    assert set(files) == {"README.md", "run.json", "sweep.json"}
    assert str(tmp_path) not in "".join(files.values())
    readme = files["README.md"]
    loss = read_json(target / "metrics.json")["val_loss"]
    assert f"1 of 2 runs done; lowest held-out loss {loss:.4f} (n=1): recipe.mixup.mu=0.2" in readme
    assert "Table 9" in readme
    assert "5.0600" in readme
    assert "x.json" in readme


def test_what_is_not_finished_has_no_record(runs, tmp_path):
    target, baseline = runs
    confidence = next(target.parent.glob("confidence-*"))
    for folder in (confidence, tmp_path):
        with pytest.raises(InputError, match="not a finished run"):
            record_run(folder, tmp_path / "to")
    with pytest.raises(InputError, match="none of its runs is finished"):
        record_sweep(sweep_of(tmp_path / "runs" / "none", baseline), tmp_path / "to")
    with pytest.raises(InputError, match=r"name=\.\./x: expected letters"):
        record_run(target, tmp_path / "to", "../x")
    assert not list((tmp_path / "to").glob("*"))


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("/home/me/my data/x.json", "x.json"),
        ("~/runs/", "runs"),
        ("data.path=/home/me/x.json", "data.path=x.json"),
        ("confidence.checkpoints=[/a/b,/c/d]", "confidence.checkpoints=[b,d]"),
        ("python train.py 'data.path=/a b/c d.json' root=/tmp/r", "python train.py 'data.path=/a b/c d.json' root=r"),
        ("tatsu-lab/alpaca", "tatsu-lab/alpaca"),
        ("https://arxiv.org/abs/2410.05248", "https://arxiv.org/abs/2410.05248"),
        ("data/select=longest", "data/select=longest"),
        ("runs/x", "runs/x"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(text, without):
    if "'" in text:
        assert "/a b" not in without_paths(text)
    else:
        assert without_paths({"k": [text]}) == {"k": [without]}


def test_records_py_says_where_it_wrote_and_what_is_wrong_in_one_line(runs, tmp_path):
    target, _ = runs

    def call(*arguments):
        command = [sys.executable, str(ROOT / "records.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = call(f"run={target}", f"to={tmp_path / 'to'}", "name=first")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"written: {tmp_path / 'to'}")
    for arguments, says in (
        ((f"run={target}", f"to={tmp_path / 'to'}", "name=first"), "this record exists already"),
        (("run=x", "sweep=y"), "config error: expected one of run=FOLDER and sweep=FOLDER"),
        (("rum=x",), "config error: rum=x: expected run=..., sweep=..., name=..., to=..."),
        (("sweep=nowhere",), "not a sweep, expected manifest.json in this folder"),
    ):
        done = call(*arguments)
        assert done.returncode == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert "run=runs/RUN" in call().stdout


def test_a_kill_before_the_index_is_written_loses_no_line(runs, tmp_path, monkeypatch):
    target, baseline = runs
    to = tmp_path / "to"
    with monkeypatch.context() as patch:
        whole = records._complete_index
        calls = []
        patch.setattr(
            records, "_complete_index", lambda to: whole(to) if not calls.append(1) and len(calls) < 2 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            record_run(target, to, "mine")
    (record,) = [f for f in to.iterdir() if f.is_dir()]
    assert not (to / "README.md").exists()
    (to / f".{record.name}.4194000").mkdir()
    with pytest.raises(InputError, match="this record exists already"):
        record_run(target, to, "mine")
    lines = (to / "README.md").read_text().splitlines()
    assert lines[-1].startswith(f"| [{record.name}]({record.name}/README.md) | what does recipe sftmix (mu 0.2) with")
    (to / "README.md").unlink()
    other = record_run(baseline, to, "theirs")
    assert len((to / "README.md").read_text().splitlines()) == len(lines) + 1
    assert lines[-1] in (to / "README.md").read_text()
    assert {f.name for f in to.iterdir()} == {"README.md", record.name, other.name}
    with pytest.raises(InputError, match="300 characters, expected at most"):
        record_run(target, to, "a" * 300)
