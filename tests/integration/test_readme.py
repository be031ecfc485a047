"""What the README shows is true: its commands compose, its tree is the real one, its choices are all there."""

import csv
import re
import shlex
import warnings

import pytest
import torch

from paths import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip().removeprefix("$ ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("python train.py", "python report.py", "python eval.py"))
]


ENTRY = (
    "view=",
    "n=",
    "table=",
    "sweep=",
    "diff=",
    "rerun=",
    "map=",
    "output=",
    "figure=",
    "run=",
    "at=",
    "topics=",
    "stability=",
    "format=",
    "dashboard=",
    "compare=",
)  # report.py's own


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_and_checks(compose, compose_eval, command):
    if command.startswith("python eval.py"):
        compose_eval(*shlex.split(command)[2:])
        return
    arguments = [a for a in shlex.split(command)[2:] if a != "-m"]
    first_values = [re.sub(r"^([\w./@]+=[\w.]+),.*", r"\1", a) for a in arguments]
    compose(*(a for a in first_values if not a.startswith(ENTRY)))


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 8


def test_the_tree_is_the_real_one():
    tree = re.search(r"```\n(train\.py.*?)```", README, re.DOTALL).group(1)
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "src/sftmix" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), name
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    real = {p.name for p in (ROOT / "src/sftmix").iterdir() if p.name not in ("__init__.py", "__pycache__", "py.typed")}
    assert real - shown == {"errors.py"}


def test_every_choice_is_in_the_table(conf):
    for group in (
        *("model", "model/lora", "data", "data/select", "recipe"),
        *("optimizer", "scheduler", "callbacks", "logger", "debug", "trainer", "ablation", "experiment", "sweep"),
    ):
        row = re.search(rf"\| [^|]*`{group}`[^|]* \|(.*)\|", README).group(1)
        names = {f.stem for f in (conf / group).glob("*.yaml") if f.stem != "same" and not f.stem.startswith("_")}
        assert names <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("group", ["suite", "judge", "generate"])
def test_every_choice_of_an_evaluation_is_in_its_section(conf, group):
    section = README.partition("\n## Evaluate\n")[2].partition("\n## ")[0]
    for file in (conf / group).glob("*.yaml"):
        assert re.search(rf"\b{file.stem}\b", section), file.stem


SCRIPT = re.search(r"```python\n(import lightning as L\n.*?)```", README, re.DOTALL).group(1)
AS_NTP = [("sm.random_subsets(train.ids, seed=0)", "None"), ("mu=0.2", "mu=None")]


def run_script(folder, *changes):
    """Run the script of the README in a folder after some changes of its text; return its names."""
    from sftmix.training.fit import quiet_lightning

    script, names = SCRIPT, {}
    for old, new in changes:
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    with pytest.MonkeyPatch.context() as patch, quiet_lightning(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty")
        folder.mkdir(exist_ok=True)
        patch.chdir(folder)
        exec(script, names)
    return names


def logged(file):
    """Every metric of a metrics.csv by its name and step, without speeds and LearningRateMonitor's."""
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    found = {(name, int(row["step"])): float(v) for row in rows for name, v in row.items() if v and "/" in name}
    return {key: value for key, value in found.items() if not key[0].startswith(("perf/", "lr-"))}


def logged_rates(file):
    """The learning rates that LearningRateMonitor has logged, by step."""
    with file.open(newline="") as handle:
        rows = [(int(row["step"]), row.get("lr-AdamW/pg1")) for row in csv.DictReader(handle)]
    return {step: float(rate) for step, rate in rows if rate}


STEPS = 18
METRICS_FILE = "runs/plain/lightning_logs/version_0/metrics.csv"


@pytest.fixture(scope="module")
def of_script(tmp_path_factory):
    """The script as it is: its folder and its names."""
    folder = tmp_path_factory.mktemp("script")
    return folder, run_script(folder)


def test_the_script_has_at_most_40_lines():
    assert SCRIPT.count("\n") <= 40


@pytest.mark.parametrize("recipe", ["sftmix", "ntp"])
def test_the_script_has_the_losses_of_train_py(of_script, compose, tmp_path, recipe):
    from sftmix.stages.pipeline import run_pipeline

    settings = (f"recipe={recipe}", "data.demo.num_examples=200", "trainer=cpu", "trainer.log_every_n_steps=1")
    split = () if recipe == "ntp" else ("split.by=random",)
    plan = run_pipeline(compose(*settings, *split, f"root={tmp_path / 'runs'}", "trainer.progress_bar=false"))
    assert (plan.target.folder / "logs/curves.png").is_file()
    folder = of_script[0]
    if recipe == "ntp":
        run_script(tmp_path, *AS_NTP)
        folder = tmp_path
    expected, got = logged(plan.target.folder / "logs/metrics.csv"), logged(folder / METRICS_FILE)
    assert len([name for name, _ in expected if name == "train/loss"]) == STEPS
    assert len([name for name, _ in expected if name == "val/loss"]) == 3
    validated = {("val/loss", STEPS), ("val/perplexity", STEPS)}  # by trainer.validate after training
    by_subset = {key for key in expected if key[0].startswith("val/loss_")}  # the script names no subsets
    assert len(by_subset) == (6 if recipe == "sftmix" else 0)
    expected = {key: value for key, value in expected.items() if key not in by_subset}
    assert {key: value for key, value in got.items() if key not in validated} == pytest.approx(expected, rel=1e-6)


def test_the_script_validates_what_it_has_trained(of_script):
    folder, names = of_script
    last = logged(folder / METRICS_FILE)["val/loss", STEPS - 1]
    assert names["trainer"].callback_metrics["val/loss"].item() == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize(
    "step", [pytest.param(4, marks=pytest.mark.slow), 12, pytest.param(18, marks=pytest.mark.slow)]
)
def test_the_script_interrupted_and_continued_ends_with_the_same_weights(of_script, tmp_path, step):
    import lightning as L

    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                raise InterruptedError

    folder, names = of_script
    with pytest.raises(InterruptedError):
        L.Interrupt = Interrupt
        run_script(tmp_path / "first", ("callbacks = [", "callbacks = [L.Interrupt(), "))
    del L.Interrupt
    ckpt_path = str(tmp_path / "last.ckpt")
    again = run_script(tmp_path / "second", ("fit(module, data)", f"fit(module, data, ckpt_path={ckpt_path!r})"))
    expected, got = names["module"].state_dict(), again["module"].state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    rates = logged_rates(tmp_path / "second" / METRICS_FILE)
    assert rates == {k: lr for k, lr in logged_rates(folder / METRICS_FILE).items() if k >= step}
