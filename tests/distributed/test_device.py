"""Devices of this machine."""

from types import SimpleNamespace

import pytest

from sftmix.distributed import device
from sftmix.distributed.device import count_gpus, why_torch_has_no_gpu


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_not_counted(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert count_gpus() == 0


def test_gpus_are_counted_as_torch_counts_them():
    import torch

    assert count_gpus() == torch.cuda.device_count()
    assert device._cuda_of_torch() == torch.version.cuda


def driver_of(version):
    """A driver whose newest CUDA is `version`, such as 12040."""

    def cuDriverGetVersion(number):
        number._obj.value = version
        return 0

    return SimpleNamespace(cuDriverGetVersion=cuDriverGetVersion)


@pytest.mark.parametrize(
    ("built", "supported", "says"),
    [
        (None, 12040, "is a build for CPUs, install one for CUDA"),
        (
            "13.0",
            12040,
            "is a build for CUDA 13.0 and the driver supports CUDA up to 12.4, update the driver or install",
        ),
        ("12.8", 12040, None),  # versions of one major number work together
        ("12.6", 13000, None),
    ],
)
def test_a_torch_that_cannot_use_the_gpus_is_named(monkeypatch, built, supported, says):
    monkeypatch.setattr(device, "_cuda_of_torch", lambda: built)
    monkeypatch.setattr(device, "_driver", lambda: driver_of(supported))
    why = why_torch_has_no_gpu()
    assert (why is None) if says is None else (says in why)
