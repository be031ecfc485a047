"""What Mixup does in an optimizer step: its share of the tokens, its loss, and its gradient compared with that of NTP.

All metrics are computed by further calls of the fused loss on the detached hidden states of the step, so the gradient
of training keeps its bits. A measured step has five matrix products of the size of the head more than the three of a
step, and two more tensors of the size of the head's weight, in at least single precision.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.distributed.process_group import all_reduce_sum_
from sftmix.errors import InputError
from sftmix.functional.equations import LMHead, LossSettings
from sftmix.functional.fused import fused_sftmix_loss, fused_token_nll
from sftmix.training.callbacks import log_now
from sftmix.training.loggers import WandbRunLogger
from sftmix.training.module import SFTMixModule

NTP, MIXUP = 0, 1
LAM_BINS = 20


class MixupDiagnostics(Callback):
    """Logs what Mixup does in the first, every k-th and the last step, as `mixup/*` (see `Diagnosis.metrics`).

    Training ends with the same bits with and without this callback. Without a Mixup term nothing is logged.

    Args:
        every_n_steps: Optimizer steps between two measurements.

    Raises:
        InputError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise InputError(f"MixupDiagnostics: every_n_steps={every_n_steps}, expected at least 1")
        self.every_n_steps = every_n_steps
        self.diagnosis: Diagnosis | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """Observe the step if it is measured."""
        assert isinstance(pl_module, SFTMixModule)
        is_measured = pl_module.loss.mu is not None and pl_module.is_due(pl_module.step + 1, self.every_n_steps)
        self.diagnosis = diagnosis = Diagnosis(batch, pl_module.loss) if is_measured else None
        pl_module.observe = None if diagnosis is None else lambda micro: partial(diagnosis.add, micro)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Log the measurement."""
        if self.diagnosis is None:
            return
        assert isinstance(pl_module, SFTMixModule)
        pl_module.observe = None
        self.diagnosis.add_ranks()
        pl_module.check_finite()
        log_now(trainer, pl_module, self.diagnosis.metrics())
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_histogram("mixup/lam", self.diagnosis.lam, pl_module.step, 0.0, 1.0, LAM_BINS)


class Diagnosis:
    """Sums and gradients of one optimizer step, added up over its micro-batches and then over the ranks.

    Args:
        batch: This rank's part of the step.
        loss: How the loss of the step is computed. It has a Mixup term.

    Attributes:
        lam: lambda of each pair of the whole step.
    """

    def __init__(self, batch: StepBatch, loss: LossSettings) -> None:
        assert loss.mu is not None
        self.lam = batch.lam
        self._mu = loss.mu
        self._ntp, self._mixup = replace(loss, mu=None), replace(loss, mu=1.0)
        self._num_tokens, self._num_mixed = batch.num_tokens, batch.num_mixed
        self._num_response_tokens = batch.num_response_tokens
        self._gradients: list[Tensor | None] = [None, None]
        self._sums: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, micro: MicroBatch, hidden: Tensor, head: LMHead) -> None:
        """Add a micro-batch, given its hidden states and the whole head."""
        hidden = hidden.detach()
        # a leaf, so that a gradient with respect to its weight does not reach the model
        bias = None if head.bias is None else head.bias.detach()
        head = head._replace(weight=head.weight.detach().requires_grad_(), bias=bias)
        paired = slice(2 * len(micro.lam))
        counts = {"num_tokens": self._num_tokens, "num_mixed": self._num_mixed}
        no_ntp = torch.zeros_like(micro.weights[paired])
        with torch.enable_grad():
            ntp = fused_sftmix_loss(hidden, head, micro.labels, micro.weights, micro.lam, self._ntp, **counts)
            mixup = fused_sftmix_loss(
                hidden[paired], head, micro.labels[paired], no_ntp, micro.lam, self._mixup, **counts
            )
        for k, loss in ((NTP, ntp.loss), (MIXUP, mixup.loss)):
            (gradient,) = torch.autograd.grad(loss, head.weight)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            total = self._gradients[k]
            self._gradients[k] = gradient if total is None else total.add_(gradient)
        responses = slice(micro.num_response_positions)
        nll = fused_token_nll(hidden[responses], head, micro.labels[responses]).double()
        examples = micro.example_of_position[responses]
        sums = []
        for subset in (0, 1):  # confident, unconfident
            is_in = (examples >= subset * micro.num_pairs) & (examples < (subset + 1) * micro.num_pairs)
            sums += [torch.where(is_in, nll, 0.0).sum(), is_in.sum().double()]
        here = torch.stack([*sums, mixup.mixup.detach().double()])
        self._sums = here if self._sums is None else self._sums + here

    def add_ranks(self) -> None:
        """Add up over the ranks after all micro-batches. Every rank must call it. Does not wait for the device."""
        ntp, mixup = self._gradients
        assert ntp is not None
        assert mixup is not None
        assert self._sums is not None
        for total in (ntp, mixup, self._sums):
            all_reduce_sum_(total)
        self._products = torch.stack([_product(ntp, ntp), _product(mixup, mixup), _product(ntp, mixup)])
        self._gradients = [None, None]  # they are as large as the head

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the whole step, the same on every rank. Waits for the device.

        - `mixup/token_share`: share of the response tokens that are mixed.
        - `mixup/loss`: nats per mixed token.
        - `mixup/ntp_loss_confident`, `mixup/ntp_loss_unconfident`: nats per response token of the paired examples of
          each subset, without the weights of the loss.
        - `mixup/grad_norm_ratio`, `mixup/grad_cosine`: norm of the gradient of mu times the Mixup term, divided by the
          norm of the gradient of next-token prediction, and the cosine of the two gradients, at the weight of the head.

        With `recipe.ntp.prompt_weight` above 0, only the gradient of next-token prediction covers prompt tokens. A
        metric whose denominator is 0 is left out.
        """
        assert self._sums is not None
        assert self._products is not None
        confident, num_confident, unconfident, num_unconfident, mixup = self._sums.tolist()
        ntp_square, mixup_square, product = self._products.tolist()
        metrics = {"mixup/token_share": 2 * self._num_mixed / self._num_response_tokens}
        if num_confident and num_unconfident:
            metrics["mixup/ntp_loss_confident"] = confident / num_confident
            metrics["mixup/ntp_loss_unconfident"] = unconfident / num_unconfident
        if self._num_mixed:
            metrics["mixup/loss"] = mixup / self._num_mixed
        if ntp_square and mixup_square:
            metrics["mixup/grad_norm_ratio"] = self._mu * (mixup_square / ntp_square) ** 0.5
            metrics["mixup/grad_cosine"] = product / (ntp_square * mixup_square) ** 0.5
        return metrics


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of two matrices. The products of their rows are added up in float64."""
    return torch.linalg.vecdot(left, right).double().sum()
