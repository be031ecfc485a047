"""NEFTune (Jain et al., arXiv 2310.05914): noise on the embeddings of a sequence, the less the longer it is."""

import torch
from jaxtyping import Float
from torch import Tensor


def neftune_noise(num_tokens: int, dim: int, *, alpha: float, generator: torch.Generator) -> Float[Tensor, "token dim"]:
    """Noise on one sequence: alpha / sqrt(L d) times draws from Uniform(-1, 1), in float32 (their Algorithm 1).

    Args:
        num_tokens: L, the tokens of the sequence without padding.
        dim: d, the width of the embeddings.
        alpha: sqrt(3) times the norm that the noise of a whole sequence has on average, whatever L and d are.
        generator: what is drawn from; the noise lies on its device.
    """
    drawn = torch.empty(num_tokens, dim, dtype=torch.float32, device=generator.device)
    drawn.uniform_(-1, 1, generator=generator)
    return drawn * (alpha / (num_tokens * dim) ** 0.5)
