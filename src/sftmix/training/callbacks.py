"""Callbacks of a run, which a plain Trainer can use too: throughput, checkpoints of the model, the progress bar."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from sftmix.data.collate import StepBatch
from sftmix.training.module import SFTMixModule
from sftmix.training.progress import progress_bar


class Throughput(Callback):
    """Counts tokens and the time of training steps, and logs `perf/tokens_per_sec` with the other metrics of a step.

    The rate is of tokens of prompts and responses over all ranks, without padding, since the metrics before. Time of
    validation and saving is left out. The device is waited for only where metrics are read.

    Lightning writes every k-th step. This callback also writes the first and the last step.

    Attributes:
        tokens: Tokens that were trained on over all ranks, also by earlier processes.
        seconds: Seconds of training steps, also of earlier processes.
        seconds_before: Seconds of earlier processes only.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.tokens = 0
        self.seconds = 0.0
        self.seconds_before = 0.0
        self._start: float | None = None
        self._logged = (0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of an earlier process."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.seconds_before = self.seconds
        self._logged = (self.tokens, self.seconds)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock unless it runs."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Count the tokens, and log the rate if the metrics of this step are read."""
        assert isinstance(pl_module, SFTMixModule)
        self.tokens += batch.num_input_tokens
        if not pl_module.is_read(pl_module.step):
            return
        self.stop_clock(pl_module)
        tokens, seconds = self.tokens - self._logged[0], self.seconds - self._logged[1]
        self._logged = (self.tokens, self.seconds)
        if seconds:
            pl_module.log("perf/tokens_per_sec", torch.tensor(tokens / seconds, dtype=torch.float64))
        if pl_module.step % trainer.log_every_n_steps:  # type: ignore[attr-defined] # the first or the last step, which Lightning does not write
            metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "perf/"))}
            metrics["epoch"] = trainer.current_epoch
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=pl_module.step - 1)
                logger.save()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.stop_clock(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop the clock."""
        self.stop_clock(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.stop_clock(pl_module)

    def stop_clock(self, module: LightningModule) -> None:
        """Wait for the device and add up the time. The clock starts again with the next step."""
        if self._start is not None:
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self.seconds += time.perf_counter() - self._start
            self._start = None


class KeepCheckpoints(Callback):
    """Saves the model after given optimizer steps, each as a folder `step-<step>`.

    Args:
        folder: Folder of the checkpoints.
        steps: After which optimizer steps.
        save: Writes the model as it is into a folder, completely or not at all.
    """

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], None]) -> None:
        """Keep the arguments."""
        self.folder = folder
        self.steps = frozenset(steps)
        self.save = save

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the model if this is one of the steps and its losses are finite."""
        assert isinstance(pl_module, SFTMixModule)
        if pl_module.step in self.steps:
            pl_module.check_finite()
            self.save(self.folder / f"step-{pl_module.step:06d}")


class StepProgressBar(Callback):
    """One bar over all optimizer steps of a run, with time left and the last losses.

    Lightning's own bar restarts at every epoch, and reads each metric at every step.

    Args:
        title: Name of the run.
    """

    def __init__(self, title: str) -> None:
        """Keep the title."""
        self.title = title

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin. Without a terminal, a line is printed now and then."""
        assert isinstance(pl_module, SFTMixModule)
        self.bar = progress_bar(pl_module.total_steps, self.title, "step")
        self.bar.update(pl_module.step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance. The losses are those that were read last."""
        assert isinstance(pl_module, SFTMixModule)
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.bar.set_description(f"{self.title}, {epoch}", refresh=False)
        if pl_module.is_read(pl_module.step):
            metrics, names = trainer.callback_metrics, {"train/loss": "loss", "val/loss": "held-out"}
            shown = {name: f"{metrics[key].item():.3f}" for key, name in names.items() if key in metrics}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End, so that what is printed next has its own line."""
        if hasattr(self, "bar"):
            self.bar.close()
