"""Callbacks of a run, which a plain Trainer can use too: throughput, checkpoints, average weights, progress bar."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sftmix.data.collate import StepBatch
from sftmix.distributed.checkpoint_io import StoredTensor
from sftmix.distributed.strategy import read_into
from sftmix.estimate.cost import num_flops
from sftmix.models.quantization import parameter_sizes
from sftmix.training.module import SFTMixModule
from sftmix.training.progress import progress_bar


class Throughput(Callback):
    """Counts tokens and the time of training steps, and logs rates with the other metrics of a step.

    `perf/tokens_per_sec` counts tokens of prompts and responses over all ranks since the last log, without padding.
    `perf/padded_tokens_per_sec` counts what the model computes, padding included: those of this rank, times the number
    of ranks. On a GPU `perf/peak_memory_gib` is the most that torch has allocated on this rank since the run started.
    `perf/mfu` is the model FLOPs utilization, 0 to 1: the operations of the model's matrices, without padding and
    attention, over the peak of the devices. The time of validation and saving is left out. The callback waits for the
    device only when metrics are logged.

    Lightning writes every k-th step. This callback also writes the first and the last step.

    Args:
        peak_flops: Operations per second that all devices can do, or None if the hardware is unknown.

    Attributes:
        tokens: Tokens that were trained on over all ranks, those of earlier processes included.
        seconds: Seconds of training steps, those of earlier processes included.
        seconds_before: Seconds of earlier processes only.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.tokens = 0
        self.seconds = self.seconds_before = 0.0
        self._start: float | None = None
        self._logged = (0, 0.0)
        self._num_padded = 0  # since the last log

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of an earlier process."""
        self._logged = self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.seconds_before = self.seconds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock if it is stopped."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Count the tokens, and log the rate if the metrics of this step are logged."""
        assert isinstance(pl_module, SFTMixModule)
        self.tokens += batch.num_input_tokens
        self._num_padded += sum(i.input_ids.numel() for micro in batch.micro_batches for i in micro.inputs)
        if not pl_module.is_due(pl_module.step):
            return
        self.stop_clock(trainer, pl_module)
        tokens, seconds = self.tokens - self._logged[0], self.seconds - self._logged[1]
        self._logged = (self.tokens, self.seconds)
        num_padded, self._num_padded = self._num_padded * trainer.world_size, 0
        rates = {"tokens_per_sec": tokens / seconds, "padded_tokens_per_sec": num_padded / seconds} if seconds else {}
        if seconds and self.peak_flops is not None:
            sizes = parameter_sizes(pl_module.lm)
            whole, trained = sum(n for _, n in sizes), sum(n for p, n in sizes if p.requires_grad)
            rates["mfu"] = num_flops(whole, trained, tokens) / seconds / self.peak_flops
        if pl_module.device.type == "cuda":
            rates["peak_memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        pl_module.log_dict({f"perf/{name}": torch.tensor(rate, dtype=torch.float64) for name, rate in rates.items()})
        if pl_module.step % trainer.log_every_n_steps:  # type: ignore[attr-defined] # Lightning does not write this step
            metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "perf/"))}
            log_now(trainer, pl_module, {**metrics, "epoch": trainer.current_epoch})

    def stop_clock(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Wait for the device and add up the time. The clock starts again with the next step."""
        if self._start is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds += time.perf_counter() - self._start
            self._start = None

    on_validation_start = on_save_checkpoint = on_train_end = stop_clock


def log_now(trainer: Trainer, module: SFTMixModule, metrics: dict[str, float]) -> None:
    """Write metrics of the last step to all loggers. Loggers count steps from 0."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=module.step - 1)
        logger.save()


class KeepCheckpoints(Callback):
    """Saves the model after given optimizer steps, each as a folder `step-<step>`.

    Args:
        folder: Folder of the checkpoints.
        steps: After which optimizer steps.
        save: Writes the model as it is into a folder, completely or not at all.
    """

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], None]) -> None:
        self.folder = folder
        self.steps = frozenset(steps)
        self.save = save

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the model if this is one of the steps and its losses are finite."""
        assert isinstance(pl_module, SFTMixModule)
        if pl_module.step in self.steps:
            pl_module.check_finite()
            self.save(self.folder / f"step-{pl_module.step:06d}")


class WeightAverage(Callback):
    """Keeps an exponential moving average of the trained weights, and validates and returns it instead of the weights.

    After each optimizer step, average = decay * average + (1 - decay) * weights, beginning with the weights before the
    first step. Training goes on with the weights themselves. Checkpoints hold both. At the end of `Trainer.fit` the
    model has the average. Unlike Lightning's `EMAWeightAveraging`, which copies the whole module, it works with the
    shards of FSDP2, with the frozen weights of LoRA, and with a run that resumes after its last step.

    Args:
        decay: 0 to 1, without 1. The average reaches back over about 1 / (1 - decay) steps.

    Raises:
        ValueError: If `decay` is not in this range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected at least 0 and below 1")
        self._update = get_ema_multi_avg_fn(decay)
        self._averages: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor | StoredTensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights, or with the average of the checkpoint."""
        self._averages = {name: weight.detach().clone() for name, weight in _trained(pl_module).items()}
        for name, stored in self._loaded.items():
            if isinstance(stored, StoredTensor):
                read_into(self._averages[name], stored)
            else:
                self._averages[name].copy_(stored)
        self._loaded = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update the average."""
        weights = [weight.detach() for weight in _trained(pl_module).values()]
        self._update(list(self._averages.values()), weights, 0)

    @torch.no_grad()
    def swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange average and weights, before validation and after it."""
        for name, average in self._averages.items():
            weight = pl_module.get_parameter(name)
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    on_validation_start = on_validation_end = swap

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model the average."""
        if not self._averages:  # the checkpoint was saved after the last step
            self.on_train_start(trainer, pl_module)
        for name, average in self._averages.items():
            pl_module.get_parameter(name).copy_(average)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the average."""
        checkpoint["weight_average"] = dict(self._averages)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the average of the checkpoint for the start of training, when the weights are on their devices."""
        self._loaded = checkpoint.get("weight_average", {})


def _trained(module: LightningModule) -> dict[str, Tensor]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


SHOWN = {  # Metrics in the progress bar: name and form
    "train/loss": ("loss", "{:.3f}"),
    "val/loss": ("held-out", "{:.3f}"),
    "perf/tokens_per_sec": ("tokens/s", "{:,.0f}"),
    "perf/mfu": ("MFU", "{:.0%}"),
    "perf/peak_memory_gib": ("GiB", "{:.1f}"),
}


class StepProgressBar(Callback):
    """One bar over all optimizer steps of a run, with the time left and the losses that were logged last.

    Lightning's own bar restarts at every epoch, and reads each metric at every step.

    Args:
        title: Name of the run.
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        assert isinstance(pl_module, SFTMixModule)
        self.bar = progress_bar(pl_module.total_steps, self.title, "step")
        self.bar.update(pl_module.step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance the bar."""
        assert isinstance(pl_module, SFTMixModule)
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.bar.set_description(f"{self.title}, {epoch}", refresh=False)
        if pl_module.is_due(pl_module.step):
            metrics = trainer.callback_metrics
            shown = {name: form.format(metrics[key].item()) for key, (name, form) in SHOWN.items() if key in metrics}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def close(self, *_: Any, **__: Any) -> None:
        """Close the bar, so that the next output begins on a new line."""
        if hasattr(self, "bar"):
            self.bar.close()

    on_train_end = on_exception = close
