"""Commands that are printed to be pasted."""

import sys

import pytest

from sftmix.quoting import train_script


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("train.py", "train.py"),
        ("../clone/report.py", "../clone/train.py"),
        ("/opt/sftmix/train.py", "/opt/sftmix/train.py"),
        ("pytest", "train.py"),
    ],
)
def test_train_py_is_named_as_it_is_called_from_the_current_folder(monkeypatch, called, expected):
    monkeypatch.setattr(sys, "argv", [called])
    assert train_script() == expected


def test_train_py_in_the_current_folder_is_named_without_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "report.py")])
    assert train_script() == "train.py"
