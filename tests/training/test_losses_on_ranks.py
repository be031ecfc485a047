"""Each loss under two processes and with LoRA has the gradient that its dense equations have in one process."""

import pytest

from forked import run_ranks
from modules import fit, small_data, small_module, weights_and_moments
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import LossSettings

LOSSES = {
    "dft beside re-weighting": {"mu": 0.5, "form": "reweight", "token_weight": "dft"},
    "ir-dro and smoothing beside the partner's label": {
        "mu": 0.5,
        "form": "labels",
        "label_smoothing": 0.1,
        "dro_temperature": 1.0,
    },
    "eaft beside Mixup": {"mu": 0.2, "token_weight": "eaft", "token_weight_power": 2.0},
}


def gradients(strategy, ranks, folder, implementation, *, lora):
    """Return the first moments of AdamW after one step under each loss. Some examples count half in NTP."""
    found = {}
    for name, fields in LOSSES.items():
        loss = LossSettings(**fields, implementation=implementation)
        module = small_module(ranks, strategy=strategy, lora=lora, dropout=0.0, loss=loss)
        data = small_data()
        data.weights = [1.0 if k % 3 else 0.5 for k in range(len(data.train))]
        arguments = {**trainer_arguments(strategy, "cpu", "32-true", ranks), "max_steps": 1}
        trainer = fit(module, data, folder, limit_val_batches=0, **arguments)
        state = weights_and_moments(module, trainer.optimizers[0])
        found |= {f"{name}: {key}": value for key, value in state.items() if key.startswith("exp_avg of")}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["", "lora"])
def test_two_ranks_have_the_gradient_of_the_dense_equations(tmp_path, lora):
    expected = gradients("single", SINGLE, tmp_path, "dense", lora=lora)
    assert all(value.abs().max() > 0 for name, value in expected.items() if "lora_A" not in name)
    for got in run_ranks(2, lambda ranks: gradients("ddp", ranks, tmp_path, "fused", lora=lora), tmp_path):
        assert got.keys() == expected.keys()
        errors = {k: (got[k] - v).abs().max() / max(v.abs().max(), 1e-6) for k, v in expected.items()}
        assert max(errors.values()) < 1e-4, max(errors, key=errors.get)
