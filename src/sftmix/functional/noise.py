"""NEFTune (Jain et al., arXiv 2310.05914): noise on the embeddings of a sequence, smaller for longer sequences."""

import torch
from jaxtyping import Float
from torch import Tensor


def neftune_noise(num_tokens: int, dim: int, *, alpha: float, generator: torch.Generator) -> Float[Tensor, "token dim"]:
    """Return alpha / sqrt(L d) times draws from Uniform(-1, 1), in float32 on the generator's device (Algorithm 1).

    Args:
        num_tokens: L, the number of tokens of the sequence without padding.
        dim: d, the size of the embeddings.
        alpha: Size of the noise. The noise of a whole sequence has an expected norm of about alpha / sqrt(3).
        generator: Source of the draws.
    """
    drawn = torch.empty(num_tokens, dim, dtype=torch.float32, device=generator.device)
    drawn.uniform_(-1, 1, generator=generator)
    return drawn * (alpha / (num_tokens * dim) ** 0.5)
