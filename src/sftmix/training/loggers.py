"""Where a run's figures go: `logs/metrics.csv`, and Weights & Biases where that is chosen."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from sftmix.training.wandb_run import BEST, WandbRun

LOGS, METRICS = "logs", "metrics.csv"
BINS = 20


class Loggers:
    """What the figures of a run are given to; on ranks that do not write it does nothing.

    As a context it ends what it has begun.

    Args:
        folder: of the run.
        wandb: which run it is at Weights & Biases, or None.
        first_step: optimizer steps that an earlier process has taken and saved: what it logged of them stays.
        writes: whether this process is the one that does.

    Raises:
        InputError: Weights & Biases cannot be reached or has no key.
    """

    def __init__(self, folder: Path, wandb: Mapping[str, Any] | None, first_step: int, *, writes: bool) -> None:
        """Open them."""
        self._folder = folder
        self._csv = _csv_logger(folder, first_step) if writes else None
        self._run = WandbRun(folder, wandb) if writes and wandb is not None else None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write figures of a step, counted from 1. In the file steps are counted from 0."""
        if self._csv is not None:
            self._csv.log_metrics(dict(figures), step=step - 1)
            self._csv.save()
        if self._run is not None:
            self._run.log(figures, step)

    def log_shares(self, name: str, values: Sequence[float], step: int) -> None:
        """Write a histogram of values between 0 and 1, where there is more than a file."""
        if self._run is not None:
            self._run.log_histogram(name, values, step, 0.0, 1.0, BINS)

    def summarize(self, figures: Mapping[str, Any], step: int) -> None:
        """Write what a run ends with: the given figures, and the least and last held-out loss of all its processes."""
        if self._run is not None:
            held_out = logged(self._folder, BEST)
            best = {BEST: {"min": min(held_out), "last": held_out[-1]}} if held_out else {}
            self._run.summarize({**figures, **best}, step)

    def __enter__(self) -> "Loggers":
        """Go on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        if self._csv is not None:
            self._csv.finalize("success")
        if self._run is not None:
            self._run.__exit__(kind, error, trace)


def logged(folder: Path, name: str) -> list[float]:
    """All values of a figure in a run's `logs/metrics.csv`, in their order."""
    return [float(row[name]) for row in _read_csv(folder / LOGS / METRICS) if row.get(name)]


def _csv_logger(folder: Path, first_step: int) -> CSVLogger:
    """The file; what an earlier process logged up to its saved state is there again."""
    file, aside = folder / LOGS / METRICS, folder / f".{METRICS}"
    if file.is_file() and not aside.is_file():  # else an earlier process was ended in between
        file.rename(aside)
    before = _read_csv(aside) if first_step else []
    shutil.rmtree(folder / LOGS, ignore_errors=True)
    logger = CSVLogger(folder, name=LOGS, version="")
    for row in before:
        if int(row["step"]) < first_step:
            kept: dict[str, Tensor | float] = {
                name: float(value) for name, value in row.items() if value and name != "step"
            }
            logger.log_metrics(kept, step=int(row["step"]))
    logger.save()
    aside.unlink(missing_ok=True)
    return logger


def _read_csv(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))
