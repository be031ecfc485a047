"""One run of the trainer, from a model and its data to a tuned model and its figures."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, Trainer

from sftmix.distributed.ranks import Ranks
from sftmix.distributed.stopping import StopRequest
from sftmix.distributed.strategy import trainer_arguments
from sftmix.training.callbacks import Figures, HeldOutLoss, KeepCheckpoints, SaveStates, StepBar, perplexity_of
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.loggers import Loggers, logged
from sftmix.training.module import SFTMixModule
from sftmix.training.state import States, step_of


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
    module: SFTMixModule,
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
    val_halves: Mapping[str, Sequence[int]],
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
        wandb: which run it is at Weights & Biases (arguments of `WandbRun`), or None.
        val_halves: by the name of a half, the places of its examples among the held-out ones.

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
    with Loggers(folder, wandb, data.first_step, writes=ranks.is_first) as loggers:
        figures = Figures(checkpoint_steps, lambda i: data.steps.encoded[i].example_id, loggers)
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
                stop.waits_for_step = False
        stop.end_if_asked()
        metrics: dict[str, Any] = {
            "steps": module.step,
            "examples": data.steps.sampler.num_examples,
            "pairs": data.steps.sampler.num_pairs,
            "without_partner": data.steps.sampler.num_unpaired if data.steps.sampler.num_pairs else None,
            "seconds": round(figures.seconds, 1),
            "tokens_per_sec": round(figures.tokens / figures.seconds, 1),
            "train_loss_last_step": logged(folder, "train/loss")[-1] if ranks.is_first else None,
            "val_examples": len(data.val.encoded),
            "val_loss_before": held_out.before,
            "val_loss": held_out.loss,
            "val_perplexity": None if held_out.loss is None else perplexity_of(held_out.loss),
            "lr": module.lr,
        }
        final = {f"metrics/{name}": value for name, value in metrics.items()}
        loggers.summarize(final | held_out.by_half(val_halves), module.step)
        return Fitted(metrics, held_out.num_tokens, held_out.nll, figures.tokens, figures.seconds_before)


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
