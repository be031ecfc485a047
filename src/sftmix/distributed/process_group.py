"""A process among those that train one model together, and the little that they tell each other.

Figures travel as numbers and as JSON, never as pickles.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sftmix.errors import InputError

PATIENCE = timedelta(hours=2)  # others wait while the first rank writes and checks a large model
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # what is no tensor of a GPU goes by gloo


class Ranks(NamedTuple):
    """A process among others.

    Attributes:
        rank: its number over all nodes.
        local_rank: its number on its node, which is that of its device.
        world_size: processes over all nodes.
        num_local: processes of a node.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    num_local: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return self.world_size // self.num_local


SINGLE = Ranks()


def init_process_group(ranks: Ranks, device: str, meeting: str, timeout: float) -> None:
    """Wait for the other ranks and make the process group of all.

    Args:
        ranks: this process.
        device: cpu or cuda.
        meeting: where they meet: the path of a file on one node, host:port over several.
        timeout: seconds to wait for them.

    Raises:
        InputError: they do not meet.
    """
    if device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    try:
        if ranks.num_nodes == 1:
            store: dist.Store = dist.FileStore(meeting, ranks.world_size)
        else:
            host, _, port = meeting.rpartition(":")
            store = dist.TCPStore(host, int(port), ranks.world_size, ranks.is_first, timedelta(seconds=timeout))
    except dist.DistError as error:
        cause = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"trainer.rdzv_endpoint={meeting}: {ranks.world_size} processes did not meet there within "
            f"trainer.rdzv_timeout={timeout:g} seconds ({cause})"
        ) from None
    dist.init_process_group(
        BACKENDS[device], store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=PATIENCE
    )


def destroy_process_group() -> None:
    """End the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    all_reduce_sum([0.0])


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Each of some numbers added up over the ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.tolist()


def all_reduce_sum_(tensor: Tensor) -> None:
    """Add up a tensor over the ranks in place, on its own device."""
    if dist.is_initialized():
        dist.all_reduce(tensor)


def all_gather_object(value: Any) -> list[Any]:
    """What each rank has, as JSON carries it, in the order of the ranks."""
    if not dist.is_initialized():
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([len(own)])
    dist.all_reduce(size, dist.ReduceOp.MAX)
    padded = torch.zeros(int(size) + 8, dtype=torch.uint8)
    padded[:8] = torch.frombuffer(bytearray(len(own).to_bytes(8, "little")), dtype=torch.uint8)
    padded[8 : 8 + len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    texts = [bytes(part.tolist()) for part in parts]
    return [json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")]) for text in texts]


def broadcast_object(value: Any) -> Any:
    """What the first rank has, as JSON carries it: decisions are made once."""
    return all_gather_object(value)[0]
