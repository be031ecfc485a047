"""One rank of the invariance check: what a variant changes, dropout, and the difference of two gradients."""

import pytest
import torch
from safetensors.torch import save_file

from sftmix.distributed.device import Device
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.invariance import gradients
from sftmix.stages.invariance.check import FIRST
from sftmix.stages.invariance.gradients import gradient_difference, without_dropout


def test_a_variant_sets_the_chunks_of_the_loss_and_the_micro_batches(compose, small_overrides, tmp_path, monkeypatch):
    taken = []

    def step_gradient(lm, data, file, loss, rank, **_):
        taken.append((loss, data))
        return 0.0

    monkeypatch.setattr(gradients, "step_gradient", step_gradient)
    context = RunContext(compose(*small_overrides, f"root={tmp_path}"))
    rank = RankContext(Device("cpu", "32-true", "padded"), SINGLE, StopRequest())
    for variant in (FIRST, FIRST._replace(chunk_bytes=1, num_micro_batches=2)):
        gradients.write_gradients(StageSpec("certify", tmp_path, variant._asdict()), context, rank)
    losses = [loss for loss, _ in taken]
    assert [loss.mu is None for loss in losses] == [True, False, True, False]
    assert [loss.chunk_bytes for loss in losses] == [None, None, 1, 1]
    whole, *_, cut = (len(data.steps()[0, 0].micro_batches) for _, data in taken)
    assert whole < cut


def test_dropout_of_layers_and_of_attention_is_switched_off():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    model[1].attention_dropout = 0.3
    without_dropout(model.train())
    assert (model[0].p, model[1].attention_dropout) == (0.0, 0.0)
    assert model.training


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"a": [1.0, 2.0], "b": [1e-9]}, 0.0),
        ({"a": [1.0, 2.5], "b": [1e-9]}, 0.25),
        ({"a": [1.0, 2.0], "b": [2e-9]}, 1e-9 / 2e-3),
        ({"a": [1.0, float("nan")], "b": [1e-9]}, float("inf")),
        ({"a": [1.0, 2.0]}, float("inf")),
    ],
)
def test_the_difference_of_gradients_by_hand(tmp_path, tensors, expected):
    """A tensor far below the largest value of all is compared with a thousandth of that value."""
    save_file({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1e-9])}, tmp_path / "expected")
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, tmp_path / "got")
    assert gradient_difference(tmp_path / "got", tmp_path / "expected") == pytest.approx(expected, rel=1e-5)
