"""Shards of one model over the ranks (FSDP2), and whole tensors from shards.

Only the first rank reads the weights, and sends them to the other ranks, which build the model on the meta device. So
the memory of a node holds the weights once. The root module of FSDP2 is the module whose forward uses the head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import init_device_mesh
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from sftmix.errors import InputError
from sftmix.models.language_model import SFTMixLM
from sftmix.models.quantization import quantization_of


def shard(lm: SFTMixLM, device: torch.device, *, bfloat16: bool, mesh: Any = None) -> None:
    """Split a model into one shard for each rank, and put the shard of this rank on its device.

    Args:
        lm: Model with weights on the first rank, on the meta device on the other ranks.
        bfloat16: Gather weights and compute in bfloat16. Weights are stored, and gradients reduced, in float32.
        mesh: The ranks. None: all of them.

    Raises:
        InputError: If the weights are quantized.
    """
    if quantization_of(lm) is not None:
        raise InputError("FSDP2 does not shard quantized weights, choose DDP or one process")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),)) if mesh is None else mesh
    is_first = dist.get_rank() == 0
    weights = dict(lm.state_dict()) if is_first else {}
    buffers = {name: buffer for name, buffer in lm.named_buffers() if is_first}
    lm.to("meta")
    lm.causal_lm.tie_weights()
    half, single = (torch.bfloat16, torch.float32) if bfloat16 else (None, None)  # of weights, of gradients
    policy = MixedPrecisionPolicy(half, single)
    # beside token ids the root receives lam and the weights of the loss, which keep their precision
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
    for name, buffer in lm.named_buffers():  # no state dict has some of them, such as rotary frequencies
        if is_first:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, src=0)


def reshard(lm: SFTMixLM) -> None:
    """Free weights that are still gathered after a forward pass without a backward pass, if the model is sharded."""
    if isinstance(lm, FSDPModule):
        lm.reshard()


def replicate(lm: SFTMixLM, device: torch.device) -> None:
    """Move a model to the device of each rank, with the weights of the first rank."""
    if dist.get_rank() == 0:
        lm.to(device)
    else:
        lm.to_empty(device=device)
        lm.causal_lm.tie_weights()
    for tensor in (*lm.parameters(), *lm.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered over the ranks if it is sharded. Every rank must call this function."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
