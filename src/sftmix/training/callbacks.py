"""What happens beside the steps: checkpoints of the reference, throughput, the progress bar."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from sftmix.data.collate import StepBatch
from sftmix.training.progress import progress_bar


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


class StepBar(Callback):
    """One bar over all optimizer steps of a run, with the losses beside it."""

    def __init__(self, title: str, steps_per_epoch: int, epochs: int) -> None:
        """Keep what the bar says."""
        self.title = title
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; where nobody watches a terminal, a line now and then is enough."""
        self.bar = progress_bar(self.steps_per_epoch * self.epochs, self.title, "step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        epoch = batch_idx // self.steps_per_epoch + 1
        figures = {"train/loss": "loss", "val/loss": "held-out"}
        shown = {
            name: f"{trainer.callback_metrics[key].item():.3f}"
            for key, name in figures.items()
            if key in trainer.callback_metrics
        }
        self.bar.set_description(f"{self.title}, epoch {epoch}/{self.epochs}", refresh=False)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self.bar.close()
