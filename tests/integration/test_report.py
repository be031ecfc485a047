"""report.py as people call it: one report a call, nothing heavy imported for what is read from files."""

import csv
import io
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from paths import ROOT
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.sweep.manifest import read_config

HEAVY = ("torch", "lightning", "transformers", "datasets", "wandb", "rich")


@pytest.fixture
def run(light_programs, monkeypatch):
    """Run report.py; nothing heavy is imported."""
    monkeypatch.setenv("NO_COLOR", "1")

    def ran(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return light_programs.run("report.py", *arguments, cwd=cwd, heavy=HEAVY)

    return ran


def test_without_arguments_the_usage_is_printed(run, tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0
    for report in ("view=examples", "table=mu", "sweep=", "diff=[", "compare=[", "rerun=", "format="):
        assert report in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["table=mu", "sweep=x"],
            "config error: table=mu, sweep=x: expected one of view, table, sweep, diff, curves, compare, rerun",
        ),
        (
            ["model=tiny"],
            "config error: no report is requested: expected one of view, table, sweep, diff, curves, compare, rerun",
        ),
        (
            ["table=nosuch"],
            "config error: table=nosuch: no such table, expected one of main, main_v4, healthcare, ",
        ),
        (["table=mu", "format=pdf"], "config error: format=pdf: expected one of text, markdown, latex, csv"),
        (["table=mu", "n=4"], "config error: n=4: table= does not read it"),
        (["view=examples", "format=csv"], "config error: format=csv: view= does not read it"),
        (["view=nosuch"], "config error: view=nosuch: expected one of examples"),
        (["table=mu", "modell=tiny"], "config error: modell=tiny: no such key, did you mean model?"),
        (["ablation=mu"], "config error: ablation=mu: a report runs nothing, choose table=mu"),
        (["-m", "table=mu"], "config error: -m: a report runs nothing, choose table=NAME"),
        (["sweep=no such=x"], "error: sweep=no such=x: no such folder, here or in runs/sweeps"),
        (["diff=[a]"], "config error: diff=['a']: expected two runs"),
        (["diff=a"], "config error: diff=a: expected two runs"),
        (["compare=[a]"], "config error: compare=['a']: expected two runs, 'compare=[ONE,OTHER]'"),
        (["compare=[a,b,c]"], "config error: compare=['a', 'b', 'c']: expected two runs"),
        (["compare=[a b,c=d]"], "error: compare=a b: no such folder, here or in runs"),
        (["compare=[.,.]"], "error: compare="),
        (["diff=[a,b]", "compare=[a,b]"], "config error: diff=['a', 'b'], compare=['a', 'b']: expected one of view"),
        (["compare=[a,b]", "model=tiny"], "config error: model=tiny: compare= reads folders"),
        (["rerun=nosuch", "root=here"], "error: rerun=nosuch: no such folder, here or in here"),
        (["rerun=.", "model=tiny"], "config error: model=tiny: rerun= reads folders"),
        (["map=nosuch"], "error: map=nosuch: no such folder, here or in runs"),
        (["map=."], "error: "),
        (["map=.", "n=4"], "config error: n=4: map= does not read it"),
        (["rerun=.", "output=x.html"], "config error: output=x.html: rerun= does not read it"),
        (["figure=nosuch"], "config error: figure=nosuch: expected one of tsne, confidence"),
        (["figure=tsne"], "config error: figure=tsne: expected run=FOLDER, a run or a folder of scores"),
        (["figure=tsne", "run=a b"], "error: run=a b: no such folder, here or in runs"),
        (["figure=tsne", "run=a", "by=group"], "config error: by=group: figure=tsne does not read it"),
        (["figure=confidence", "run=a", "k=3"], "config error: k=3: figure=confidence does not read it"),
        (["figure=confidence", "run=a", "by=row"], "config error: by=row: expected one of group, source"),
        (["figure=confidence", "run=a", "model=tiny"], "config error: model=tiny: figure= reads folders"),
        (["figure=tsne", "run=a", "data=demo"], "config error: data=demo: figure= reads folders"),
        (["figure=tsne", "run=a", "at=end"], "config error: at=end: expected one of response, prompt"),
        (["figure=tsne", "run=a", "k=0"], "config error: k=0: expected a number of examples, at least 1"),
        (["topics=nosuch"], "error: topics=nosuch: no such folder, here or in runs"),
        (["topics=a", "run=b"], "config error: run=b: topics= does not read it"),
        (["topics=a", "labels=b.csv", "k=3"], "config error: labels=b.csv: the shares of labels read neither k= nor"),
        (["stability=a"], "config error: stability=a: expected a list of runs, 'stability=[ONE,OTHER]'"),
        (["stability=[random]"], "config error: stability=[random]: expected a run first"),
        (["stability=[a,b]"], "error: stability=a: no such folder, here or in runs"),
    ],
)
def test_what_cannot_be_reported_is_one_line(run, arguments, says, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "a report of files writes nothing"


@pytest.fixture
def swept(small_run, tmp_path):
    """A root with the small run as the one row of a sweep of Table 9."""
    config, plan = small_run
    root = tmp_path / "the runs"
    shutil.copytree(config.root, root)
    row = {
        "overrides": ["recipe.mixup.mu=0.2"],
        "target": plan.target.folder.name,
        "baseline": plan.baseline.folder.name,
        "confidence": plan.confidence.folder.name,
        "command": "python train.py model=tiny data=demo recipe.mixup.mu=0.2",
        "state": "done",
        "cause": None,
        "log": None,
        "seconds": 3.0,
    }
    folder = root / "sweeps" / "mu-0a1b2c3d"
    folder.mkdir(parents=True)
    content = {"name": "mu", "command": "python train.py ablation=mu", "common": ["model=tiny", "data=demo"]}
    write_json(folder / "manifest.json", {**content, "composed_by": [], "runs": [row], "shared": []})
    return root, plan


def test_the_table_and_the_leaderboard_of_a_real_run(run, swept):
    root, plan = swept
    done = run("table=mu", f"root='{root}'", "data=demo")
    assert done.returncode == 0, done.stderr
    loss = read_json(root / plan.target.folder.name / "metrics.json")["val_loss"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  mu 0.2") and f"{loss:.4f}" in line]
    ntp = read_json(root / plan.baseline.folder.name / "metrics.json")["val_loss"]
    assert f"{loss - ntp:+.4f} [" in line
    assert line.split()[-2:] == ["14", "1"], "held-out examples, seeds"
    assert "not run: python train.py ablation=mu model=tiny data=demo recipe.mixup.mu=0.1" in done.stdout
    assert "NOT THE PAPER'S: model tiny" in done.stdout
    for given in ("mu-0a1b2c3d", str(root / "sweeps" / "mu-0a1b2c3d")):
        done = run(f"sweep={given}", f"root='{root}'", "format=markdown")
        assert done.returncode == 0, done.stderr
        assert f"**{loss:.4f}**" in done.stdout


def test_two_runs_differ_in_their_recipe_and_a_run_has_a_command(run, swept):
    root, plan = swept
    target, baseline = (root / artifact.folder.name for artifact in (plan.target, plan.baseline))
    done = run(f"diff=[{target},{baseline}]")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "stage target reference" in lines
    assert f"confidence.folder {plan.confidence.folder.name} absent" in lines
    assert "config" not in lines, "one command made both"
    done = run(f"compare=[{target.name},{baseline.name}]", f"root='{root}'", "format=csv")
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader(io.StringIO(done.stdout))
    (row,) = [r for r in rows if r["row"].endswith("/ all") and r["column"] == "a minus b [95%]"]
    losses = [read_json(r / "metrics.json")["val_loss"] for r in (target, baseline)]
    assert float(row["value"]) == pytest.approx(losses[0] - losses[1])
    done = run(f"map={target.name}", f"root='{root}'")
    assert done.returncode == 0, done.stderr
    file = root / "reports" / f"{target.name}-map.html"
    assert done.stdout.startswith(f"{file}: 120 examples, 0.")
    assert file.read_text().startswith("<!doctype html>")
    done = run(f"map={baseline.name}", f"root='{root}'", f"output='{root / 'reference.html'}'")
    assert done.returncode == 0, done.stderr
    assert (root / "reference.html").is_file()
    done = run(f"rerun={target.name}", f"root='{root}'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("python train.py ")
    _, config = read_config(shlex.split(done.stdout.splitlines()[0])[3:])
    assert config.data.demo.num_examples == 120


def test_the_page_of_a_run_is_written_and_named(run, copy_of_run):
    plan, root = copy_of_run
    name = plan.target.folder.name
    done = run(f"page={name}", f"root={root}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{root}/reports/{name}.html: finished ")
    html = (root / f"reports/{name}.html").read_text()
    assert "python train.py --config-file" in html, "the command that repeats it"
    assert "<th>data.demo.num_examples</th><td>120</td>" in html[: html.index("<details>")], "not the default"
    elsewhere = run(f"page={name}", f"root={root}", f"output={root}/own.html")
    assert elsewhere.stdout.startswith(f"{root}/own.html: ")
    assert (root / "own-map.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["page=nosuch"], "error: page=nosuch: no such folder, here or in runs"),
        (["page=x", "seed=1"], "config error: seed=1: page= reads folders, settings of train.py have no effect"),
        (["page=x", "format=csv"], "config error: format=csv: page= does not read it"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_in_one_line(run, arguments, says):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip() == says
