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
