"""What happens beside the steps: checkpoints of the reference, throughput, the progress bar."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from sftmix.data.collate import StepBatch


class KeepCheckpoints(Callback):
    """Saves the model after given optimizer steps, each as a folder `step-<number>`.

    Args:
        folder: where they go.
        steps: after which optimizer steps.
        save: writes the model as it is into a folder.
    """

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], None]) -> None:
        """Keep them."""
        self.folder = folder
        self.steps = frozenset(steps)
        self.save = save

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save where it is time."""
        if trainer.global_step in self.steps:
            self.save(self.folder / f"step-{trainer.global_step:06d}")


class Throughput(Callback):
    """Logs `perf/tokens_per_sec`: tokens of prompts and responses, padding left out, over the time of each step."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.tokens = 0
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Stop the clock and log."""
        seconds = time.perf_counter() - self._start
        self.tokens += batch.num_input_tokens
        self.seconds += seconds
        pl_module.log("perf/tokens_per_sec", batch.num_input_tokens / seconds, batch_size=1)


class StepBar(TQDMProgressBar):
    """One bar over all optimizer steps of a run, with the loss beside it."""

    def __init__(self, title: str, steps_per_epoch: int, epochs: int) -> None:
        """Keep what the bar says."""
        super().__init__(leave=True)
        self.title = title
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count from the step where the run is."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(self._said(0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.train_progress_bar.set_description(self._said(batch_idx))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The figures beside the bar."""
        shown = {"train/loss": "loss", "val/loss": "held-out"}
        metrics = trainer.callback_metrics
        return {name: f"{metrics[key].item():.3f}" for key, name in shown.items() if key in metrics}

    def _said(self, batch_idx: int) -> str:
        epoch = min(batch_idx // self.steps_per_epoch + 1, self.epochs)
        return f"{self.title}, epoch {epoch}/{self.epochs}"
