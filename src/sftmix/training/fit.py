"""One run of Lightning's Trainer: from a module and its data to a tuned model and its metrics."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from sftmix.distributed.ranks import Ranks
from sftmix.distributed.stopping import StopRequest
from sftmix.training.callbacks import KeepCheckpoints, StepProgressBar, Throughput
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.held_out import HeldOut
from sftmix.training.loggers import BEST, WandbRunLogger, finishing, logged, metrics_file
from sftmix.training.module import SFTMixModule
from sftmix.training.states import TrainingStates, step_of


@dataclass(frozen=True)
class FitSettings:
    """What a run does beside training."""

    title: str  # Name of the run in the progress bar
    folder: Path  # Folder of the logs
    states: Path  # Folder of the training states
    fields: Mapping[str, Any]  # Everything that the run's content depends on
    checkpoints: Path  # Folder of the model's checkpoints
    checkpoint_steps: Sequence[int]  # After which steps a checkpoint is saved
    save_every_minutes: float | None  # Minutes between two training states; None: by steps only
    save_every_n_steps: int | None  # Optimizer steps between two training states; None: by minutes only
    keep: int  # Number of training states that are kept
    progress_bar: bool  # Show a progress bar on the first rank
    trainer: Mapping[str, Any]  # Arguments of Lightning's Trainer: devices, strategy, precision, max_epochs, ...
    peak_flops: float | None = None  # Operations per second that all devices can do; None if they are unknown
    recorder: Callback | None = None  # A callback whose state is part of the state that is saved after the same step
    callbacks: Sequence[Callback] = ()  # The user's callbacks
    loggers: Sequence[Logger] = ()  # Loggers beside `logs/metrics.csv`, on the first rank


class FitResult(NamedTuple):
    """What a run measured."""

    metrics: dict[str, Any]  # Content of `metrics.json`
    held_out: HeldOut | None  # Held-out examples after training; None if nothing is held out
    val_sets: dict[str, HeldOut]  # Further validation sets after training, by name
    num_tokens: int  # Tokens that were trained on, over all ranks
    seconds_before: float  # Seconds of training steps of earlier processes that this run resumed from


def fit(
    module: SFTMixModule,
    data: SFTDataModule,
    settings: FitSettings,
    save: Callable[[Path], None],
    ranks: Ranks,
    stop: StopRequest,
) -> FitResult:
    """Train to the end, with the held-out loss before training and after each epoch.

    An interrupted run resumes from its newest training state and ends with the same weights.

    Args:
        module: Model, loss and optimizer.
        data: Optimizer steps and held-out examples.
        save: Writes the model as it is into a folder.

    Raises:
        InputError: If a loss is not finite, or if a training state cannot be written or is of another run.
        Stopped: If a stop was asked for. The state is saved.
    """

    def say(what: str) -> None:
        if ranks.is_first:
            print(f"            {what}", flush=True)

    states = TrainingStates(
        settings.states,
        ranks,
        every_minutes=settings.save_every_minutes,
        every_n_steps=settings.save_every_n_steps,
        keep=settings.keep,
        fields=settings.fields,
        stop=stop,
        say=say,
    )
    found = states.find()
    first_step = 0 if found is None else step_of(found)
    loggers = [metrics_file(settings.folder, first_step), *settings.loggers] if ranks.is_first else []
    throughput = Throughput(settings.peak_flops)
    callbacks: list[Callback] = [
        throughput,
        *([] if settings.recorder is None else [settings.recorder]),
        KeepCheckpoints(settings.checkpoints, settings.checkpoint_steps, save),
        *settings.callbacks,
        states,  # after the user's callbacks, whose states it saves
    ]
    if settings.progress_bar and ranks.is_first:
        callbacks.append(StepProgressBar(settings.title))
    arguments = {
        **settings.trainer,
        "logger": loggers or False,
        "callbacks": callbacks,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "num_sanity_val_steps": -1,  # the held-out loss before training
        "default_root_dir": settings.folder,
    }
    with finishing(loggers), quiet_trainer(**arguments) as trainer:
        try:
            trainer.fit(module, datamodule=data, ckpt_path=found)
        except SystemExit as error:  # Lightning turns Ctrl-C into it
            if error.code == 1 and trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            stop.waits_for_step = False
        stop.end_if_asked()
        metrics = _metrics(module, data, throughput, logged(settings.folder, "train/loss") if ranks.is_first else [])
        for logger in loggers:
            if isinstance(logger, WandbRunLogger):
                logger.summarize(_summary(metrics, settings.folder), module.step)
        return FitResult(metrics, module.held_out, module.val_sets, throughput.tokens, throughput.seconds_before)


def _metrics(
    module: SFTMixModule, data: SFTDataModule, throughput: Throughput, train_losses: Sequence[float]
) -> dict[str, Any]:
    """Return the content of `metrics.json`."""
    sampler, loss = data.sampler.paired, None if module.held_out is None else module.held_out.loss()
    return {
        "steps": module.step,
        "examples": sampler.num_examples,
        "pairs": sampler.num_pairs,
        "without_partner": sampler.num_unpaired if sampler.num_pairs else None,
        "seconds": round(throughput.seconds, 1),
        "tokens_per_sec": round(throughput.tokens / throughput.seconds, 1),
        "train_loss_last_step": train_losses[-1] if train_losses else None,
        "val_examples": len(data.val),
        "val_loss_before": module.val_loss_before,
        "val_loss": loss,
        "val_perplexity": None if loss is None else torch.tensor(loss, dtype=torch.float64).exp().item(),
        "lr": module.optimizer.lr,
        **metrics_of_sets(
            module.val_sets, module.val_sets_before, {name: entry.subsets for name, entry in data.val_sets.items()}
        ),
    }


def metrics_of_sets(
    val_sets: Mapping[str, HeldOut],
    before: Mapping[str, float],
    subsets: Mapping[str, Mapping[str, Sequence[int]]],
) -> dict[str, Any]:
    """Return the entry `val_sets` of `metrics.json`, or nothing if there are no further validation sets.

    Args:
        before: Loss of each set before training, if it is known.
        subsets: Indices of the examples of each subset, by set and subset.
    """
    found = {
        name: {
            "examples": len(result.examples),
            "loss_before": before.get(name),
            "loss": result.loss(),
            **{f"loss_{subset}": loss for subset, loss in result.by_subset(subsets.get(name, {})).items()},
        }
        for name, result in val_sets.items()
    }
    return {"val_sets": found} if found else {}


def _summary(metrics: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the run ends with at Weights & Biases: metrics, and the minimum and last held-out loss."""
    summary = {f"metrics/{name}": value for name, value in metrics.items()}
    if losses := logged(folder, BEST):
        summary[BEST] = {"min": min(losses), "last": losses[-1]}
    return summary


EXPECTED = (
    ".*does not have many workers.*",  # a step takes longer than its preparation
    ".*GPU available but not used.*",
    ".*`val_dataloader`.*",  # nothing is held out
    "Total length of .* across ranks is zero.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # the folder of the run
    ".*is smaller than the logging interval.*",  # the first and the last step are written too
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's notes and warnings on what is intended here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_trainer(**arguments: Any) -> Iterator[Trainer]:
    """Make a Trainer for one call of `fit` or `validate`. It prints nothing, and keeps no model in memory afterwards.

    Trainer, strategy, loops and metrics of Lightning refer to each other and to the module. Without cutting these
    references, the model would stay in memory until Python looks for reference cycles.
    """
    with quiet_lightning():
        trainer = Trainer(enable_model_summary=False, enable_progress_bar=False, **arguments)
        yield trainer
    for user in (trainer.lightning_module, trainer.datamodule):  # type: ignore[attr-defined]
        user.trainer = None
    vars(trainer.strategy).clear()
    vars(trainer).clear()
