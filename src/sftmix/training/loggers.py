"""Lightning loggers of a run: `logs/metrics.csv`, which survives an interruption, and Weights & Biases."""

import csv
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from sftmix.errors import TRY_AGAIN, InputError, Stopped, first_line
from sftmix.terminal import visible
from sftmix.training.curves import LOGS, METRICS

STEP = "trainer/step"  # optimizer steps that were taken: the x-axis of every metric
BEST = "val/loss"  # its summary holds the minimum beside the last value
NAME = ".wandb_id"


def metrics_file(folder: Path, first_step: int) -> CSVLogger:
    """Return the logger of `logs/metrics.csv`. It keeps the metrics of earlier processes up to the saved state.

    Args:
        folder: Folder of the run.
        first_step: Optimizer steps of the state that the run resumes from. In the file, steps are counted from 0.
    """
    file, aside = folder / LOGS / METRICS, folder / f".{METRICS}"
    if file.is_file() and not aside.is_file():  # otherwise an earlier process was ended before the last line below
        file.rename(aside)
    before = _read_csv(aside) if first_step else []
    shutil.rmtree(folder / LOGS, ignore_errors=True)
    logger = CSVLogger(folder, name=LOGS, version="")
    for row in before:
        if int(row["step"]) < first_step:
            kept: dict[str, Tensor | float] = {
                name: int(value) if value.isdigit() else float(value)
                for name, value in row.items()
                if value and name != "step"
            }
            logger.log_metrics(kept, step=int(row["step"]))
    logger.save()
    aside.unlink(missing_ok=True)
    return logger


def logged(folder: Path, name: str) -> list[float]:
    """Return all values of a metric in a run's `logs/metrics.csv`, in their order."""
    return [float(row[name]) for row in _read_csv(folder / LOGS / METRICS) if row.get(name)]


def _read_csv(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


class WandbRunLogger(WandbLogger):
    """Lightning's logger of Weights & Biases, for one stage of a run.

    It opens a new run, even if this process has another one open. The id of the run is stored in the folder, so a
    process that resumes continues the same run. The metrics of one step are one row; steps are counted from 1. Offline,
    the run is a folder `wandb/offline-run-*`, which `wandb sync` sends later.

    Args:
        folder: Folder of the stage.
        arguments: Arguments of `wandb.init`: project, name, group, mode, config, ...

    Raises:
        InputError: If Weights & Biases cannot be reached, or has no key.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        import wandb as client

        name = folder / NAME
        if not name.is_file():
            name.write_text(uuid.uuid4().hex[:16])
        settings = client.Settings(
            silent=True,  # otherwise it prints a folder whose name is temporary
            reinit="create_new",  # not the run that this process has open already
            disable_git=True,  # the address of a remote may hold a token
        )
        try:
            run = client.init(dir=folder, id=name.read_text(), resume="allow", settings=settings, **arguments)
        except (client.errors.UsageError, client.errors.CommError) as error:
            raise InputError(
                f"logger=wandb: {first_line(error)}; log in with `wandb login`, or set logger.wandb.mode=offline"
            ) from None
        super().__init__(save_dir=folder, experiment=run)
        self._client = client
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        run.define_metric(BEST, step_metric=STEP, summary="min,last")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add metrics to the row of a step. Lightning counts steps from 0."""
        assert step is not None
        self._log(metrics, step + 1)

    def log_hyperparams(self, params: Any) -> None:
        """Do nothing: the run was opened with the whole config."""

    def _log(self, content: Mapping[str, Any], step: int) -> None:
        self.experiment.log({**content, STEP: step}, step=step)

    def log_histogram(self, name: str, values: Sequence[float], step: int, low: float, high: float, bins: int) -> None:
        """Add a histogram between two values to the row of a step. Values outside count in the outermost bins."""
        counted = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
        self._log({name: self._client.Histogram(np_histogram=counted)}, step)

    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Add a table to the row of a step. Control characters in its texts are written out."""
        shown = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        self._log({name: self._client.Table(columns=list(columns), data=shown)}, step)

    def summarize(self, metrics: Mapping[str, Any], step: int) -> None:
        """Add metrics other than None to the summary of the run."""
        self.experiment.log({STEP: step}, step=step, commit=True)  # or the last row would overwrite them
        self.experiment.summary.update({name: value for name, value in metrics.items() if value is not None})

    def finish(self, error: BaseException | None) -> None:
        """End the run: with success, with a failure, or with the exit code of a stop that was asked for."""
        self.experiment.finish(exit_code=0 if error is None else TRY_AGAIN if isinstance(error, Stopped) else 1)


@contextmanager
def finishing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Finish loggers at the end, with or without an error."""
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, WandbRunLogger):
                logger.finish(failure)
            else:
                logger.finalize("success" if failure is None else "failed")
