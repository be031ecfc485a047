"""A process that works on a stage, alone or with others."""

from typing import NamedTuple

import torch

from sftmix.distributed.device import Device
from sftmix.distributed.process_group import SINGLE, Ranks
from sftmix.distributed.stopping import StopRequest


class Worker(NamedTuple):
    """A process that works on a stage.

    Attributes:
        device: where the stage computes.
        ranks: this process among those that work on it.
        stop: whether it was asked to stop.
    """

    device: Device
    ranks: Ranks = SINGLE
    stop: StopRequest = StopRequest()

    @property
    def torch_device(self) -> torch.device:
        """The one of this process."""
        return torch.device("cuda", self.ranks.local_rank) if self.device.accelerator == "gpu" else torch.device("cpu")
