"""One run of the trainer, from a model and its data to a tuned model and its figures."""

import csv
import logging
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger

from sftmix.errors import InputError
from sftmix.training.callbacks import Figures, HeldOutLoss, KeepCheckpoints, SaveStates, StepBar, perplexity_of
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.module import SFTModule
from sftmix.training.ranks import Ranks
from sftmix.training.state import States, step_of
from sftmix.training.stopping import StopRequest
from sftmix.training.strategy import trainer_arguments

LOGS, METRICS = "logs", "metrics.csv"


class Fitted(NamedTuple):
    """What a run measured.

    Attributes:
        metrics: figures for `metrics.json`.
        val_num_tokens: response tokens of each held-out example, in their order.
        val_nll: nats of each held-out response after training.
        num_tokens: tokens that were trained on, over all ranks.
        seconds_before: of training steps of earlier processes, which this one went on after.
    """

    metrics: dict[str, Any]
    val_num_tokens: list[int]
    val_nll: list[float]
    num_tokens: int
    seconds_before: float


def fit(
    module: SFTModule,
    data: SFTDataModule,
    *,
    title: str,
    folder: Path,
    saves: Path,
    fields: Mapping[str, Any],
    ranks: Ranks,
    strategy: str,
    accelerator: str,
    precision: str,
    progress_bar: bool,
    checkpoint_steps: Sequence[int],
    checkpoints: Path,
    save: Callable[[Path], None],
    accumulates_whole: bool,
    save_every_n_steps: int,
    keep: int,
    stop: StopRequest,
    wandb: Mapping[str, Any] | None,
) -> Fitted:
    """Train to the end, with the held-out loss before, after each epoch and at the end.

    A run that was cut off goes on from its newest saved state, and ends with the same weights.

    Args:
        module: model and recipe.
        data: steps and held-out part.
        title: what the progress bar calls the run.
        folder: where logs go.
        saves: where states go.
        fields: what the run's content depends on.
        ranks: this process among those that train.
        strategy: single, ddp or fsdp.
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        progress_bar: show one, on the first rank.
        checkpoint_steps: after which steps a checkpoint is kept.
        checkpoints: the folder they are kept in.
        save: writes the model as it is into a folder.
        accumulates_whole: of FSDP2: gradients meet once a step.
        save_every_n_steps: optimizer steps between two saved states.
        keep: saved states that stay.
        stop: whether this process was asked to stop.
        wandb: arguments of Lightning's WandbLogger, or None.

    Raises:
        InputError: Weights & Biases cannot be reached or has no key; a loss is no number; a state cannot be written or
            is of another run.
        Stopped: a stop was asked for; the state is saved.
    """

    def say(what: str) -> None:
        if ranks.is_first:
            print(f"            {what}", flush=True)

    states = States(saves, ranks, keep, fields)
    found = states.find(say)
    data.first_step = 0 if found is None else step_of(found)
    loggers = _loggers(folder, wandb, data.first_step) if ranks.is_first else []

    def log(figures: Mapping[str, float], step: int) -> None:
        for logger in loggers:
            logger.log_metrics(dict(figures), step=step - 1)
            logger.save()

    figures = Figures(checkpoint_steps, lambda i: data.steps.encoded[i].example_id, log)
    held_out = HeldOutLoss(data, ranks, figures)
    callbacks: list[Callback] = [
        figures,
        KeepCheckpoints(checkpoints, checkpoint_steps, save),
        held_out,
        SaveStates(states, found, save_every_n_steps, stop, figures, held_out, say),
    ]
    if progress_bar and ranks.is_first:
        callbacks.append(StepBar(title, data.steps.epochs, figures))
    with quiet_lightning():
        trainer = Trainer(
            **trainer_arguments(strategy, accelerator, precision, ranks, accumulates_whole=accumulates_whole),
            max_epochs=1,  # the data set holds the steps of all epochs in order
            logger=False,  # the callback logs when figures are read
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,  # it would restart at every held-out pass
            num_sanity_val_steps=0,
            limit_val_batches=0,  # the callback measures the held-out loss
            default_root_dir=folder,
        )
        module.train()  # a model comes from its folder in eval mode, and Lightning leaves it there
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            if error.code == 1 and trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            for logger in loggers:
                logger.finalize("success")
            if wandb is not None and ranks.is_first:
                import wandb as client

                client.finish()  # else the next run of this process would go into this one
    metrics: dict[str, Any] = {
        "steps": module.step,
        "examples": data.steps.sampler.num_examples,
        "pairs": data.steps.sampler.num_pairs,
        "without_partner": data.steps.sampler.num_singles if data.steps.sampler.num_pairs else None,
        "seconds": round(figures.seconds, 1),
        "tokens_per_sec": round(figures.tokens / figures.seconds, 1),
        "train_loss_last_step": last_logged(folder, "train/loss") if ranks.is_first else None,
        "val_examples": len(data.val.encoded),
        "val_loss_before": held_out.before,
        "val_loss": held_out.loss,
        "val_perplexity": None if held_out.loss is None else perplexity_of(held_out.loss),
    }
    return Fitted(metrics, held_out.num_tokens, held_out.nll, figures.tokens, figures.seconds_before)


def _loggers(folder: Path, wandb: Mapping[str, Any] | None, first_step: int) -> list[Logger]:
    """Where figures go; those that an earlier process logged up to its saved state are there again."""
    file, aside = folder / LOGS / METRICS, folder / f".{METRICS}"
    if file.is_file() and not aside.is_file():  # else an earlier process was ended in between
        file.rename(aside)
    before = _read_csv(aside) if first_step else []
    shutil.rmtree(folder / LOGS, ignore_errors=True)
    loggers: list[Logger] = [CSVLogger(folder, name=LOGS, version="")]
    for row in before:
        if int(row["step"]) < first_step:
            kept = {name: float(value) for name, value in row.items() if value and name != "step"}
            loggers[0].log_metrics(kept, step=int(row["step"]))
    loggers[0].save()
    aside.unlink(missing_ok=True)
    if wandb is not None:
        loggers.append(_wandb_logger(folder, wandb))
    return loggers


def _read_csv(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def last_logged(folder: Path, name: str) -> float:
    """The last value of a figure in a run's `logs/metrics.csv`."""
    return [float(row[name]) for row in _read_csv(folder / LOGS / METRICS) if row.get(name)][-1]


def _wandb_logger(folder: Path, arguments: Mapping[str, Any]) -> Logger:
    import wandb as client
    from lightning.pytorch.loggers import WandbLogger

    name = folder / ".wandb_id"  # a run that goes on is the same run there
    if not name.is_file():
        name.write_text(uuid.uuid4().hex[:16])
    try:
        quiet = client.Settings(silent=True)  # it would name a folder that is still to get its name
        logger = WandbLogger(save_dir=folder, settings=quiet, id=name.read_text(), resume="allow", **arguments)
        _ = logger.experiment
    except (client.errors.UsageError, client.errors.CommError) as error:
        cause = str(error).splitlines()[0]
        raise InputError(
            f"logger=wandb: {cause}; log in with `wandb login`, or set logger.wandb.mode=offline"
        ) from None
    return logger


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's notes on what is as it should be here: one device, no workers, nothing held out."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = rank_zero.level
    rank_zero.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings(
                "ignore", message="Total length of .* across ranks is zero.*"
            )  # all steps are taken
            warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
            yield
    finally:
        logger.setLevel(level)
        rank_zero.setLevel(before)
