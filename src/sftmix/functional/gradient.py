"""Appendix A: the gradient of the Mixup term at the head."""

from jaxtyping import Float
from torch import Tensor


def mixup_head_gradient(
    hidden: Float[Tensor, " dim"], weight: Float[Tensor, "vocab dim"], labels: Float[Tensor, " vocab"]
) -> Float[Tensor, "vocab dim"]:
    """D H / d W of one mixed position, z~ (sigma(z~ W) - y~), laid out as W is here (one row a vocabulary entry).

    Since sigma(lam z_c W + (1 - lam) z_u W) is not lam sigma(z_c W) + (1 - lam) sigma(z_u W), this is no weighted sum
    of the next-token gradients of the two examples: Mixup adds what re-weighting examples cannot.
    """
    residual = (weight @ hidden).softmax(dim=-1) - labels
    return residual.outer(hidden)
