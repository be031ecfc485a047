"""What Mixup does in an optimizer step: its share of the tokens, its loss, its gradient beside next-token prediction's.

Everything is computed by further calls of the fused loss on the step's own hidden states, cut off from what made them:
training's gradient stays the same bits. It costs five matrix products of the head's size beside the step's own three,
and two tensors like the head's weight, in at least single precision.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.distributed.process_group import all_reduce_sum_
from sftmix.errors import InputError
from sftmix.functional.equations import LMHead, LossSettings
from sftmix.functional.fused import fused_sftmix_loss, fused_token_nll
from sftmix.training.loggers import WandbRunLogger
from sftmix.training.module import SFTMixModule

NTP, MIXUP = 0, 1
LAM_BINS = 20


class MixupDiagnostics(Callback):
    """Logs what Mixup does in the first, every k-th and the last step, as `mixup/*` (see `Diagnosis.metrics`).

    Training ends with the same bits as without it. Without a Mixup term it does nothing.

    Args:
        every_n_steps: Optimizer steps between two measurements.

    Raises:
        InputError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Keep the interval."""
        if every_n_steps < 1:
            raise InputError(f"MixupDiagnostics: every_n_steps={every_n_steps}, expected at least 1")
        self.every_n_steps = every_n_steps
        self.diagnosis: Diagnosis | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """Observe the step if it is one of those that are measured."""
        assert isinstance(pl_module, SFTMixModule)
        step, loss = pl_module.step + 1, pl_module.loss
        is_measured = step % self.every_n_steps == 0 or step in (1, pl_module.total_steps)
        self.diagnosis = Diagnosis(batch, loss) if is_measured and loss.mu is not None else None
        pl_module.observe = None if self.diagnosis is None else self.diagnosis.of

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
        metrics = self.diagnosis.metrics()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=pl_module.step - 1)
            logger.save()
            if isinstance(logger, WandbRunLogger):
                logger.log_histogram("mixup/lam", self.diagnosis.lam, pl_module.step, 0.0, 1.0, LAM_BINS)


class Diagnosis:
    """One optimizer step, added up over its micro-batches and then over the ranks.

    Args:
        batch: the step, of which this rank has its part.
        loss: How the loss of the step is computed. It has a Mixup term.

    Attributes:
        lam: lambda of each pair of the whole step.
    """

    def __init__(self, batch: StepBatch, loss: LossSettings) -> None:
        """Nothing is added up yet."""
        assert loss.mu is not None
        self.lam = batch.lam
        self._mu = loss.mu
        self._ntp, self._mixup = replace(loss, mu=None), replace(loss, mu=1.0)
        self._num_tokens, self._num_mixed = batch.num_tokens, batch.num_mixed
        self._num_response_tokens = batch.num_response_tokens
        self._gradients: list[Tensor | None] = [None, None]
        self._sums: Tensor | None = None
        self._products: Tensor | None = None

    def of(self, micro: MicroBatch) -> Callable[[Tensor, LMHead], None]:
        """What takes a micro-batch's hidden states and the head, where that is whole, and adds its part."""

        def add(hidden: Tensor, head: LMHead) -> None:
            self._add(micro, hidden.detach(), _detached(head))

        return add

    def add_ranks(self) -> None:
        """Add up over the ranks, once the micro-batches are; every rank must ask for it. Waits for no device."""
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
          each subset, whatever their weight.
        - `mixup/grad_norm_ratio`, `mixup/grad_cosine`: norm of the gradient of mu times the Mixup term, divided by the
          norm of the gradient of next-token prediction, and the cosine between the two, at the weight of the head.

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

    def _add(self, micro: MicroBatch, hidden: Tensor, head: LMHead) -> None:
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


def _detached(head: LMHead) -> LMHead:
    """The head cut off from the model: a gradient with respect to its weight reaches nothing else, frozen or not."""
    bias = None if head.bias is None else head.bias.detach()
    return head._replace(weight=head.weight.detach().requires_grad_(), bias=bias)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of two matrices, row by row and then in float64."""
    return torch.linalg.vecdot(left, right).double().sum()
