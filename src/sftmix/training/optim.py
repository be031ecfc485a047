"""AdamW with its parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.optim import AdamW

Settings = TypeVar("Settings")

SHAPES = {  # f(x) of `lr_factor`
    "cosine": lambda x: max(0.0, 0.5 * (1.0 + math.cos(math.pi * x))),
    "linear": lambda x: max(0.0, 1.0 - x),
    "constant": lambda x: 1.0,
}


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of AdamW and of gradient clipping."""

    lr: float  # Peak learning rate
    weight_decay: float = 0.1  # Of matrices. Norms and biases do not decay
    betas: tuple[float, float] = (0.9, 0.999)  # Decay rates of the two moments
    max_grad_norm: float = 1.0  # Gradients are scaled down to this norm


@dataclass(frozen=True)
class SchedulerSettings:
    """Settings of the learning rate schedule."""

    shape: str = "cosine"  # Shape after the warm-up: a key of SHAPES
    warmup_ratio: float = 0.1  # Fraction of the steps in which the learning rate rises
    min_lr_ratio: float = 0.0  # Fraction of the peak at which the schedule ends


def settings_of(kind: type[Settings], given: Settings | Mapping[str, Any]) -> Settings:
    """Return settings that were given as such, or as a dictionary of their fields."""
    if isinstance(given, kind):
        return given
    assert isinstance(given, Mapping)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def lr_factor(step: int, total_steps: int, scheduler: SchedulerSettings) -> float:
    """Return the factor on the peak learning rate at an optimizer step: linear warm-up, then the schedule's shape.

    With T steps of which the first W warm up, the factor of step k = 0, ..., T - 1 is (k + 1) / W if k < W. After the
    warm-up it is m + (1 - m) f((k - W) / (T - W)), with m the `min_lr_ratio` and f(x) = (1 + cos(pi x)) / 2 for cosine,
    1 - x for linear, and 1 for constant.

    transformers' `get_cosine_schedule_with_warmup` has k / W in the warm-up, so its first step trains nothing. Here the
    warm-up is counted from step 1: each step has the factor that transformers has one step later, and the last step of
    the warm-up has the peak. The shape after the warm-up is the one of transformers. Cosine and linear reach m at step
    T, which is not taken, so every step has a learning rate above 0.

    Args:
        step: Steps already taken, k.
        total_steps: Steps of the whole run, T.
        scheduler: Shape, W / T (W is rounded up to whole steps) and m.

    Raises:
        ValueError: If the schedule has an unknown shape.
    """
    warmup = math.ceil(total_steps * scheduler.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if scheduler.shape not in SHAPES:
        raise ValueError(f"scheduler {scheduler.shape}: expected one of {', '.join(SHAPES)}")
    factor = SHAPES[scheduler.shape]((step - warmup) / max(1, total_steps - warmup))
    return scheduler.min_lr_ratio + (1.0 - scheduler.min_lr_ratio) * factor


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups: matrices decay; norms and biases, of one dimension, do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, settings: OptimizerSettings) -> AdamW:
    """Return AdamW over the parameter groups of a model, in torch's fused kernel if the device has one."""
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    groups = parameter_groups(model, settings.weight_decay)
    return AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)


def checkpoint_steps(total_steps: int, num_checkpoints: int) -> list[int]:
    """Return after which steps the C checkpoints are saved: ceil(T k / C) for k = 1..C (paper, section 3.2).

    Raises:
        ValueError: If there are fewer steps than checkpoints.
    """
    if total_steps < num_checkpoints:
        raise ValueError(f"{total_steps} steps for {num_checkpoints} checkpoints")
    return [-(-total_steps * k // num_checkpoints) for k in range(1, num_checkpoints + 1)]
