"""The optimizer step of NTP and SFTMix as a LightningModule: one Lightning batch is one optimizer step."""

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.functional.fused import StepLoss
from sftmix.models.language_model import SFTMixLM
from sftmix.training.optim import adamw, cosine_with_warmup


class SFTModule(LightningModule):
    """Tunes a language model by L = (S_ntp + mu * S_mix) / N, a step at a time.

    Args:
        lm: the model.
        mu: weight of the Mixup term, or None where there is none.
        normalize_by_mixed_tokens: divide S_mix by the mixed tokens of the step in the place of N.
        lr: peak.
        weight_decay: of matrices.
        betas: of AdamW.
        warmup_ratio: fraction of the steps.
        max_grad_norm: gradients are scaled down to this norm.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the examples.
        seed: of dropout, drawn anew at every step so that a step does not depend on the ones before.
        log_every_n_steps: optimizer steps between two readings of the figures, which wait for the device.
    """

    def __init__(
        self,
        lm: SFTMixLM,
        *,
        mu: float | None,
        normalize_by_mixed_tokens: bool,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup_ratio: float,
        max_grad_norm: float,
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        log_every_n_steps: int,
    ) -> None:
        """Keep what a step needs; the optimizer is stepped by hand."""
        super().__init__()
        self.automatic_optimization = False
        self.lm = lm
        self.mu = mu
        self.normalize_by_mixed_tokens = normalize_by_mixed_tokens
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_ratio = warmup_ratio
        self.max_grad_norm = max_grad_norm
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.log_every_n_steps = log_every_n_steps
        self.figures: dict[str, Tensor | float] = {}  # of the last step, still on the device
        self.val_nll: list[float] = []
        self.val_num_tokens: list[int] = []

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Add up the gradients of the micro-batches, clip, step, schedule."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, LambdaLR)
        torch.manual_seed((self.seed << 32) + self.global_step)
        optimizer.zero_grad()
        loss, ntp, mixup = self.backward_of_step(batch)
        norm = clip_grad_norm_(self.lm.parameters(), self.max_grad_norm)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        self.figures = {
            "train/loss": loss,
            "train/lr": lr,
            "train/grad_norm": norm,
            "epoch": (batch_idx + 1) / self.steps_per_epoch,
        }
        if batch.ntp_weight:
            self.figures["train/ntp_loss"] = ntp / batch.ntp_weight
        if batch.num_mixed:
            self.figures["train/mixup_loss"] = mixup / batch.num_mixed
            self.figures["train/lam_mean"] = batch.lam_mean

    def reads_figures(self, batch_idx: int) -> bool:
        """Whether the figures of a step, counted from 0, are read: of the first, of every k-th and of the last one."""
        return (batch_idx + 1) % self.log_every_n_steps == 0 or batch_idx in (0, self.total_steps - 1)

    def backward_of_step(self, batch: StepBatch) -> StepLoss:
        """Add the gradient of the step's loss to the parameters; its loss, S_ntp and S_mix come back detached."""
        parts = []
        for micro in batch.micro_batches:
            part = self.lm(
                micro.inputs,
                micro.rows,
                micro.labels,
                micro.weights,
                micro.lam if self.mu is not None else micro.lam[:0],
                mu=self.mu or 0.0,
                num_tokens=batch.num_tokens,
                mixup_denominator=max(1, batch.num_mixed) if self.normalize_by_mixed_tokens else None,
            )
            self.manual_backward(part.loss)
            parts.append([value.detach() for value in part])
        return StepLoss(*(torch.stack(values).sum() for values in zip(*parts, strict=True)))

    def on_validation_epoch_start(self) -> None:
        """Forget the last pass over the held-out part."""
        self.val_nll, self.val_num_tokens = [], []

    def validation_step(self, batch: MicroBatch, batch_idx: int) -> None:
        """Nats of each held-out response, in the order of the loader."""
        nll = self.lm.response_nll(batch.inputs, batch.rows, batch.labels, batch.examples, batch.num_examples)
        self.val_nll += nll.tolist()
        self.val_num_tokens += torch.bincount(batch.examples, minlength=batch.num_examples).tolist()

    def on_validation_epoch_end(self) -> None:
        """Log nats per held-out response token and its exponential."""
        loss = torch.tensor(sum(self.val_nll) / sum(self.val_num_tokens), dtype=torch.float64)
        self.log_dict({"val/loss": loss.float(), "val/perplexity": loss.exp().float()}, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW under the cosine schedule."""
        optimizer = adamw(self.lm, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)
        schedule = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, self.total_steps, self.warmup_ratio))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
