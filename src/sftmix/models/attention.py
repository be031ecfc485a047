"""Implementations of attention: attention over packed sequences by torch, and the choice for a model and a GPU."""

import inspect
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sftmix.errors import InputError, first_line

VARLEN = "torch_varlen"
FLASH = ("flash_attention_3", "flash_attention_2")  # Separate packages, the fastest first
PROBE_LENGTHS = (5, 9, 3)
PROBE_TOLERANCE = 2e-2  # Largest error of outputs in bfloat16, relative to the largest output


def varlen_attention(
    module: Any,
    query: Float[Tensor, "batch head seq dim"],
    key: Float[Tensor, "batch kv_head seq dim"],
    value: Float[Tensor, "batch kv_head seq value_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch seq head value_dim"], None]:
    """Return causal attention within each sequence by torch's flash attention: an attention function of transformers.

    No mask is built, and nothing waits for the device. On a CPU, where torch has no such kernel, each sequence is
    computed by `scaled_dot_product_attention`.

    Args:
        sliding_window: Number of tokens that a token attends to, itself included; None for all tokens before it.
        options: `cu_seq_lens_q`, the boundaries of packed sequences from 0 to the number of tokens, and `max_length_q`,
            the length of the longest one. Without them, each line of the batch is one sequence.

    Raises:
        InputError: If the model needs dropout, a soft cap, or attention sinks, which this function does not have.
    """
    for name, option in (("attention dropout", "dropout"), ("a soft cap", "softcap"), ("attention sinks", "s_aux")):
        given = options.get(option)
        if given is not None and not (isinstance(given, int | float) and given == 0):
            raise InputError(f"trainer.attention={VARLEN}: the model has {name}, choose trainer.attention=sdpa")
    batch, _, length, dim = query.shape
    device, value_dim = query.device, value.shape[-1]
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if value_dim != dim:  # the kernel has one dimension for query, key and value
        value = F.pad(value, (0, dim - value_dim))
    q, k, v = (x.transpose(1, 2).reshape(batch * length, -1, dim) for x in (query, key, value))
    boundaries, longest = options.get("cu_seq_lens_q"), options.get("max_length_q")
    if boundaries is None or longest is None:
        boundaries = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=device)
        longest = length
    before = -1 if sliding_window is None or sliding_window >= longest else sliding_window - 1
    if device.type == "cpu":
        out = _attention_by_sequence(q, k, v, boundaries.tolist(), scaling, before)
    else:
        from torch.nn.attention.varlen import varlen_attn

        found = varlen_attn(
            q,
            k,
            v,
            boundaries,
            boundaries,
            longest,
            longest,
            scale=scaling,
            window_size=(before, 0),  # tokens before and after
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(found, Tensor)  # without auxiliary outputs
        out = found
    return out.view(batch, length, -1, dim)[..., :value_dim], None


def _attention_by_sequence(
    query: Float[Tensor, "token head dim"],
    key: Float[Tensor, "token kv_head dim"],
    value: Float[Tensor, "token kv_head dim"],
    boundaries: Sequence[int],
    scaling: float | None,
    before: int,
) -> Float[Tensor, "token head dim"]:
    """Return causal attention within each sequence.

    Args:
        before: Number of earlier tokens that a token attends to; -1 for all.
    """
    outputs = []
    for start, stop in pairwise(boundaries):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        mask = (distance >= 0) & (distance <= (stop if before < 0 else before))
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@cache
def has_varlen() -> bool:
    """Return whether this version of torch has flash attention over packed sequences with everything used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def register_varlen() -> None:
    """Let `set_attn_implementation("torch_varlen")` of transformers find `varlen_attention`.

    No mask function is registered, so transformers builds no mask and does not look for packed sequences.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def flash_candidates() -> list[str]:
    """Return the implementations that this GPU may have, the preferred one first, by transformers' own tests.

    Kernels that have to be downloaded are not among them: a run would execute code that nobody asked for.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    available = {
        "flash_attention_3": is_flash_attn_3_available() and torch.cuda.get_device_capability() >= (9, 0),
        "flash_attention_2": is_flash_attn_2_available(),
        VARLEN: has_varlen(),
    }
    return [name for name, is_there in available.items() if is_there]


def why_unusable(config: Any, device: torch.device) -> str | None:
    """Return why the implementation in a config cannot compute packed attention on a GPU, or None.

    Random queries, keys and values of the model's dimensions are compared with `varlen_attention` on the CPU, forward
    and backward.

    Args:
        config: Configuration of the text model.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    class Layer(torch.nn.Module):
        is_causal, training, layer_idx = True, True, 0

    layer = Layer()
    layer.config = config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    generator = torch.Generator().manual_seed(0)
    tokens = sum(PROBE_LENGTHS)
    shapes = [(1, n, tokens, dim) for n in (heads, kv_heads, kv_heads)]
    parts = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    boundaries = torch.tensor([0, *PROBE_LENGTHS]).cumsum(0).int()

    def attend(attention: Any, place: torch.device) -> list[Tensor]:
        here = [part.to(place).requires_grad_() for part in parts]
        cu, longest = boundaries.to(place), max(PROBE_LENGTHS)
        lengths = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": longest, "max_length_k": longest}
        out, _ = attention(layer, *here, None, scaling=dim**-0.5, **lengths)
        return [x.detach().float().cpu() for x in (out, *torch.autograd.grad(out.float().square().sum(), here))]

    try:
        found = attend(ALL_ATTENTION_FUNCTIONS[config._attn_implementation], device)
    except Exception as error:  # a kernel raises any type
        return first_line(error)
    expected = attend(varlen_attention, torch.device("cpu"))
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    if not max(errors) <= PROBE_TOLERANCE:  # also if it is NaN
        return f"its result differs by {max(errors):.2g} of the largest value"
    return None
