"""In which fields two runs differ: all of them, and no others."""

import pytest

from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.reports.diff import diff

RECORD = {
    "command": ["train.py"],
    "config": {"seed": 0, "recipe": {"mixup": {"mu": 0.1}, "betas": [0.9, 0.999]}, "data": {"demo": None}},
    "census": {"kept": 10, "dropped": {}},
    "environment": ["numpy==2.0", "torch==2.6"],
    "packages": {"torch": "2.6"},
    "git": {"commit": "a", "changed": False},
    "hardware": {"cpu": "one", "cores": 2, "gpus": []},
    "seconds": 1.0,
}


@pytest.fixture
def two(tmp_path):
    """A function that writes two passports, one of them changed."""

    def written(**changes):
        for name, record in (("a", RECORD), ("b", {**RECORD, **changes})):
            (tmp_path / name).mkdir(exist_ok=True)
            write_json(tmp_path / name / "run.json", record)
        return diff(tmp_path / "a", tmp_path / "b")

    return written


def test_nothing_differs(two):
    assert two().splitlines()[-1] == "nothing differs in config, data, packages, git, hardware"


def test_time_and_command_are_no_difference(two):
    text = two(seconds=2.5, command=["train.py", "seed=0"])
    assert "nothing differs in config" in text
    assert text.splitlines()[-2:] == ['  command  ["train.py"]  ["train.py", "seed=0"]', "  seconds  1.0           2.5"]


def test_fields_are_grouped_the_configuration_first(two):
    text = two(
        config={"seed": 1, "recipe": {"mixup": None, "betas": [0.9, 0.999]}, "data": {"demo": {"seed": 0}}},
        environment=["numpy==2.1", "wandb==0.1", "torch==2.6"],
        git={"commit": "b", "changed": False},
        hardware={"cpu": "one", "cores": 2, "gpus": ["H100"]},
    )
    lines = [" ".join(line.split()) for line in text.splitlines() if line]
    assert lines[2:] == [
        "config",
        "seed 0 1",
        "recipe.mixup.mu 0.1 absent",
        "data.demo null absent",
        "recipe.mixup absent null",
        "data.demo.seed absent 0",
        "packages",
        "environment.numpy 2.0 2.1",
        "environment.wandb absent 0.1",
        "git",
        "commit a b",
        "hardware",
        'gpus [] ["H100"]',
    ]


def test_what_a_file_holds_cannot_move_the_cursor(two):
    assert "\x1b" not in two(config={"\x1b[2J": "\x1b[31m"})


def test_a_missing_or_torn_passport_is_one_line(tmp_path, two):
    two()
    (tmp_path / "b" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"b/run\.json: is not JSON .*expected a JSON file"):
        diff(tmp_path / "a", tmp_path / "b")
