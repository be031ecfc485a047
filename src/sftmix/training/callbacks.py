"""What happens beside the steps: checkpoints of the reference, figures, the progress bar."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from sftmix.data.collate import StepBatch
from sftmix.training.module import SFTModule
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


class Figures(Callback):
    """Logs the figures of every k-th step, and `perf/tokens_per_sec` since the last reading.

    That rate is of tokens of prompts and responses, padding left out, over the time of training steps. A step itself
    waits for the device nowhere but in transformers, whose masks ask it once a forward; here it is waited for where
    figures are read, and before what is no training: saving, held-out passes. Lightning's own `log` would read the
    figures at every step.

    Args:
        saves: after which optimizer steps a checkpoint is saved.
    """

    def __init__(self, saves: Sequence[int]) -> None:
        """Nothing seen yet."""
        self.saves = frozenset(saves)
        self.tokens = 0
        self.seconds = 0.0
        self._start: float | None = None
        self._logged = (0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock where it stands still."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Count, and read and log where it is time."""
        assert isinstance(pl_module, SFTModule)
        self.tokens += batch.num_input_tokens
        reads = pl_module.reads_figures(batch_idx)
        if reads or trainer.global_step in self.saves:
            self._stop(pl_module)
        if reads:
            tokens, seconds = self.tokens - self._logged[0], self.seconds - self._logged[1]
            self._logged = (self.tokens, self.seconds)
            figures = {name: float(value) for name, value in pl_module.figures.items()}
            figures["perf/tokens_per_sec"] = tokens / seconds
            pl_module.log_dict(figures, batch_size=1, logger=False)  # for the other callbacks
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=batch_idx)
                logger.save()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Held-out passes do not count."""
        self._stop(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop for good."""
        self._stop(pl_module)

    def _stop(self, pl_module: LightningModule) -> None:
        if self._start is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds += time.perf_counter() - self._start
            self._start = None


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
        """Move on; the losses are those of the last reading."""
        assert isinstance(pl_module, SFTModule)
        epoch = batch_idx // self.steps_per_epoch + 1
        self.bar.set_description(f"{self.title}, epoch {epoch}/{self.epochs}", refresh=False)
        if pl_module.reads_figures(batch_idx):
            figures = {"train/loss": "loss", "val/loss": "held-out"}
            shown = {
                name: f"{trainer.callback_metrics[key].item():.3f}"
                for key, name in figures.items()
                if key in trainer.callback_metrics
            }
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self.bar.close()
