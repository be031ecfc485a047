"""The language-model head W of section 3, with what real models put around it."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class LMHead(NamedTuple):
    """The map from last hidden states to logits.

    Attributes:
        weight: W, one row a vocabulary entry.
        bias: added to the scaled product, or None.
        scale: factor on the logits (1 for most families).
        softcap: Gemma-2's final soft cap, logits -> cap * tanh(logits / cap), or None.
    """

    weight: Float[Tensor, "vocab dim"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None


def logits(hidden: Float[Tensor, "row dim"], head: LMHead) -> Float[Tensor, "row vocab"]:
    """Logits of each row in at least single precision: Z W of section 3, then scale, bias and soft cap."""
    raw = F.linear(hidden, head.weight)
    raw = raw if raw.dtype.itemsize >= 4 else raw.float()
    raw = raw * head.scale
    if head.bias is not None:
        raw = raw + head.bias
    return raw if head.softcap is None else head.softcap * (raw / head.softcap).tanh()
