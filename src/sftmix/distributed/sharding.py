"""One model in shards over the ranks (FSDP2), and the whole of it again where it is written.

Weights come from the first rank alone, which has read them: the others build the model without any, so that a node's
memory holds it once. The module that is sharded as the root is the one whose forward reads the head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import init_device_mesh
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from sftmix.models.language_model import SFTMixLM


def shard(lm: SFTMixLM, mesh: Any, device: torch.device, *, bfloat16: bool) -> None:
    """Cut a model into shards, one a rank, and put this rank's on its device.

    Args:
        lm: with its weights on the first rank, on the meta device on the others.
        mesh: of all ranks, one-dimensional.
        device: of this rank.
        bfloat16: compute and gather weights in bfloat16; gradients are reduced and weights kept in float32.
    """
    is_first = dist.get_rank() == 0
    weights = dict(lm.state_dict()) if is_first else {}
    buffers = {name: buffer for name, buffer in lm.named_buffers() if is_first}
    lm.to("meta")
    lm.causal_lm.tie_weights()
    half, single = (torch.bfloat16, torch.float32) if bfloat16 else (None, None)
    policy = MixedPrecisionPolicy(half, single)
    # what the root is given beside token ids is lambda and the weights of the loss, which stay as exact as they are
    of_root = MixedPrecisionPolicy(half, single, cast_forward_inputs=False)
    for block in lm.blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=of_root)
    for method in ("response_nll", "logits"):
        register_fsdp_forward_method(lm, method)
    lm.to_empty(device=device)
    lm.causal_lm.tie_weights()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(lm, weights, options=options)
    for name, buffer in lm.named_buffers():  # those that no state holds, too: the frequencies of rotary positions
        if is_first:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, src=0)


def shard_over_all(lm: SFTMixLM, device: torch.device, *, bfloat16: bool) -> None:
    """Cut a model into shards over all ranks, without a trainer; the arguments are those of `shard`."""
    shard(lm, init_device_mesh(device.type, (dist.get_world_size(),)), device, bfloat16=bfloat16)


def reshard(lm: SFTMixLM) -> None:
    """Part again what a forward without a backward has left whole on every rank, where the model is in shards."""
    if isinstance(lm, FSDPModule):
        lm.reshard()


def replicate(lm: SFTMixLM, device: torch.device) -> None:
    """Give every rank the first one's weights, on its own device."""
    if dist.get_rank() == 0:
        lm.to(device)
    else:
        lm.to_empty(device=device)
        lm.causal_lm.tie_weights()
    for tensor in (*lm.parameters(), *lm.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered over the ranks where it is in shards: every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
