"""A run at Weights & Biases. Offline it is a folder `wandb/offline-run-*`, which `wandb sync` sends later."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sftmix.errors import TRY_AGAIN, InputError, Stopped
from sftmix.terminal import visible

STEP = "trainer/step"  # optimizer steps that were taken: what every figure is drawn over
BEST = "val/loss"  # its summary holds the least value beside the last one
NAME = ".wandb_id"


class WandbRun:
    """A run of its own: whatever else this process or another one logs, nothing lands in it, and it lands nowhere else.

    Rows that are logged at one step are one row there. Its id lies in the folder: a process that goes on where another
    was ended goes on with the same run. As a context it ends where that does.

    Args:
        folder: where its files and its id are kept.
        arguments: those of `wandb.init` that say which run it is.

    Raises:
        InputError: Weights & Biases cannot be reached, or has no key.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        """Begin, or go on."""
        import wandb as client

        name = folder / NAME
        if not name.is_file():
            name.write_text(uuid.uuid4().hex[:16])
        settings = client.Settings(
            silent=True,  # it would name a folder that is still to get its name
            reinit="create_new",  # and not the run that this process has open already
            disable_git=True,  # the address of a remote may hold a token
        )
        try:
            self._run = client.init(dir=folder, id=name.read_text(), resume="allow", settings=settings, **arguments)
        except (client.errors.UsageError, client.errors.CommError) as error:
            cause = str(error).splitlines()[0]
            raise InputError(
                f"logger=wandb: {cause}; log in with `wandb login`, or set logger.wandb.mode=offline"
            ) from None
        self._client = client
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)
        self._run.define_metric(BEST, step_metric=STEP, summary="min,last")

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        """Add figures to the row of a step."""
        self._run.log({**figures, STEP: step}, step=step)

    def log_histogram(self, name: str, values: Sequence[float], step: int, low: float, high: float, bins: int) -> None:
        """Add a histogram between two values to the row of a step; values beyond them count in the outermost bins."""
        counted = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
        self.log({name: self._client.Histogram(np_histogram=counted)}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Add a table to the row of a step; what a terminal or a browser would act on in its text is written out."""
        shown = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        self.log({name: self._client.Table(columns=list(columns), data=shown)}, step)

    def summarize(self, figures: Mapping[str, Any], step: int) -> None:
        """Put figures into its summary, where the last step's row is already; those that are None stay out."""
        self._run.log({STEP: step}, step=step, commit=True)  # else that row would come after them
        self._run.summary.update({name: value for name, value in figures.items() if value is not None})

    def __enter__(self) -> "WandbRun":
        """Go on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, with success or without; a stop that was asked for is told from a failure."""
        self._run.finish(exit_code=0 if error is None else TRY_AGAIN if isinstance(error, Stopped) else 1)
