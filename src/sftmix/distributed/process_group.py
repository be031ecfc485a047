"""The process group of the ranks that train one model. Values are sent as tensors or as JSON, never as pickles."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sftmix.distributed.ranks import Ranks
from sftmix.errors import InputError, first_line

PATIENCE = timedelta(hours=2)  # other ranks wait while the first one writes and checks a large model, over gloo
GPU_PATIENCE = timedelta(minutes=20)  # no rank waits that long in a collective operation of GPUs unless one has failed
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # gloo sends the tensors that are not on a GPU

_hosts: list[Any] = []  # the group of gloo beside that of NCCL


def _host_group() -> Any:
    """Return the group over which ranks wait for each other on the host; None for the default group."""
    return _hosts[0] if _hosts else None


def init_process_group(ranks: Ranks, device: str, meeting: str | dist.Store, timeout: float) -> None:
    """Wait for the other ranks and make the process group of all ranks, unless it exists.

    Args:
        device: cpu or cuda.
        meeting: Where the ranks find each other: the path of a file (one node), host:port (several nodes), or a store.
        timeout: Seconds to wait for the other ranks.

    Raises:
        InputError: If the other ranks cannot be reached in time.
    """
    if dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    try:
        if isinstance(meeting, dist.Store):
            store = meeting
        elif ranks.num_nodes == 1:
            store = dist.FileStore(meeting, ranks.world_size)
        else:
            host, _, port = meeting.rpartition(":")
            store = dist.TCPStore(host, int(port), ranks.world_size, ranks.is_first, timedelta(seconds=timeout))
    except dist.DistError as error:
        raise InputError(
            f"trainer.rdzv_endpoint={meeting}: {ranks.world_size} processes did not find each other there within "
            f"trainer.rdzv_timeout={timeout:g} seconds ({first_line(error)})"
        ) from None
    patience = PATIENCE if device == "cpu" else GPU_PATIENCE
    try:
        dist.init_process_group(
            BACKENDS[device], store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=patience
        )
        if device == "cuda":
            _hosts.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    except RuntimeError as error:
        if ranks.num_nodes == 1:
            raise
        raise InputError(
            f"trainer.num_nodes={ranks.num_nodes}: the nodes cannot connect to each other ({first_line(error)}); set "
            f"GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface between them, as `ip addr` names it"
        ) from None


def destroy_process_group() -> None:
    """End the process group, if there is one."""
    _hosts.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank has called this."""
    all_reduce_sum([0.0])


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Return the sum of each number over the ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total, group=_host_group())
    return total.tolist()


def all_reduce_sum_(tensor: Tensor) -> None:
    """Sum a tensor over the ranks in place, on its device."""
    if dist.is_initialized():
        dist.all_reduce(tensor)


def all_gather_object(value: Any) -> list[Any]:
    """Return the values of all ranks in the order of the ranks. They are sent as JSON."""
    if not dist.is_initialized():
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([len(own)])
    dist.all_reduce(size, dist.ReduceOp.MAX, group=_host_group())
    padded = torch.zeros(int(size) + 8, dtype=torch.uint8)
    padded[:8] = torch.frombuffer(bytearray(len(own).to_bytes(8, "little")), dtype=torch.uint8)
    padded[8 : 8 + len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded, group=_host_group())
    texts = [bytes(part.tolist()) for part in parts]
    return [json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")]) for text in texts]


def broadcast_object(value: Any) -> Any:
    """Return the value of the first rank, which is sent as JSON."""
    return all_gather_object(value)[0]
