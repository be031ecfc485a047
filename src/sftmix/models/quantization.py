"""QLoRA: the frozen weights under the adapters in 4 bits (Dettmers et al. 2023, arXiv 2305.14314).

A weight is divided into blocks of 64 values. Each value is one of the 16 numbers of NF4 times the scale of its block.
The scales are quantized too ("double quantization", section 3): 8 bits each, in blocks of 256. bitsandbytes computes
both directions. The dequantized weights are rounded to bfloat16, the paper's compute type, under every precision of the
computation: so the base is the same model on a CPU and on a GPU, and `dequantized` is exactly the model that is tuned.

What a quantized layer holds are parameters and buffers, so moving, broadcasting and counting need no special case.
"""

import importlib
import logging
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftmix.errors import InputError

NF4 = "nf4"
BLOCK, SCALES_BLOCK = 64, 256  # Values that share a scale, and scales that share a scale
SETTINGS = {  # of `BitsAndBytesConfig` of transformers, which gives the same base
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": NF4,
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


@cache
def import_bitsandbytes() -> Any:
    """Return the module of bitsandbytes that quantizes, or None if the package is not installed.

    PEFT imports bitsandbytes too. On some CPUs bitsandbytes would download code from the hub by the package `kernels`
    and run it, so the first import is here, without that package.
    """
    if find_spec("bitsandbytes") is None:
        return None
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about the missing download
    kernels: Any = importlib.import_module("kernels") if find_spec("kernels") is not None else None
    get_kernel = getattr(kernels, "get_kernel", None)
    try:
        if get_kernel is not None:
            kernels.get_kernel = _refuse
        return importlib.import_module("bitsandbytes.functional")
    finally:
        if get_kernel is not None:
            kernels.get_kernel = get_kernel
        logger.setLevel(level)


def _refuse(*_: Any, **__: Any) -> None:
    raise ImportError("code of the hub is not run")


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is held in 4 bits, and dequantized in each forward and backward pass.

    Args:
        layer: The layer to copy. Its bias is shared. A layer on the meta device gives one on the meta device.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        functional, weight = import_bitsandbytes(), layer.weight.detach()
        if weight.is_meta:
            count = -(-weight.numel() // BLOCK)
            packed = weight.new_empty((-(-weight.numel() // 2), 1), dtype=torch.uint8)
            scales = weight.new_empty(count, dtype=torch.uint8)
            outer = weight.new_empty(-(-count // SCALES_BLOCK), dtype=torch.float32)
            codes, mean = (weight.new_empty(shape, dtype=torch.float32) for shape in ((256,), ()))
        else:
            packed, state = functional.quantize_4bit(
                weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type=NF4
            )
            scales, mean, outer, codes = state.absmax, state.offset, state.state2.absmax, state.state2.code
        self.weight = nn.Parameter(packed, requires_grad=False)  # two values in a byte
        self.scales = nn.Parameter(scales, requires_grad=False)  # one byte each; DDP would broadcast a buffer each pass
        for name, tensor in {"scales_mean": mean, "scales_scales": outer, "codes": codes}.items():
            self.register_buffer(name, tensor, persistent=False)

    def dequantized(self) -> Tensor:
        """Return the weight `[out in]` in bfloat16."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        of_scales = QuantState(self.scales_scales, blocksize=SCALES_BLOCK, code=self.codes, dtype=torch.float32)
        state = QuantState(
            self.scales.detach(),
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type=NF4,
            dtype=torch.bfloat16,
            offset=self.scales_mean,
            state2=of_scales,
        )
        return dequantize_4bit(self.weight.detach(), state)

    def forward(self, input: Tensor) -> Tensor:
        """Return what a linear layer with the dequantized weight returns, also under autocast."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        out = _DequantizedMatmul.apply(input.to(dtype), self)
        return out if self.bias is None else out + self.bias.to(dtype)


class _DequantizedMatmul(torch.autograd.Function):
    """input @ weight.T. The backward pass dequantizes the weight again, so that no copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(input, layer.dequantized().to(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantized().to(gradient.dtype), None


def quantize(causal_lm: Any) -> Any:
    """Quantize every linear layer of a model except the head, one after the other, and return the model."""
    for name, layer in _linear_layers(causal_lm):
        parent, _, child = name.rpartition(".")
        setattr(causal_lm.get_submodule(parent), child, QuantizedLinear(layer))
    return causal_lm


def dequantized(causal_lm: Any) -> Any:
    """Give a model the weights that it has when it is quantized, in their own type, and return the model."""
    for _, layer in _linear_layers(causal_lm):
        layer.weight.data = QuantizedLinear(layer).dequantized().to(layer.weight.dtype)
    return causal_lm


def _linear_layers(causal_lm: Any) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers of a model except the head, with their names.

    Raises:
        InputError: If the weights of a layer are in another form, which this module does not quantize.
    """
    from transformers.pytorch_utils import Conv1D

    family, head = causal_lm.config.model_type, causal_lm.get_output_embeddings()
    others = [name for name, module in causal_lm.named_modules() if isinstance(module, Conv1D)]
    others += [name for name, weight in causal_lm.named_parameters() if weight.dim() > 2]  # of experts, convolutions
    if others:
        raise InputError(
            f"model.quantization={NF4}: model family {family} has weights that are not of linear layers "
            f"({others[0]}), which cannot be quantized here: set model.quantization=null"
        )
    return [(n, m) for n, m in causal_lm.named_modules() if isinstance(m, nn.Linear) and m is not head]


def quantization_of(causal_lm: nn.Module) -> str | None:
    """Return the quantization of a model, or None."""
    return NF4 if any(isinstance(module, QuantizedLinear) for module in causal_lm.modules()) else None


def parameter_sizes(module: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Return the parameters that a model has without quantization, with the number of their values."""
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLinear)]
    packed, scales = {id(m.weight): m.in_features * m.out_features for m in layers}, {id(m.scales) for m in layers}
    return [(p, packed.get(id(p), p.numel())) for p in module.parameters() if id(p) not in scales]
