"""What happens beside the steps: figures, held-out passes, checkpoints, saved states, the progress bar."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from sftmix.data.collate import StepBatch
from sftmix.distributed.process_group import all_gather_object, all_reduce_sum
from sftmix.distributed.ranks import Ranks
from sftmix.distributed.sharding import reshard
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError, Stopped
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.loggers import Loggers
from sftmix.training.module import SFTMixModule
from sftmix.training.progress import progress_bar
from sftmix.training.scoring import response_nll_of_ranks
from sftmix.training.state import States

SUMMED = ("train/loss", "train/ntp_loss", "train/mixup_loss")  # each rank has its part of them
IDS_SHOWN = 40


class Figures(Callback):
    """Logs the figures of every k-th step and what Mixup does in those that were diagnosed.

    Beside them `perf/tokens_per_sec` since the last reading.
    That rate is of tokens of prompts and responses over all ranks, padding left out, over the time of training steps.
    A step itself waits for the device nowhere but in transformers, whose masks ask it once a forward; here it is waited
    for where figures are read, and before what is no training: saving, held-out passes. Lightning's own `log` would
    read the figures at every step.

    Args:
        saves: after which optimizer steps a checkpoint is saved.
        example_id: the id of an example by its number, to name those of a step that went wrong.
        loggers: where figures go.

    Attributes:
        shown: the figures of the last reading, and those of the last held-out pass.
        tokens: that were trained on, over all ranks, those of earlier processes too.
        seconds: of training steps, those of earlier processes too.
        seconds_before: those of earlier processes alone.
    """

    def __init__(self, saves: Sequence[int], example_id: Callable[[int], str], loggers: Loggers) -> None:
        """Nothing seen yet."""
        self.saves = frozenset(saves)
        self.example_id = example_id
        self.loggers = loggers
        self.shown: dict[str, float] = {}
        self.tokens = 0
        self.seconds = 0.0
        self.seconds_before = 0.0
        self._start: float | None = None
        self._logged = (0, 0.0)

    def restore(self, tokens: int, seconds: float) -> None:
        """Go on counting where an earlier process was."""
        self.tokens, self.seconds, self.seconds_before = tokens, seconds, seconds
        self._logged = (tokens, seconds)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock where it stands still."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Count, and read and log where it is time."""
        assert isinstance(pl_module, SFTMixModule)
        self.tokens += batch.num_input_tokens
        reads, diagnosis = pl_module.reads_figures(), pl_module.diagnosis
        if reads or diagnosis is not None or pl_module.step in self.saves:
            self.stop_clock(pl_module)
            self.check(pl_module)
        figures: dict[str, float] = {}
        if reads:
            tokens, seconds = self.tokens - self._logged[0], self.seconds - self._logged[1]
            self._logged = (self.tokens, self.seconds)
            figures = {name: float(value) for name, value in pl_module.figures.items()}
            parts = [name for name in SUMMED if name in figures]
            figures.update(zip(parts, all_reduce_sum([figures[name] for name in parts]), strict=True))
            figures["perf/tokens_per_sec"] = tokens / seconds
            self.shown.update(figures)
        if diagnosis is not None:
            figures |= diagnosis.figures()
            self.loggers.log_shares("mixup/lam", diagnosis.lam, pl_module.step)
        if figures:
            self.loggers.log(figures, pl_module.step)

    def check(self, module: SFTMixModule) -> None:
        """End the run where a loss or a gradient since the last reading is no number, on every rank alike.

        Raises:
            InputError: one is; the step and its examples are named.
        """
        own = module.first_not_finite()
        found = [other for other in all_gather_object(own) if other is not None]
        if found:
            first = min(step for step, _, _ in found)
            what = next(what for step, what, _ in found if step == first)
            members = [i for step, _, numbers in found for i in numbers if step == first]
            names = [self.example_id(i) for i in members[:IDS_SHOWN]]
            more = f" and {len(members) - IDS_SHOWN} more" if len(members) > IDS_SHOWN else ""
            raise InputError(
                f"step {first}: the {what}, expected a number; its examples: {', '.join(names)}{more}. Nothing after "
                f"it was saved; a lower lr or a smaller max_grad_norm may help"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop for good."""
        assert isinstance(pl_module, SFTMixModule)
        self.stop_clock(pl_module)

    def stop_clock(self, module: SFTMixModule) -> None:
        """Wait for the device and add up the time; it starts again with the next step."""
        if self._start is not None:
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self.seconds += time.perf_counter() - self._start
            self._start = None


class HeldOutLoss(Callback):
    """Nats of the held-out responses before training, after each epoch and at the end.

    Args:
        data: holds them.
        ranks: this process: each takes its share.
        figures: shows the loss, and stops its clock.

    Attributes:
        before: nats per token before training; None where nothing is held out.
        num_tokens: response tokens of each held-out example, in their order.
        nll: nats of each held-out response, at the last pass.
    """

    def __init__(self, data: SFTDataModule, ranks: Ranks, figures: Figures) -> None:
        """Nothing is measured yet."""
        self.data = data
        self.ranks = ranks
        self.figures = figures
        self.before: float | None = None
        self.num_tokens: list[int] = []
        self.nll: list[float] = []
        self._measured_at = -1

    @property
    def loss(self) -> float | None:
        """Nats per held-out token at the last pass."""
        return sum(self.nll) / sum(self.num_tokens) if self.nll else None

    def by_half(self, halves: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Nats per held-out token at the last pass over the examples at given places, as `val/loss_<half>`."""
        return {
            f"val/loss_{half}": sum(self.nll[k] for k in places) / sum(self.num_tokens[k] for k in places)
            for half, places in halves.items()
            if places
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """The pass after an epoch."""
        assert isinstance(pl_module, SFTMixModule)
        if pl_module.step % pl_module.steps_per_epoch == 0:
            self.figures.stop_clock(pl_module)
            self.measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last pass, where a process goes on after the last step; an earlier one has logged its figures."""
        assert isinstance(pl_module, SFTMixModule)
        if self._measured_at != pl_module.step:
            self.measure(trainer, pl_module, logs=False)

    def measure(self, trainer: Trainer, module: SFTMixModule, *, logs: bool = True) -> None:
        """Nats of every held-out response under the model as it is."""
        self._measured_at = module.step
        if not len(self.data.val):
            return
        was_training = module.lm.training
        module.lm.eval()
        with trainer.precision_plugin.forward_context():
            batches = self.data.held_out(self.ranks.rank, self.ranks.world_size)
            nll, counts = response_nll_of_ranks(module.lm, batches, len(self.data.val), module.device)
        reshard(module.lm)
        module.lm.train(was_training)
        placed = sorted(zip(self.data.val.order, counts, nll, strict=True))
        self.num_tokens = [count for _, count, _ in placed]
        self.nll = [value for _, _, value in placed]
        loss = self.loss
        assert loss is not None
        self.figures.shown["val/loss"] = loss
        if module.step and logs:
            self.figures.loggers.log({"val/loss": loss, "val/perplexity": perplexity_of(loss)}, module.step)


def perplexity_of(loss: float) -> float:
    """The exponential of nats per token, not a number's overflow."""
    return torch.tensor(loss, dtype=torch.float64).exp().item()


class KeepCheckpoints(Callback):
    """Saves the model after given optimizer steps, each as a folder `step-<number>`.

    Args:
        folder: where they go.
        steps: after which optimizer steps.
        save: writes the model as it is into a folder, whole or not at all.
    """

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], None]) -> None:
        """Keep them."""
        self.folder = folder
        self.steps = frozenset(steps)
        self.save = save

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save where it is time."""
        assert isinstance(pl_module, SFTMixModule)
        if pl_module.step in self.steps:
            self.save(self.folder / f"step-{pl_module.step:06d}")


class SaveStates(Callback):
    """Goes on from the newest saved state, saves one every few steps, at the last one, and where a stop is asked for.

    Args:
        states: where they are.
        found: the state to go on from.
        every_n_steps: optimizer steps between two of them.
        stop: whether this process was asked to stop.
        figures: checks that no state after a step that went wrong is saved; counts time and tokens.
        held_out: remembers the loss before training.
        say: prints a line, on the first rank.
    """

    def __init__(
        self,
        states: States,
        found: Path | None,
        every_n_steps: int,
        stop: StopRequest,
        figures: Figures,
        held_out: HeldOutLoss,
        say: Callable[[str], None],
    ) -> None:
        """Keep what a state needs."""
        self.states = states
        self.found = found
        self.every_n_steps = every_n_steps
        self.stop = stop
        self.figures = figures
        self.held_out = held_out
        self.say = say

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the state that was found."""
        assert isinstance(pl_module, SFTMixModule)
        if self.found is not None:
            pl_module.step, saved = self.states.load(self.found, pl_module.lm, trainer.optimizers[0])
            self.figures.restore(saved["tokens"], saved["seconds"])
            self.held_out.before = saved["val_loss_before"]
            self.say(f"goes on after step {pl_module.step} of {pl_module.total_steps}")
        else:
            self.held_out.measure(trainer, pl_module)
            self.held_out.before = self.held_out.loss

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals again, which Lightning has just taken over, and let a stop wait for the next step."""
        self.stop.listen()
        self.stop.waits_for_step = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the state every few steps, after the last one, and when a stop was asked for.

        Raises:
            Stopped: A stop was asked for, and the state is saved.
        """
        assert isinstance(pl_module, SFTMixModule)
        stops = self.stop.asked_of_any()
        if stops or pl_module.step % self.every_n_steps == 0 or pl_module.step == pl_module.total_steps:
            self.save(trainer, pl_module)
        if stops:
            raise Stopped(f"stopped after step {pl_module.step} of {pl_module.total_steps}, which is saved", stops)

    def save(self, trainer: Trainer, module: SFTMixModule) -> None:
        """Save the state as it is, unless a step since the last reading went wrong."""
        self.figures.stop_clock(module)
        self.figures.check(module)
        saved = {
            "tokens": self.figures.tokens,
            "seconds": self.figures.seconds,
            "val_loss_before": self.held_out.before,
        }
        self.states.save(module.step, module.lm, trainer.optimizers[0], saved)


class StepBar(Callback):
    """One bar over all optimizer steps of a run, with the losses beside it."""

    def __init__(self, title: str, epochs: int, figures: Figures) -> None:
        """Keep what the bar says."""
        self.title = title
        self.epochs = epochs
        self.figures = figures

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; where nobody watches a terminal, a line now and then is enough."""
        assert isinstance(pl_module, SFTMixModule)
        self.bar = progress_bar(pl_module.total_steps, self.title, "step")
        self.bar.update(pl_module.step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; the losses are those of the last reading."""
        assert isinstance(pl_module, SFTMixModule)
        epoch = (pl_module.step - 1) // pl_module.steps_per_epoch + 1
        self.bar.set_description(f"{self.title}, epoch {epoch}/{self.epochs}", refresh=False)
        if pl_module.reads_figures():
            names = {"train/loss": "loss", "val/loss": "held-out"}
            shown = {name: f"{self.figures.shown[key]:.3f}" for key, name in names.items() if key in self.figures.shown}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End, so that what is said next has a line of its own."""
        if hasattr(self, "bar"):
            self.bar.close()
