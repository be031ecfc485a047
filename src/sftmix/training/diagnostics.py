"""What Mixup does in an optimizer step: its share of the tokens, its loss, and its gradient compared with that of NTP.

All metrics are computed by further calls of the fused loss on the detached hidden states of the step, so the gradient
of training keeps its bits. A measured step has five matrix products of the size of the head more than the three of a
step, and two more tensors of the size of the head's weight, in at least single precision. With `has_parts` it has
seventeen matrix products and seven tensors more.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.distributed.process_group import all_reduce_sum_
from sftmix.errors import InputError
from sftmix.functional.equations import LMHead, LossSettings, StepLoss, softmax_distance
from sftmix.functional.fused import fused_sftmix_loss, fused_token_nll, tokens_per_chunk
from sftmix.training.callbacks import log_now
from sftmix.training.loggers import WandbRunLogger
from sftmix.training.module import SFTMixModule

LAM_BINS = 20


class MixupDiagnostics(Callback):
    """Logs what Mixup does in the first, every k-th and the last step, as `mixup/*` (see `Diagnosis.metrics`).

    Training ends with the same bits with and without this callback. Without a Mixup term nothing is logged.

    Args:
        every_n_steps: Optimizer steps between two measurements.
        has_parts: Compare the gradient of Mixup with those of its parts too (`mixup_parts`), and with the span of the
            gradients of next-token prediction on the mixed tokens of each subset (Appendix A).

    Raises:
        InputError: If `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50, has_parts: bool = True) -> None:
        if every_n_steps < 1:
            raise InputError(f"MixupDiagnostics: every_n_steps={every_n_steps}, expected at least 1")
        self.every_n_steps = every_n_steps
        self.has_parts = has_parts
        self.diagnosis: Diagnosis | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """Observe the step if it is measured."""
        assert isinstance(pl_module, SFTMixModule)
        is_measured = pl_module.loss.mu is not None and pl_module.is_due(pl_module.step + 1, self.every_n_steps)
        self.diagnosis = diagnosis = Diagnosis(batch, pl_module.loss, self.has_parts) if is_measured else None
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
        has_parts: Compute the gradients of the parts of Mixup and of each subset too.

    Attributes:
        lam: lambda of each pair of the whole step.
    """

    def __init__(self, batch: StepBatch, loss: LossSettings, has_parts: bool = True) -> None:
        assert loss.mu is not None
        self.lam = batch.lam
        self._mu, self._has_parts, self._has_gap = loss.mu, has_parts, loss.form == "full"
        self._ntp, self._mixup = replace(loss, mu=None), replace(loss, mu=1.0)
        self._plain = replace(self._ntp, label_smoothing=0.0, token_weight=None)
        self._num_tokens, self._num_mixed = batch.num_tokens, batch.num_mixed
        self._num_response_tokens = batch.num_response_tokens
        self._factor = batch.num_tokens / loss.mixup_denominator(batch.num_tokens, batch.num_mixed)
        self._gradients: dict[str, Tensor] = {}
        self._sums: Tensor | None = None
        self._products: dict[tuple[str, str], float] = {}

    def add(self, micro: MicroBatch, hidden: Tensor, head: LMHead) -> None:
        """Add a micro-batch, given its hidden states and the whole head."""
        hidden = hidden.detach()
        # a leaf, so that a gradient with respect to its weight does not reach the model
        bias = None if head.bias is None else head.bias.detach()
        head = head._replace(weight=head.weight.detach().requires_grad_(), bias=bias)
        self._has_gap = self._has_gap and head.softcap is None
        mixup = hidden.new_zeros(())
        with torch.enable_grad():
            for name, loss in self._losses(micro, hidden, head):
                (gradient,) = torch.autograd.grad(loss.loss, head.weight)
                gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                self._gradients[name] = self._gradients[name].add_(gradient) if name in self._gradients else gradient
                mixup = loss.mixup if name == "mixup" else mixup
        responses = slice(micro.num_response_positions)
        nll = fused_token_nll(hidden[responses], head, micro.labels[responses]).double()
        examples = micro.example_of_position[responses]
        sums = []
        for subset in (0, 1):  # confident, unconfident
            is_in = (examples >= subset * micro.num_pairs) & (examples < (subset + 1) * micro.num_pairs)
            sums += [torch.where(is_in, nll, 0.0).sum(), is_in.sum().double()]
        distance = _distance(hidden, head, micro.lam) if self._has_parts else nll.new_zeros(())
        here = torch.stack([*sums, mixup.detach().double(), distance])
        self._sums = here if self._sums is None else self._sums + here

    def _losses(self, micro: MicroBatch, hidden: Tensor, head: LMHead) -> Iterator[tuple[str, StepLoss]]:
        """Yield each loss whose gradient is measured, by name. All are divided as in the loss of the step, without mu.

        ntp: of all tokens. mixup: of the pairs. confident, unconfident: NTP on the mixed tokens of a subset.
        reweighting, smoothing: the first two parts of `mixup_parts`.
        """
        lam, counts = micro.lam, {"num_tokens": self._num_tokens, "num_mixed": self._num_mixed}
        num_pairs = len(lam)
        paired, labels = hidden[: 2 * num_pairs], micro.labels[: 2 * num_pairs]
        yield "ntp", fused_sftmix_loss(hidden, head, micro.labels, micro.weights, lam, self._ntp, **counts)
        no_ntp = torch.zeros_like(micro.weights[: 2 * num_pairs])
        yield "mixup", fused_sftmix_loss(paired, head, labels, no_ntp, lam, self._mixup, **counts)
        if not self._has_parts:
            return
        ones, rest = torch.ones_like(lam), 1 - lam
        nothing = torch.zeros_like(lam)
        swapped = torch.cat((labels[num_pairs:], labels[:num_pairs]))
        for name, targets, weights in (
            ("confident", labels, (ones, nothing)),
            ("unconfident", labels, (nothing, ones)),
            ("reweighting", labels, (lam**2, rest**2)),
            ("smoothing", swapped, (lam * rest, lam * rest)),
        ):
            weight = torch.cat(weights) * self._factor
            yield name, fused_sftmix_loss(paired, head, targets, weight, lam[:0], self._plain, **counts)

    def add_ranks(self) -> None:
        """Add up over the ranks after all micro-batches. Every rank must call it. Waits for the device."""
        assert self._sums is not None
        for total in (*self._gradients.values(), self._sums):
            all_reduce_sum_(total)
        names = list(self._gradients)
        pairs = [(one, other) for k, one in enumerate(names) for other in names[k:]]
        products = torch.stack([_product(self._gradients[one], self._gradients[other]) for one, other in pairs])
        for (one, other), product in zip(pairs, products.tolist(), strict=True):
            self._products[one, other] = self._products[other, one] = product
        self._gradients = {}  # each is as large as the head

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the whole step, the same on every rank.

        - `mixup/token_share`: share of the response tokens that are mixed.
        - `mixup/loss`: nats per mixed token.
        - `mixup/ntp_loss_confident`, `mixup/ntp_loss_unconfident`: nats per response token of the paired examples of
          each subset, without the weights of the loss.
        - `mixup/grad_norm_ratio`, `mixup/grad_cosine`: norm of the gradient of mu times the Mixup term, divided by the
          norm of the gradient of next-token prediction, and the cosine of the two gradients, at the weight of the head.

        With `has_parts`, also (at the weight of the head, mixed tokens only):

        - `mixup/softmax_distance`: mean of `softmax_distance` over the pairs of tokens, 0 to 1.
        - `mixup/grad_span_cosine`: cosine of the gradient of Mixup and the span of the gradients of next-token
          prediction on the confident and on the unconfident tokens: 1 if Mixup only re-weights the subsets.
        - `mixup/reweighting_norm_ratio`, `mixup/smoothing_norm_ratio`, `mixup/gap_norm_ratio`: norms of the gradients
          of mu times R, S and J of `mixup_parts`, divided as `mixup/grad_norm_ratio`. J is left out under a soft cap,
          and if the Mixup term is R or R + S (recipe.mixup.form).
        - `mixup/reweighting_cosine`: cosine of the gradients of Mixup and R.

        With `recipe.ntp.prompt_weight` above 0, only the gradient of next-token prediction covers prompt tokens. A
        metric whose denominator is 0 is left out.
        """
        assert self._sums is not None
        confident, num_confident, unconfident, num_unconfident, mixup, distance = self._sums.tolist()
        metrics = {"mixup/token_share": 2 * self._num_mixed / self._num_response_tokens}
        if num_confident and num_unconfident:
            metrics["mixup/ntp_loss_confident"] = confident / num_confident
            metrics["mixup/ntp_loss_unconfident"] = unconfident / num_unconfident
        if self._num_mixed:
            metrics["mixup/loss"] = mixup / self._num_mixed
        ntp, square = (self._products[name, name] for name in ("ntp", "mixup"))
        if not (ntp and square):
            return metrics
        metrics["mixup/grad_norm_ratio"] = self._mu * sqrt(square / ntp)
        metrics["mixup/grad_cosine"] = self._cosine("ntp")
        if self._has_parts:
            metrics["mixup/softmax_distance"] = distance / self._num_mixed
            metrics["mixup/grad_span_cosine"] = self._span_cosine()
            squares = {name: self._products[name, name] for name in ("reweighting", "smoothing")}
            if self._has_gap:
                squares["gap"] = self._square_of_gap()
            for name, part in squares.items():
                metrics[f"mixup/{name}_norm_ratio"] = self._mu * sqrt(part / ntp)
            metrics["mixup/reweighting_cosine"] = self._cosine("reweighting")
        return metrics

    def _cosine(self, name: str) -> float:
        products = self._products
        return products[name, "mixup"] / sqrt(products[name, name] * products["mixup", "mixup"])

    def _square_of_gap(self) -> float:
        """Return the squared norm of the gradient of J = R + S - H."""
        signs = {"reweighting": 1, "smoothing": 1, "mixup": -1}
        square = sum(a * b * self._products[one, other] for one, a in signs.items() for other, b in signs.items())
        return max(square, 0.0)  # rounding, if J is 0

    def _span_cosine(self) -> float:
        """Return the cosine of the gradient of Mixup and its projection onto the span of the two NTP gradients."""
        names = ("confident", "unconfident")
        gram = torch.tensor([[self._products[one, other] for other in names] for one in names], dtype=torch.float64)
        target = torch.tensor([self._products[name, "mixup"] for name in names], dtype=torch.float64)
        coefficients = torch.linalg.lstsq(gram, target, driver="gelsd").solution
        return sqrt(max(0.0, (coefficients @ target).item()) / self._products["mixup", "mixup"])


def _distance(hidden: Tensor, head: LMHead, lam: Tensor) -> Tensor:
    """Return the sum of `softmax_distance` over the pairs of tokens, in float64. The logits are computed in chunks."""
    num_pairs = len(lam)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, head.weight.dtype), torch.float32)
        head = head._replace(weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))
        for start in range(0, num_pairs, size := tokens_per_chunk(head.weight, None)):
            chunk = slice(start, min(start + size, num_pairs))
            both = (hidden[chunk], hidden[num_pairs + chunk.start : num_pairs + chunk.stop])
            total += softmax_distance(torch.cat(both).to(dtype), head, lam[chunk].to(dtype)).double().sum()
    return total


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of two matrices. The products of their rows are added up in float64."""
    return torch.linalg.vecdot(left, right).double().sum()
