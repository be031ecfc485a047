"""Losses of responses that the steps of training compute anyway, recorded by example."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sftmix.data.collate import MicroBatch
from sftmix.distributed.process_group import all_gather_object
from sftmix.functional.confidence import sum_by_example


class RecordedLosses:
    """The nll of each response of the steps since the record began, before the update of the step that computed it.

    The losses are sums over the tokens of a response in float64, so they depend on the number of ranks and on the
    micro-batches only by the rounding of the model's own computation. A step does not wait for the device: losses stay
    on it until `gather`.

    Attributes:
        nll: Nll of each gathered response in nats, by the index of the example to train on.
    """

    def __init__(self) -> None:
        self.nll: dict[int, float] = {}
        self._pending: list[tuple[tuple[int, ...], Tensor]] = []

    def add(self, micro: MicroBatch, nll: Tensor) -> None:
        """Keep the nll of each response of a micro-batch, on its device.

        Args:
            nll: Nll of each token of the micro-batch, without smoothing and weights.
        """
        if micro.examples:
            responses = slice(micro.num_response_positions)
            of_position = micro.example_of_position[responses]
            sums = sum_by_example(nll.detach()[responses], of_position, micro.num_examples)
            self._pending.append((micro.examples, sums))

    def gather(self) -> dict[int, float]:
        """Read the losses from the devices of all ranks. Every rank calls this method. Return `nll`."""
        members = [example for examples, _ in self._pending for example in examples]
        values = torch.cat([sums for _, sums in self._pending]).tolist() if self._pending else []
        self._pending = []
        for of_rank in all_gather_object([members, values]):
            self.nll.update(zip(*of_rank, strict=True))
        return self.nll

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of all ranks. Every rank calls this method, and waits for its device."""
        self.gather()
        return as_state(self.nll)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the record of an earlier process."""
        self.nll = of_state(state_dict)
        self._pending = []


def as_state(nll: Mapping[int, float]) -> dict[str, Any]:
    """Return losses by example as a training state holds them."""
    return {"examples": list(nll), "nll": list(nll.values())}


def of_state(state_dict: Mapping[str, Any]) -> dict[int, float]:
    """Undo `as_state`."""
    return dict(zip(state_dict["examples"], state_dict["nll"], strict=True))
