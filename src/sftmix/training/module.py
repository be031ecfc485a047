"""NTP and SFTMix as a LightningModule: one Lightning batch is one optimizer step, with manual optimization."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from sftmix.data.collate import MicroBatch, StepBatch
from sftmix.distributed.process_group import all_gather_object
from sftmix.distributed.sharding import reshard, shard
from sftmix.errors import InputError
from sftmix.functional.equations import LMHead, LossSettings, StepLoss
from sftmix.models.language_model import EmbeddingNoise, SFTMixLM
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.dro import DroWeights
from sftmix.training.held_out import HeldOut, MeasuredBatch, gathered
from sftmix.training.optim import OptimizerSettings, SchedulerSettings, adamw, lr_factor, parameter_groups, settings_of

IDS_SHOWN = 40

Observe = Callable[[Tensor, LMHead], None]


class PendingStep(NamedTuple):
    """Losses of a step that are still on the device."""

    step: int  # Number of the step, counted from 1
    losses: list[Tensor]  # Losses of the micro-batches of this rank, then the norm of the gradient
    members: list[tuple[int, ...]]  # Indices of the examples of each micro-batch


def derived_seed(*numbers: int) -> int:
    """Return a 64-bit seed derived from all numbers. Its lower 32 bits, which a CPU uses, depend on all too."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class SFTMixModule(LightningModule):
    """Tunes a language model by L = (S_ntp + mu * S_mix) / N.

    Use it with `SFTDataModule` in any `lightning.Trainer`. It logs `train/loss`, `train/ntp_loss`, `train/mixup_loss`,
    `train/lam_mean`, `train/lr`, `train/grad_norm`, `val/loss`, `val/perplexity`, and `val/loss_<subset>` of each
    subset that the data module names. The same metrics of a further validation set are `val_<set>/...`. Losses are in
    nats: `train/ntp_loss` per weighted token, `train/mixup_loss` per pair of tokens, and `train/loss` is L, so that
    L = ntp_loss + mu * mixup_loss * P / N if all weights are 1 (P pairs and N response tokens in the step).

    Args:
        lm: The model. It is not part of the hyperparameters: pass it to `load_from_checkpoint(path, lm=lm)`.
        loss: Terms of the loss, as settings or as a dictionary of their fields.
        optimizer: Settings of AdamW, or a dictionary of their fields.
        scheduler: Settings of the learning rate schedule, or a dictionary of their fields.
        seed: Seed of dropout and noise. They are drawn from (seed, step), so a step depends on no earlier draw.
        neftune_alpha: Size of the noise on the embeddings of training steps, or None for no noise.
        shards_in_bfloat16: Under FSDP2, compute in bfloat16.
    """

    def __init__(
        self,
        lm: SFTMixLM,
        *,
        loss: LossSettings | Mapping[str, Any],
        optimizer: OptimizerSettings | Mapping[str, Any],
        scheduler: SchedulerSettings | Mapping[str, Any] = SchedulerSettings(),  # noqa: B008 - frozen
        seed: int = 0,
        neftune_alpha: float | None = None,
        shards_in_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # frozen weights are not in a checkpoint; `on_load_checkpoint` checks the others
        self.lm = lm
        self.loss = settings_of(LossSettings, loss)
        self.optimizer = settings_of(OptimizerSettings, optimizer)
        self.scheduler = settings_of(SchedulerSettings, scheduler)
        self.seed = seed
        self.neftune_alpha = neftune_alpha
        self.shards_in_bfloat16 = shards_in_bfloat16
        self.save_hyperparameters(
            {
                "loss": asdict(self.loss),
                "optimizer": {**asdict(self.optimizer), "betas": list(self.optimizer.betas)},
                "scheduler": asdict(self.scheduler),
                "seed": seed,
                "neftune_alpha": neftune_alpha,
                "shards_in_bfloat16": shards_in_bfloat16,
            },
            frame=inspect.currentframe(),  # Lightning would keep this frame, and so the model, in a reference cycle
        )
        self.held_out: HeldOut | None = None  # last pass over the held-out examples
        self.val_loss_before: float | None = None  # in nats per token, if the Trainer has num_sanity_val_steps=-1
        self.val_sets: dict[str, HeldOut] = {}  # last pass over each validation set of the data module
        self.val_sets_before: dict[str, float] = {}  # loss of each set before training, as `val_loss_before`
        # hook of callbacks: observe(micro_batch) returns a function of the hidden states and the head, or None
        self.observe: Callable[[MicroBatch], Observe | None] | None = None
        # hook of callbacks: receives the nll of each token of a micro-batch
        self.record: Callable[[MicroBatch, Tensor], None] | None = None
        temperature = self.loss.dro_temperature
        self.dro = None if temperature is None else DroWeights(temperature, self.loss.dro_losses)
        self._pending: list[PendingStep] = []
        self._val_batches: list[MeasuredBatch] = []

    @property
    def step(self) -> int:
        """Number of optimizer steps taken, those of earlier processes included."""
        return self.trainer.global_step

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def setup(self, stage: str) -> None:
        """Refuse a Trainer without `SFTDataModule` or number of steps, and one that scales the loss (InputError)."""
        if stage != "fit":
            return
        if not isinstance(self.trainer.datamodule, SFTDataModule):  # type: ignore[attr-defined]
            raise InputError("SFTMixModule: pass an SFTDataModule to the Trainer: trainer.fit(module, data)")
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise InputError("SFTMixModule: the learning rate needs the number of steps; set max_epochs or max_steps")
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise InputError("SFTMixModule: float16 needs a scaled loss, which is not supported; use bf16-mixed")
        if self.loss.dro_losses == "previous_epoch" and self.trainer.max_epochs == 1:
            raise InputError(
                "SFTMixModule: dro_losses=previous_epoch in one epoch has no effect; set max_epochs above 1"
            )

    def configure_model(self) -> None:
        """Shard the model if the strategy is FSDP2. A second call has no effect."""
        mesh = self.device_mesh
        if mesh is not None and not hasattr(self.lm, "set_requires_gradient_sync"):
            device = self.trainer.strategy.root_device
            shard(self.lm, device, bfloat16=self.shards_in_bfloat16, mesh=mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """Return AdamW and the learning rate schedule over all steps of the run."""
        optimizer, total_steps, settings = adamw(self.lm, self.optimizer), self.total_steps, self.scheduler
        schedule = LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, settings))  # without a cycle by `self`
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Set training mode: Hugging Face loads models in evaluation mode, and Lightning keeps the mode."""
        self.train()

    def on_train_start(self) -> None:
        """Set the learning rate of the next step. That of a checkpoint may be of a run with another number of steps."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        if isinstance(scheduler, LambdaLR):
            factor = lr_factor(self.step, self.total_steps, self.scheduler)
            for group, peak in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = peak * factor

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Add up the gradients of the micro-batches, clip them, and take an optimizer step."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        if not isinstance(scheduler, LambdaLR):
            raise InputError(
                f"SFTMixModule: a callback replaced the scheduler by {type(scheduler).__name__}, expected none "
                f"(StochasticWeightAveraging does): leave out this callback"
            )
        torch.manual_seed(derived_seed(self.seed, self.step))
        lr = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss = self.backward_of_step(batch)
        norm = clip_grad_norm_(self.lm.parameters(), self.optimizer.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        optimizer.step()
        scheduler.step()
        self._pending[-1].losses.append(norm.detach())
        if self.is_due(self.step):
            self._log_step(batch, loss, norm, lr)

    def is_due(self, step: int, every_n_steps: int | None = None) -> bool:
        """Return whether a step is the first, the last, or a multiple of the interval (default: log_every_n_steps)."""
        interval = every_n_steps or self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval > 0 and (step % interval == 0 or step in (1, self.total_steps))

    def _log_step(self, batch: StepBatch, loss: StepLoss, norm: Tensor, lr: float) -> None:
        """Log the metrics of a step. The losses are sums over the ranks, added up in float64."""
        parts = {"train/loss": loss.loss}  # summed over the ranks
        if batch.ntp_weight:
            parts["train/ntp_loss"] = loss.ntp / batch.ntp_weight
        same = {"train/lr": lr, "train/grad_norm": norm.double()}  # equal on all ranks
        if batch.num_mixed:
            parts["train/mixup_loss"] = loss.mixup / batch.num_mixed
            same["train/lam_mean"] = batch.lam_mean
        self.log_dict({name: part.double() for name, part in parts.items()}, sync_dist=True, reduce_fx="sum")
        self.log_dict({name: torch.as_tensor(value, dtype=torch.float64) for name, value in same.items()})
        self.check_finite()

    def backward_of_step(self, batch: StepBatch) -> StepLoss:
        """Add the gradient of the step's loss to the parameters. Return this rank's part of the loss, detached.

        The parts of the ranks add up to the loss. The strategy averages the gradients of the ranks once a step, so each
        rank multiplies its part by the number of ranks.
        """
        if self.dro is not None:
            batch = self.dro.weigh(self.lm, batch, self.trainer.current_epoch)
        parts = []
        strategy, last = self.trainer.strategy, len(batch.micro_batches) - 1
        for index, micro in enumerate(batch.micro_batches):
            noise = None
            if self.neftune_alpha is not None:  # drawn for each example, whatever the micro-batches are
                seeds = tuple(derived_seed(self.seed, self.step, example) for example in micro.examples)
                noise = EmbeddingNoise(self.neftune_alpha, seeds, micro.spans)
            waits = hasattr(strategy, "block_backward_sync") and index < last
            with strategy.block_backward_sync() if waits else nullcontext():  # type: ignore[attr-defined]
                part = self.lm(
                    micro,
                    self.loss,
                    num_tokens=batch.num_tokens,
                    num_mixed=batch.num_mixed,
                    noise=noise,
                    observe=None if self.observe is None else self.observe(micro),
                )
                self.manual_backward(part.loss * self.trainer.world_size)
            if self.record is not None:
                self.record(micro, part.nll)
            if self.dro is not None:
                self.dro.add(micro, part.nll)
            parts.append([value.detach() for value in part[:3]])
        members = [micro.examples for micro in batch.micro_batches]
        self._pending.append(PendingStep(self.step + 1, [part[0] for part in parts], members))
        loss, ntp, mixup = (torch.stack(values).sum() for values in zip(*parts, strict=True))
        return StepLoss(loss, ntp, mixup, loss.new_empty(0))

    def check_finite(self) -> None:
        """End the run on every rank if a loss or a gradient since the last check is not finite. Waits for the device.

        Raises:
            InputError: If one is not. The message names the step and its examples.
        """
        found = [other for other in all_gather_object(self._find_non_finite()) if other is not None]
        if not found:
            return
        first, what, _ = min(found, key=lambda other: other[0])
        members = [i for step, _, indices in found for i in indices if step == first]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        names = [data.train[i].example_id for i in members[:IDS_SHOWN]]
        more = f" and {len(members) - IDS_SHOWN} more" if len(members) > IDS_SHOWN else ""
        raise InputError(
            f"step {first}: the {what}, expected a finite number; its examples: {', '.join(names)}{more}. No later "
            f"state was saved; a lower lr or a smaller max_grad_norm may help"
        )

    def _find_non_finite(self) -> tuple[int, str, list[int]] | None:
        """Return the first step since the last call whose loss or gradient is not finite.

        Returns:
            The number of the step, what is not finite, and the indices of the examples: those of the micro-batches with
            such a loss, or all of them if only the gradient is not finite. None if all values are finite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return None
        values = iter(torch.stack([loss.float() for step in pending for loss in step.losses]).tolist())
        for step in pending:
            *losses, norm = [next(values) for _ in step.losses]
            bad = [k for k, loss in enumerate(losses) if not abs(loss) < float("inf")]
            if bad:
                return step.step, f"loss is {losses[bad[0]]}", [i for k in bad for i in step.members[k]]
            if not abs(norm) < float("inf"):
                members = [i for indices in step.members for i in indices]
                return step.step, f"norm of the gradient is {norm}", members
        return None

    def on_validation_epoch_start(self) -> None:
        """Discard the results of an interrupted pass."""
        self._val_batches = []

    def validation_step(self, batch: MicroBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compute the negative log-likelihood of each response of a batch of held-out examples or of a further set."""
        nll = self.lm.response_nll(
            batch.inputs, batch.positions, batch.labels, batch.example_of_position, batch.num_examples
        )
        counts = torch.bincount(batch.example_of_position, minlength=batch.num_examples)
        self._val_batches.append(MeasuredBatch(dataloader_idx, batch.examples, counts, nll))

    def on_validation_epoch_end(self) -> None:
        """Gather the responses of all ranks and log the losses, added up in float64 in the same order."""
        reshard(self.lm)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        measured = list(data.measured.items() if isinstance(data, SFTDataModule) else {None: None}.items())
        for loader, result in gathered(self._val_batches).items():
            name, examples = measured[loader]
            self._keep_held_out(name, result, {} if examples is None else examples.subsets)

    def _keep_held_out(self, name: str | None, result: HeldOut, subsets: Mapping[str, Sequence[int]]) -> None:
        """Keep and log the result of the held-out examples (None) or of a further validation set."""
        loss = torch.tensor(result.loss(), dtype=torch.float64)
        if name is None:
            self.held_out = result
        else:
            self.val_sets[name] = result
        if not self.trainer.sanity_checking:
            prefix = "val" if name is None else f"val_{name}"
            losses = {f"{prefix}/loss_{subset}": value for subset, value in result.by_subset(subsets).items()}
            logged = {key: torch.tensor(value, dtype=torch.float64) for key, value in losses.items()}
            self.log_dict({f"{prefix}/loss": loss, f"{prefix}/perplexity": loss.exp(), **logged}, sync_dist=True)
        elif name is None:
            self.val_loss_before = loss.item()
        else:
            self.val_sets_before[name] = loss.item()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights only, name the optimizer's state by parameter, and add the held-out results.

        A state by name can be read under every strategy.

        Raises:
            InputError: If a loss or a gradient since the last check is not finite.
        """
        self.check_finite()
        once = dict(self.named_parameters())
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad or name not in once:  # frozen, or tied to a weight that is saved
                checkpoint["state_dict"].pop(name, None)
        names = self._optimizer_names()
        for state in checkpoint.get("optimizer_states", ()):
            state["state"] = {names[k]: value for k, value in state["state"].items()}
            for group in state["param_groups"]:
                group["params"] = [names[k] for k in group["params"]]
        held_out = None if self.held_out is None else self.held_out._asdict()
        checkpoint["held_out"] = {"last": held_out, "loss_before": self.val_loss_before}
        if self.loss.dro_losses == "previous_epoch" and self.dro is not None:
            checkpoint["dro"] = self.dro.state_dict()
        if self.val_sets:
            checkpoint["val_sets"] = {
                "last": {name: result._asdict() for name, result in self.val_sets.items()},
                "loss_before": dict(self.val_sets_before),
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo `on_save_checkpoint`.

        Raises:
            InputError: If the checkpoint lacks a trained weight.
        """
        names = self._optimizer_names()
        missing = [name for name in names if name not in checkpoint["state_dict"]]
        if missing:
            raise InputError(
                f"checkpoint: {len(missing)} trained weights are missing ({missing[0]}), expected all weights that are "
                f"trained here: is it of another model, or of other adapters?"
            )
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}  # frozen weights stay as they are
        index = {name: k for k, name in enumerate(names)}
        for state in checkpoint.get("optimizer_states", ()):
            state["state"] = {index[name]: value for name, value in state["state"].items()}
            for group in state["param_groups"]:
                group["params"] = [index[name] for name in group["params"]]
        if "dro" in checkpoint and self.dro is not None:
            self.dro.load_state_dict(checkpoint["dro"])
        held_out = checkpoint["held_out"]
        self.held_out = None if held_out["last"] is None else HeldOut(**held_out["last"])
        self.val_loss_before = held_out["loss_before"]
        sets = checkpoint.get("val_sets", {"last": {}, "loss_before": {}})
        self.val_sets = {name: HeldOut(**result) for name, result in sets["last"].items()}
        self.val_sets_before = dict(sets["loss_before"])

    def _optimizer_names(self) -> list[str]:
        """Return the names of the trained parameters in the order of the optimizer's groups."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        return [names[p] for group in parameter_groups(self.lm, 0.0) for p in group["params"]]
