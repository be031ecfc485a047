"""Devices of this machine."""

import pytest

from sftmix.distributed.device import count_gpus


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_not_counted(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert count_gpus() == 0


def test_gpus_are_counted_as_torch_counts_them():
    import torch

    assert count_gpus() == torch.cuda.device_count()
