"""One run of the trainer, from a model and its data to a tuned model and its figures."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger

from sftmix.errors import InputError
from sftmix.training.callbacks import Figures, KeepCheckpoints, StepBar
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.module import SFTModule


class Fitted(NamedTuple):
    """What a run measured.

    Attributes:
        metrics: figures for `metrics.json`.
        val_num_tokens: response tokens of each held-out example, in their order.
        val_nll: nats of each held-out response after training.
    """

    metrics: dict[str, Any]
    val_num_tokens: list[int]
    val_nll: list[float]


def fit(
    module: SFTModule,
    data: SFTDataModule,
    *,
    title: str,
    folder: Path,
    accelerator: str,
    precision: str,
    progress_bar: bool,
    checkpoint_steps: Sequence[int],
    checkpoints: Path,
    save: Callable[[Path], None],
    wandb: Mapping[str, Any] | None,
) -> Fitted:
    """Train to the end, with the held-out loss before, after each epoch and at the end.

    Args:
        module: model and recipe.
        data: steps and held-out part.
        title: what the progress bar calls the run.
        folder: where logs go.
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        progress_bar: show one.
        checkpoint_steps: after which steps a checkpoint is kept.
        checkpoints: the folder they are kept in.
        save: writes the model as it is into a folder.
        wandb: arguments of Lightning's WandbLogger, or None.

    Raises:
        InputError: Weights & Biases cannot be reached or has no key.
    """
    figures = Figures(checkpoint_steps)
    callbacks: list[Callback] = [figures, KeepCheckpoints(checkpoints, checkpoint_steps, save)]
    if progress_bar:
        callbacks.append(StepBar(title, data.steps.sampler.steps_per_epoch, data.steps.epochs))
    loggers: list[Logger] = [CSVLogger(folder, name="logs", version="")]
    if wandb is not None:
        loggers.append(_wandb_logger(folder, wandb))
    with quiet_lightning():
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,  # the data set holds the steps of all epochs in order
            logger=loggers,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,  # Lightning's restarts at every held-out pass
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if len(data.val) else 0,
            log_every_n_steps=1,  # the callback reads figures when it is time
            val_check_interval=data.steps.sampler.steps_per_epoch,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        before = None
        if len(data.val):
            trainer.validate(module, datamodule=data, verbose=False)
            before = trainer.callback_metrics["val/loss"].item()
        module.train()  # a model comes from its folder in eval mode, and Lightning leaves it there
        start = time.perf_counter()
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            if error.code == 1 and trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        seconds = time.perf_counter() - start
        for logger in loggers:
            logger.finalize("success")
    if wandb is not None:
        import wandb as client

        client.finish()
    final = trainer.callback_metrics
    metrics: dict[str, Any] = {
        "steps": trainer.global_step,
        "examples": data.steps.sampler.num_examples,
        "pairs": data.steps.sampler.num_pairs,
        "without_partner": data.steps.sampler.num_singles if data.steps.sampler.num_pairs else None,
        "seconds": round(seconds, 1),
        "tokens_per_sec": round(figures.tokens / figures.seconds, 1),
        "train_loss_last_step": final["train/loss"].item(),
        "val_examples": len(data.val.encoded),
        "val_loss_before": before,
        "val_loss": final["val/loss"].item() if len(data.val) else None,
        "val_perplexity": final["val/perplexity"].item() if len(data.val) else None,
    }
    placed = sorted(zip(data.val.order, module.val_num_tokens, module.val_nll, strict=True))
    return Fitted(metrics, [num_tokens for _, num_tokens, _ in placed], [nll for _, _, nll in placed])


def _wandb_logger(folder: Path, arguments: Mapping[str, Any]) -> Logger:
    import wandb as client
    from lightning.pytorch.loggers import WandbLogger

    try:
        quiet = client.Settings(silent=True)  # it would name a folder that is still to get its name
        logger = WandbLogger(save_dir=folder, settings=quiet, **arguments)
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
            warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
            yield
    finally:
        logger.setLevel(level)
        rank_zero.setLevel(before)
