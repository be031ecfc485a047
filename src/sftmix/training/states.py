"""Training states: what a run needs to resume, saved every few minutes and when a stop is asked for.

Randomness, the order of the data and the schedule are functions of the step, so a state holds weights, the optimizer,
Lightning's counters and the states of the callbacks only.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from sftmix.artifacts.files import remove
from sftmix.distributed.checkpoint_io import CheckpointFolderIO, damage, lacks, read_content
from sftmix.distributed.process_group import barrier, broadcast_object
from sftmix.distributed.ranks import Ranks
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError, Stopped

KEY = "training_states"


class TrainingStates(Callback):
    """Saves training states, keeps the newest few, and ends the run with a saved state if a stop is asked for.

    The Trainer needs the plugin `CheckpointFolderIO`. A run resumes by `trainer.fit(..., ckpt_path=states.find())`.
    A state that is due at the last step of an epoch is saved after the validation that follows.

    Args:
        folder: Folder of the states.
        every_minutes: Minutes of training between two states, by the clock of the first rank. None: no limit.
        every_n_steps: Optimizer steps between two states. None: no limit. A state is also saved after the last step.
        keep: Number of complete states that are kept.
        fields: Everything that the run's content depends on. A state of another run is refused.
        say: Prints a line, on the first rank.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        every_minutes: float | None,
        every_n_steps: int | None,
        keep: int,
        fields: Mapping[str, Any],
        stop: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self._saved_at = time.monotonic()
        self.keep = keep
        self.fields = json.loads(json.dumps(fields))
        self.stop = stop
        self.say = say
        self._is_due = False
        self._code = 0

    @property
    def state_key(self) -> str:
        return KEY

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the run."""
        return {"fields": self.fields}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers again, which Lightning has replaced, and let a stop wait for the next step."""
        self.stop.listen()
        self.stop.waits_for_step = True
        self._saved_at = time.monotonic()
        # `StopRequest` replaces Lightning's handling of SIGTERM. Lightning would still broadcast its flag before every
        # step, and wait for the device to read it.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]
        if trainer.global_step:
            self.say(f"goes on after step {trainer.global_step} of {pl_module.total_steps}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the state every few minutes or steps, after the last step, and when a stop was asked for.

        Raises:
            Stopped: If a stop was asked for. The state is saved.
        """
        step = trainer.global_step
        late = self.every_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        code, is_late = self.stop.asked_of_any_and(late and self.ranks.is_first)
        self._code = code or self._code
        is_due = self.every_n_steps is not None and step % self.every_n_steps == 0
        self._is_due = bool(self._code) or is_late or is_due or step == pl_module.total_steps
        if not (trainer.is_last_batch and trainer.enable_validation):
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state of the last step of an epoch, as `on_train_batch_end` does for the other steps."""
        if not trainer.sanity_checking:
            self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        if self._is_due:
            self._is_due = False
            self.save(trainer)
        if self._code:
            raise Stopped(
                f"stopped after step {trainer.global_step} of {module.total_steps}, which is saved", self._code
            )

    def save(self, trainer: Trainer) -> None:
        """Save the state, and remove the oldest ones.

        Raises:
            InputError: If a loss is not finite, or the state cannot be written. Earlier states stay.
        """
        try:
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08d}")
        except InputError as error:
            if "cannot be written" not in str(error):
                raise
            last = next((f for f in self._newest_first() if not lacks(f)), None)
            stays = f"the state after step {step_of(last)} stays" if last else "no state was saved before it"
            raise InputError(f"{error}; {stays}") from None
        if self.ranks.is_first:
            complete = [folder for folder in self._newest_first() if not lacks(folder)]
            for folder in complete[self.keep :]:
                CheckpointFolderIO().remove_checkpoint(folder)
        barrier()
        self._saved_at = time.monotonic()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def find(self) -> Path | None:
        """Return the newest intact state, the same on all ranks, or None.

        A damaged or incomplete state is reported and removed. The run continues from the state before it, or from the
        first step.

        Raises:
            InputError: If the state is of another configuration. The message names the field that differs.
        """
        was_damaged = False
        while (name := broadcast_object(next((f.name for f in self._newest_first()), None))) is not None:
            folder = self.folder / name
            why = damage(folder, self.ranks.rank, self.ranks.world_size)
            if not why:
                content = read_content(folder)
                if content.get("global_step") == step_of(folder):
                    if other := _difference(content["callbacks"][KEY]["fields"], self.fields):
                        raise InputError(f"{folder}: the state of another run: {other}")
                    return folder
                why = f"it is the state after step {content.get('global_step')}"
            was_damaged = True
            self.say(f"{folder}: damaged or incomplete, not used and removed ({why})")
            barrier()
            if self.ranks.is_first:
                remove(folder)
                if folder.exists() or folder.is_symlink():
                    raise InputError(f"{folder}: damaged ({why}), and cannot be removed; remove it")
            barrier()
        if was_damaged:
            self.say("no intact training state is left: training starts from the first step")
        return None


def _do_nothing() -> None:
    pass


def step_of(folder: Path) -> int:
    """Return the number of optimizer steps after which a state was saved."""
    return int(folder.name.removeprefix("step-"))


def _difference(saved: Any, now: Any, key: str = "") -> str:
    """Return the first field that differs, with both values; an empty text if none does."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in sorted(saved.keys() | now.keys()):
            if found := _difference(saved.get(name), now.get(name), f"{key}.{name}" if key else name):
                return found
        return ""
    return "" if saved == now else f"{key} was {saved} and is {now}"
