"""One run of Lightning's Trainer: from a module and its data to a tuned model and its metrics."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from sftmix.training.loggers import BEST, WandbRunLogger, finishing, logged, metrics_file
from sftmix.training.module import HeldOut, SFTMixModule
from sftmix.training.states import TrainingStates


@dataclass(frozen=True)
class FitSettings:
    """What a run does beside training.

    Attributes:
        title: Name of the run in the progress bar.
        folder: Folder of the logs.
        states: Folder of the training states.
        fields: Everything that the run's content depends on.
        checkpoints: Folder of the model's checkpoints.
        checkpoint_steps: After which steps a checkpoint is kept.
        save_every_n_steps: Optimizer steps between two training states.
        keep: Number of training states that are kept.
        progress_bar: Show a progress bar on the first rank.
        trainer: Arguments of Lightning's Trainer: devices, strategy, precision, max_epochs, log_every_n_steps, ...
        callbacks: The user's callbacks.
        loggers: Loggers beside `logs/metrics.csv`, on the first rank.
        val_subsets: By the name of a subset, the indices of its held-out examples, for the summary at Weights & Biases.
    """

    title: str
    folder: Path
    states: Path
    fields: Mapping[str, Any]
    checkpoints: Path
    checkpoint_steps: Sequence[int]
    save_every_n_steps: int
    keep: int
    progress_bar: bool
    trainer: Mapping[str, Any]
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()
    val_subsets: Mapping[str, Sequence[int]] = field(default_factory=dict)


class FitResult(NamedTuple):
    """What a run measured.

    Attributes:
        metrics: Content of `metrics.json`.
        held_out: Held-out examples after training; None if nothing is held out.
        num_tokens: Tokens that were trained on, over all ranks.
        seconds_before: Seconds of training steps of earlier processes that this run resumed from.
    """

    metrics: dict[str, Any]
    held_out: HeldOut | None
    num_tokens: int
    seconds_before: float


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
        settings: What the run does beside training.
        save: Writes the model as it is into a folder.
        ranks: This process among those that train.
        stop: Whether this process was asked to stop.

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
        every_n_steps=settings.save_every_n_steps,
        keep=settings.keep,
        fields=settings.fields,
        stop=stop,
        say=say,
    )
    found = states.find()
    first_step = 0 if found is None else int(found.name.removeprefix("step-"))
    loggers = [metrics_file(settings.folder, first_step), *settings.loggers] if ranks.is_first else []
    throughput = Throughput()
    callbacks: list[Callback] = [
        throughput,
        KeepCheckpoints(settings.checkpoints, settings.checkpoint_steps, save),
        states,
        *settings.callbacks,
    ]
    if settings.progress_bar and ranks.is_first:
        callbacks.append(StepProgressBar(settings.title))
    with finishing(loggers):
        with quiet_lightning():
            trainer = Trainer(
                **settings.trainer,
                logger=loggers or False,
                callbacks=callbacks,
                enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
                enable_model_summary=False,
                enable_progress_bar=False,
                num_sanity_val_steps=-1,  # the held-out loss before training
                default_root_dir=settings.folder,
            )
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
                logger.summarize(_summary(metrics, module.held_out, settings), module.step)
        return FitResult(metrics, module.held_out, throughput.tokens, throughput.seconds_before)


def _metrics(
    module: SFTMixModule, data: SFTDataModule, throughput: Throughput, train_losses: Sequence[float]
) -> dict[str, Any]:
    """Return the content of `metrics.json`."""
    sampler, loss = data.sampler, None if module.held_out is None else module.held_out.loss
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
    }


def _summary(metrics: Mapping[str, Any], held_out: HeldOut | None, settings: FitSettings) -> dict[str, Any]:
    """Return what the run ends with at Weights & Biases: metrics, and the minimum and last held-out loss."""
    summary = {f"metrics/{name}": value for name, value in metrics.items()}
    if held_out is not None:
        subsets = settings.val_subsets.items()
        summary |= {f"val/loss_{name}": held_out.loss_of(examples) for name, examples in subsets if examples}
    if losses := logged(settings.folder, BEST):
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
