"""The weights of the examples of each step in IR-DRO (arXiv 2402.14270), in training."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.distributed.process_group import all_reduce_sum_
from sftmix.distributed.sharding import reshard
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import dro_weights
from sftmix.models.language_model import SFTMixLM
from sftmix.training.recorded_losses import RecordedLosses, as_state, of_state


class DroWeights:
    """Multiplies the weights of the tokens of a step by those of IR-DRO (`dro_weights`).

    The factor of a token is w_i times the response tokens of all learned examples over those of its example: S_ntp is
    their number times the sum over i of w_i times the mean loss of i. The weights depend on neither micro-batches nor
    ranks.

    `losses="step"`: w is of the losses under the weights of the step. They need the whole step first, so the step costs
    one more forward pass, without gradient, dropout or noise. The pass with gradient draws the same dropout and noise
    as without IR-DRO.

    `losses="previous_epoch"`: w is of the losses that the steps of the previous epoch computed, each before the update
    of its step and with its dropout and noise. No pass is added. The first epoch has no such losses: its examples are
    weighted equally, as without IR-DRO. So is a step with an example that no step of the previous epoch held, which
    needs a Trainer that limits the batches of training. The losses belong to the training state.

    Attributes:
        previous: Nll of each response in the previous epoch in nats, by the index of the example to train on.
    """

    def __init__(self, temperature: float, losses: str) -> None:
        self.temperature = temperature
        self.losses = losses
        self.previous: dict[int, float] = {}
        self._current = RecordedLosses()
        self._epoch = 0

    def weigh(self, lm: SFTMixLM, batch: StepBatch, epoch: int) -> StepBatch:
        """Return a step with the weights of IR-DRO. Every rank calls this method.

        Args:
            epoch: Number of the step's epoch, counted from 0.
        """
        if self.losses == "step":
            return self._weighted(batch, self._losses_now(lm, batch))
        if epoch != self._epoch:
            recorded = self._current.gather()
            self.previous = recorded if epoch == self._epoch + 1 else {}
            self._current, self._epoch = RecordedLosses(), epoch
        if not self.previous:
            return batch
        of_micro = [[self.previous.get(i, math.nan) for i in micro.examples] for micro in batch.micro_batches]
        device = batch.micro_batches[0].weights.device
        return self._weighted(batch, [torch.tensor(nll, dtype=torch.float64, device=device) for nll in of_micro])

    def add(self, micro: MicroBatch, nll: Tensor) -> None:
        """Record the nll of each token of a micro-batch for the next epoch."""
        if self.losses == "previous_epoch":
            self._current.add(micro, nll)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of both epochs. Every rank calls this method, and waits for its device."""
        return {"epoch": self._epoch, "previous": as_state(self.previous), "current": self._current.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the record of an earlier process."""
        self._epoch = state_dict["epoch"]
        self.previous = of_state(state_dict["previous"])
        self._current.load_state_dict(state_dict["current"])

    @torch.no_grad()
    def _losses_now(self, lm: SFTMixLM, batch: StepBatch) -> list[Tensor]:
        """Return the nll of each response of each micro-batch of this rank, by a pass without gradient."""
        was_training = lm.training
        lm.eval()
        found = []
        for micro in batch.micro_batches:
            responses = slice(micro.num_response_positions)
            positions, labels = micro.positions[responses], micro.labels[responses]
            of_position = micro.example_of_position[responses]
            found.append(lm.response_nll(micro.inputs, positions, labels, of_position, micro.num_examples))
        reshard(lm)
        lm.train(was_training)
        return found

    def _weighted(self, batch: StepBatch, nll_of_micro: list[Tensor]) -> StepBatch:
        """Return a step with the weights that follow from the nll of each response of each micro-batch of this rank."""
        sums = batch.micro_batches[0].weights.new_zeros(3, batch.num_examples, dtype=torch.float64)
        for micro, nll in zip(batch.micro_batches, nll_of_micro, strict=True):
            of_position = micro.example_of_position[: micro.num_response_positions]
            weights = micro.weights[: micro.num_response_positions].double()
            ones = torch.ones_like(weights)
            counts, total = (sum_by_example(values, of_position, micro.num_examples) for values in (ones, weights))
            sums.index_add_(1, micro.index_in_step, torch.stack((nll, counts, total)))
        all_reduce_sum_(sums)
        nll, counts, total = sums
        is_learned = total > 0
        factors = dro_weights(nll / counts, is_learned, self.temperature) * (counts * is_learned).sum() / counts
        if self.losses == "previous_epoch":
            factors = factors.where(~nll.isnan().any(), 1.0)
        return batch._replace(
            micro_batches=tuple(
                micro._replace(weights=micro.weights * factors[micro.index_in_step][micro.example_of_position])
                for micro in batch.micro_batches
            )
        )
