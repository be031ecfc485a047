"""AdamW, its parameter groups, and the schedule as a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW


def cosine_with_warmup(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Return the factor on the peak learning rate at an optimizer step: linear warm-up, then a half cosine.

    With T steps of which the first W warm up, the factor of step k = 0, ..., T - 1 is (k + 1) / W if k < W, else
    (1 + cos(pi (k - W) / (T - W))) / 2.

    transformers' `get_cosine_schedule_with_warmup` has k / W in the warm-up, so its first step trains nothing. Here the
    warm-up is counted from step 1: its values are those of transformers one step later, and its last step has the peak.
    The cosine is that of transformers. It reaches 0 at step T, which is not taken, so every step has a learning rate
    above 0.

    Args:
        step: Steps already taken, k.
        total_steps: Steps of the whole run, T.
        warmup_ratio: W / T. W is rounded up to whole steps.
    """
    warmup = math.ceil(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; norms and biases, which have one dimension, do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, *, lr: float, weight_decay: float, betas: Iterable[float]) -> AdamW:
    """AdamW over a model's parameter groups, in torch's fused kernel where the device has one."""
    first, second = betas
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return AdamW(parameter_groups(model, weight_decay), lr=lr, betas=(first, second), fused=fused)


def checkpoint_steps(total_steps: int, num_checkpoints: int) -> list[int]:
    """After which steps the C checkpoints are saved: ceil(T k / C) for k = 1..C (section 3.2), the last at the end.

    Raises:
        ValueError: fewer steps than checkpoints.
    """
    if total_steps < num_checkpoints:
        raise ValueError(f"{total_steps} steps for {num_checkpoints} checkpoints")
    return [-(-total_steps * k // num_checkpoints) for k in range(1, num_checkpoints + 1)]
