"""Schedule, parameter groups, checkpoint moments."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from sftmix.training.optim import adamw, checkpoint_steps, cosine_with_warmup


@pytest.mark.parametrize(("total", "ratio"), [(100, 0.1), (7, 0.1), (50, 0.0), (33, 0.35), (1, 0.1)])
def test_the_schedule_is_transformers_cosine_with_warmup(total, ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, -int(-total * ratio // 1), total)
    assert isinstance(theirs, LambdaLR)
    for step in range(total + 1):
        assert cosine_with_warmup(step, total, ratio) == pytest.approx(theirs.lr_lambdas[0](step), abs=1e-12)


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = adamw(model, lr=0.5, weight_decay=0.1, betas=(0.9, 0.95))
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
