"""The schedule, the parameter groups, and the steps of the checkpoints."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from sftmix.training.optim import OptimizerSettings, SchedulerSettings, adamw, checkpoint_steps, lr_factor

THEIRS = {
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, _: get_constant_schedule_with_warmup(optimizer, warmup),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("least", [0.0, 0.25])
@pytest.mark.parametrize(
    ("total", "ratio"), [(100, 0.1), (7, 0.1), (50, 0.0), (33, 0.35), (3, 0.9), (1, 0.1), (1, 0.0)]
)
def test_the_schedule_is_transformers_with_the_warmup_counted_from_step_1(name, least, total, ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = -int(-total * ratio // 1)
    scheduler = THEIRS[name](optimizer, warmup, total)
    assert isinstance(scheduler, LambdaLR)
    theirs = scheduler.lr_lambdas[0]
    expected = [theirs(step + 1) if step < warmup else theirs(step) for step in range(total)]
    if warmup == total:
        expected[-1] = 1.0  # transformers is past the end of its schedule
    expected = [x if step < warmup else least + (1 - least) * x for step, x in enumerate(expected)]
    got = [lr_factor(step, total, SchedulerSettings(name, ratio, least)) for step in range(total)]
    assert got == pytest.approx(expected, abs=1e-12)


def test_the_schedule_of_eight_steps_by_hand():
    got = [lr_factor(step, 8, SchedulerSettings(warmup_ratio=0.25)) for step in range(8)]
    cosine = [
        1.0,
        (1 + 3**0.5 / 2) / 2,
        0.75,
        0.5,
        0.25,
        (1 - 3**0.5 / 2) / 2,
    ]  # (1 + cos x) / 2, x = 0, 30, ..., 150 degrees
    assert got == pytest.approx([0.5, 1.0, *cosine])


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("name", THEIRS)
def test_no_step_has_a_learning_rate_of_zero(name, total, ratio):
    schedule = SchedulerSettings(name, ratio)
    assert min(lr_factor(step, total, schedule) for step in range(total)) > 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="scheduler exponential: expected one of cosine, linear, constant"):
        lr_factor(5, 10, SchedulerSettings("exponential"))


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = adamw(model, OptimizerSettings(lr=0.5, weight_decay=0.1, betas=(0.9, 0.95)))
    decayed, plain = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.95)


def test_checkpoints_fall_at_equal_parts_of_the_run():
    assert checkpoint_steps(10, 5) == [2, 4, 6, 8, 10]
    assert checkpoint_steps(11, 3) == [4, 8, 11]
    assert checkpoint_steps(3, 3) == [1, 2, 3]
    with pytest.raises(ValueError, match="2 steps for 3 checkpoints"):
        checkpoint_steps(2, 3)
