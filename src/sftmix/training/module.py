"""The optimizer step of NTP and SFTMix as a LightningModule: one Lightning batch is one optimizer step."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.distributed.sharding import shard
from sftmix.functional.equations import LossSettings, StepLoss
from sftmix.models.language_model import EmbeddingNoise, SFTMixLM
from sftmix.training.diagnostics import Diagnosis
from sftmix.training.optim import adamw, cosine_with_warmup


class Unread(NamedTuple):
    """What a step leaves on the device until its figures are read.

    Attributes:
        step: its number, counted from 1.
        losses: of its micro-batches on this rank, and the norm of its gradient.
        members: the examples of each micro-batch, by their number.
    """

    step: int
    losses: list[Tensor]
    members: list[tuple[int, ...]]


class NotFinite(NamedTuple):
    """A step whose loss or gradient is no number.

    Attributes:
        step: its number, counted from 1.
        what: which figure, and what it is.
        members: examples of the micro-batches where it shows; of all where only the gradient shows it.
    """

    step: int
    what: str
    members: list[int]


def mixed_seed(*numbers: int) -> int:
    """A seed in which all numbers count: of its 64 bits a CPU's generator takes the lower half alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class SFTMixModule(LightningModule):
    """Tunes a language model by L = (S_ntp + mu * S_mix) / N, a step at a time.

    Args:
        lm: the model.
        loss: How the loss of a step is computed.
        lr: peak.
        weight_decay: of matrices.
        betas: of AdamW.
        warmup_ratio: fraction of the steps.
        max_grad_norm: gradients are scaled down to this norm.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the examples.
        seed: of dropout and noise, drawn anew at every step so that a step does not depend on the ones before.
        log_every_n_steps: optimizer steps between two readings of the figures, which wait for the device.
        neftune_alpha: size of the noise on the embeddings of training steps, or None where there is none.
        diagnose_every_n_steps: optimizer steps between two looks at what Mixup does (`Diagnosis`), or None.
        sharded: cut the model into shards over the strategy's ranks (FSDP2).
        shards_in_bfloat16: they compute in bfloat16.

    Attributes:
        step: optimizer steps that were taken, those of an earlier process too.
        figures: of the last step, still on the device: this rank's part of the losses. `train/ntp_loss` is the mean nll
            of the tokens that carry next-token prediction, each by its weight: of responses, and of prompts where
            they carry loss.
        diagnosis: of the last step, where it was looked at.
    """

    def __init__(
        self,
        lm: SFTMixLM,
        *,
        loss: LossSettings,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup_ratio: float,
        max_grad_norm: float,
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        log_every_n_steps: int,
        neftune_alpha: float | None = None,
        diagnose_every_n_steps: int | None = None,
        sharded: bool = False,
        shards_in_bfloat16: bool = False,
    ) -> None:
        """Keep what a step needs; the optimizer is stepped by hand."""
        super().__init__()
        self.automatic_optimization = False
        self.lm = lm
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_ratio = warmup_ratio
        self.max_grad_norm = max_grad_norm
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.log_every_n_steps = log_every_n_steps
        self.neftune_alpha = neftune_alpha
        self.diagnose_every_n_steps = diagnose_every_n_steps
        self.sharded = sharded
        self.shards_in_bfloat16 = shards_in_bfloat16
        self.step = 0
        self.figures: dict[str, Tensor | float] = {}
        self.diagnosis: Diagnosis | None = None
        self._unread: list[Unread] = []

    def configure_model(self) -> None:
        """Cut the model into shards where the ranks share it."""
        if self.sharded:
            assert self.device_mesh is not None
            mesh, device = self.device_mesh["data_parallel"], self.trainer.strategy.root_device
            shard(self.lm, mesh, device, bfloat16=self.shards_in_bfloat16)
            self.sharded = False  # once

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Add up the gradients of the micro-batches, clip, step."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        torch.manual_seed(mixed_seed(self.seed, self.step))
        lr = self.lr * cosine_with_warmup(self.step, self.total_steps, self.warmup_ratio)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss, ntp, mixup = self.backward_of_step(batch)
        norm = clip_grad_norm_(self.lm.parameters(), self.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        optimizer.step()
        self.step += 1
        self._unread[-1].losses.append(norm.detach())
        self.figures = {
            "train/loss": loss,
            "train/lr": lr,
            "train/grad_norm": norm,
            "epoch": self.step / self.steps_per_epoch,
        }
        if batch.ntp_weight:
            self.figures["train/ntp_loss"] = ntp / batch.ntp_weight
        if batch.num_mixed:
            self.figures["train/mixup_loss"] = mixup / batch.num_mixed
            self.figures["train/lam_mean"] = batch.lam_mean

    def reads_figures(self) -> bool:
        """Whether the figures of the step just taken are read: of the first, of every k-th and of the last one."""
        return self._is_time(self.step, self.log_every_n_steps)

    def _is_time(self, step: int, every: int) -> bool:
        return step % every == 0 or step in (1, self.total_steps)

    def _begin_diagnosis(self, batch: StepBatch) -> Diagnosis | None:
        """What looks at the step that is about to be taken, where it is time and there is a Mixup term."""
        every = self.diagnose_every_n_steps
        if every is None or self.loss.mu is None or not self._is_time(self.step + 1, every):
            return None
        return Diagnosis(batch, self.loss)

    def backward_of_step(self, batch: StepBatch) -> StepLoss:
        """Add the gradient of the step's loss to the parameters; its loss, S_ntp and S_mix come back detached.

        The three are this rank's part of sums over the ranks. Ranks average their gradients, once a step, so each
        takes that of its part as many times as there are ranks.
        """
        parts = []
        self.diagnosis = self._begin_diagnosis(batch)
        strategy, last = self.trainer.strategy, len(batch.micro_batches) - 1
        for number, micro in enumerate(batch.micro_batches):
            waits = hasattr(strategy, "block_backward_sync") and number < last
            with strategy.block_backward_sync() if waits else nullcontext():  # type: ignore[attr-defined]
                part = self.lm(
                    micro,
                    self.loss,
                    num_tokens=batch.num_tokens,
                    num_mixed=batch.num_mixed,
                    noise=self._noise(micro),
                    observe=None if self.diagnosis is None else self.diagnosis.of(micro),
                )
                self.manual_backward(part.loss * self.trainer.world_size)
            parts.append([value.detach() for value in part])
        if self.diagnosis is not None:
            self.diagnosis.add_ranks()
        self._unread.append(
            Unread(self.step + 1, [part[0] for part in parts], [micro.examples for micro in batch.micro_batches])
        )
        return StepLoss(*(torch.stack(values).sum() for values in zip(*parts, strict=True)))

    def _noise(self, micro: MicroBatch) -> EmbeddingNoise | None:
        """The noise of a micro-batch's examples at this step, however the step is cut."""
        if self.neftune_alpha is None:
            return None
        seeds = tuple(mixed_seed(self.seed, self.step, example) for example in micro.examples)
        return EmbeddingNoise(self.neftune_alpha, seeds, micro.spans)

    def first_not_finite(self) -> NotFinite | None:
        """The first step since the last reading whose loss or gradient is no number; waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return None
        values = iter(torch.stack([loss.float() for step in unread for loss in step.losses]).tolist())
        for step in unread:
            *losses, norm = [next(values) for _ in step.losses]
            bad = [k for k, loss in enumerate(losses) if not abs(loss) < float("inf")]
            if bad:
                return NotFinite(step.step, f"loss is {losses[bad[0]]}", [i for k in bad for i in step.members[k]])
            if not abs(norm) < float("inf"):
                return NotFinite(step.step, f"norm of the gradient is {norm}", [i for m in step.members for i in m])
        return None

    def configure_optimizers(self) -> Any:
        """AdamW; the lr is set at each step."""
        return adamw(self.lm, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)
