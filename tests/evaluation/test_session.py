"""What the suites of one call share: the devices."""

import pytest

from sftmix.errors import InputError
from sftmix.evaluation import session as sessions
from sftmix.evaluation.session import Session


@pytest.fixture(autouse=True)
def torch_for_gpus(monkeypatch):
    """The installed torch can use GPUs."""
    monkeypatch.setattr(sessions, "why_torch_has_no_gpu", lambda: None)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(sessions, "num_cores", lambda: 4)
    monkeypatch.setattr(sessions, "why_torch_has_no_gpu", lambda: None)


@pytest.mark.parametrize(
    ("gpus", "overrides", "number"),
    [
        (0, [], 1),
        (0, ["devices=2"], 2),
        (3, [], 3),
        (3, ["devices=2"], 2),
        (3, ["device=cpu"], 1),
        (3, ["device=cpu", "devices=4"], 4),
    ],
)
def test_all_gpus_are_used_unless_a_number_is_given(compose_eval, monkeypatch, gpus, overrides, number):
    monkeypatch.setattr(sessions, "count_gpus", lambda: gpus)
    assert Session(compose_eval("suite=medical", *overrides), None).num_devices == number


@pytest.mark.parametrize(
    ("gpus", "overrides", "line"),
    [
        (2, ["devices=3"], "devices=3: there are 2 visible GPUs"),
        (2, ["device=cpu", "devices=5"], "devices=5: there are 4 CPU cores"),
        (0, ["devices=5"], "devices=5: there are 4 CPU cores"),
        (0, ["device=cuda"], "device=cuda: no CUDA device is visible, expected at least one"),
    ],
)
def test_more_devices_than_there_are_are_refused(compose_eval, monkeypatch, gpus, overrides, line):
    monkeypatch.setattr(sessions, "count_gpus", lambda: gpus)
    with pytest.raises(InputError) as error:
        _ = Session(compose_eval("suite=medical", *overrides), None).num_devices
    assert str(error.value) == line


def test_no_device_is_refused_with_its_key(compose_eval):
    with pytest.raises(InputError, match=r"^devices=0: expected at least 1"):
        compose_eval("suite=medical", "devices=0")


def test_a_torch_without_the_gpus_of_the_driver_is_an_error(compose_eval, monkeypatch):
    monkeypatch.setattr(sessions, "count_gpus", lambda: 2)
    monkeypatch.setattr(sessions, "why_torch_has_no_gpu", lambda: "torch is a build for CPUs")
    with pytest.raises(
        InputError, match=r"^device=auto: GPUs are visible, but torch is a build for CPUs; or set device"
    ):
        _ = Session(compose_eval("suite=medical"), None).device
