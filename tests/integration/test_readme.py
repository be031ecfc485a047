"""What the README shows is true: its commands compose, its tree is the real one, its choices are all there."""

import re
import shlex

import pytest

from paths import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip().removeprefix("$ ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("python train.py", "python report.py", "python eval.py"))
]


ENTRY = ("view=", "n=", "table=", "sweep=", "diff=", "rerun=", "format=", "dashboard=", "compare=")  # report.py's own


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
