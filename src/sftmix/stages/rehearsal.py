"""Rehearse a run on the devices at hand (`mode=check`): what would fail after hours fails within a minute.

Files, hub, data, template, weights, loggers and output folder are checked one after the other, and every fault is
reported. Then all stages run with two steps of the longest examples in a folder that is removed. The target is stopped
after its first step and continues from its saved state.
"""

import copy
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer

from sftmix.config.data import Select
from sftmix.config.entries import FOLDERS
from sftmix.config.schema import Config
from sftmix.distributed.device import Device
from sftmix.errors import INTERRUPTED, InputError, StageError, Stopped, explain_os_error, first_line
from sftmix.stages import preconditions
from sftmix.stages.context import RunContext
from sftmix.stages.device_choice import choose_device
from sftmix.stages.inputs import faults_of, hub_checks, input_checks, models_of, pin_revisions, quantized_by
from sftmix.stages.pipeline import run_pipeline
from sftmix.stages.preconditions import Remark
from sftmix.terminal import counted

NUM_STEPS = 2
MARK = ".stopped_once"

# Returns what was found, one text for each line of the table, or every fault
Action = Callable[[], str | Sequence[str | InputError]]


class CheckResult(NamedTuple):
    """The result of one check."""

    title: str
    is_passed: bool | None  # None: skipped, because an earlier check has failed
    text: str  # What was found, or what is wrong


class StopOnce(Callback):
    """Asks once for a stop in the first step, so that the run is stopped after it.

    Args:
        file: Is made when the stop is asked for. If it exists, the run is not stopped again.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Let the callback that saves training states see a stop when the step ends."""
        from sftmix.training.states import TrainingStates

        if not self.file.exists() and trainer.global_step == 0:
            self.file.touch()
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, TrainingStates):
                    callback.stop.asked = True


def rehearse(config: Config, more: Mapping[str, Action] = {}) -> list[CheckResult]:
    """Check a run and rehearse it. Print each result as soon as it is known.

    Prepared data stay in the root folder, where the run finds them.

    Args:
        more: Further checks by their titles.
    """
    start, context, found = time.monotonic(), RunContext(config), list[CheckResult]()

    def add(*results: CheckResult) -> None:
        found.extend(results)
        for result in results:
            _show(result)

    def check(title: str, action: Action, *needs: str) -> None:
        failed = [result.title for result in found if not result.is_passed and result.title in needs]
        if failed:
            add(CheckResult(title, None, f"not reached: {', '.join(dict.fromkeys(failed))}"))
        else:
            add(*_results(title, action))

    models = models_of(config).values()
    with preconditions.removing_new_folders(Path(config.root)):
        for key, folder in preconditions.output_places(config).items():
            check("root" if key == "root" else "output", partial(preconditions.check_place, key, folder))
        check("device", lambda: preconditions.describe_device(_device(config)))
        check("files", lambda: _each(input_checks(config), _files_in_words(config)))
        check("hub", lambda: _each(_hub_checks(config), "every model and data set can be read"), "files")
        for model in models:
            check("model", partial(preconditions.check_model, model), "files", "hub")
        for model in models:
            check("template", partial(preconditions.check_template, context, model), "model")
        for model in models:
            check("data", partial(preconditions.check_data, context, model), "template", "root")
        check("example", lambda: preconditions.check_examples(context, _device(config).layout), "data", "device")
        check("loggers", lambda: preconditions.check_loggers(config))
        check("stages", lambda: _rehearse_stages(context), *(result.title for result in found))
        for title, action in more.items():
            check(title, action)
    num_failed = sum(result.is_passed is False for result in found)
    seconds = f"after {time.monotonic() - start:.0f} s"
    _show(CheckResult("", not num_failed, f"{counted(num_failed, 'fault') if num_failed else 'no fault'} {seconds}"))
    return found


def _results(title: str, action: Action) -> list[CheckResult]:
    try:
        texts = action()
        lines = [texts] if isinstance(texts, str) else texts
        return [CheckResult(title, not isinstance(line, InputError), _text_of(line)) for line in lines]
    except OSError as error:
        return [CheckResult(title, False, explain_os_error(error))]
    except InputError as error:
        return [CheckResult(title, False, str(error))]
    except StageError as error:  # of several lines: which process failed, then its traceback or output
        first, *_, last = [line.strip() for line in str(error).splitlines() if line.strip()] * 2
        return [CheckResult(title, False, f"{first} {last}")]


def _show(result: CheckResult) -> None:
    from rich.console import Console
    from rich.text import Text

    word, style = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "dim")}[result.is_passed]
    if isinstance(result.text, Remark):
        word, style = "remark", "yellow"
    line = Text(f"{word:7}", style=style) + Text(f"{result.title:10}", style="bold") + Text(result.text)
    Console(soft_wrap=True).print(line)


def _text_of(line: str | InputError) -> str:
    return line if isinstance(line, str) else str(line)


def _device(config: Config) -> Device:
    return choose_device(config.trainer, quantized_by(config))


def _each(checks: Iterator[Callable[[], object]], passed: str) -> Sequence[str | InputError]:
    """Return the faults that checks find, or the text `passed` if there is none."""
    return list(faults_of(checks)) or [passed]


def _files_in_words(config: Config) -> str:
    given = config.data.path or "the embedded data set" if config.data.hub_id is None else config.data.hub_id
    return f"data: {given}; model: {config.model.path or config.model.title}"


def _hub_checks(config: Config) -> Iterator[Callable[[], object]]:
    yield lambda: pin_revisions(config)  # first: the data are prepared at these commits
    yield from hub_checks(config, config.needs_confidence)


def _rehearse_stages(context: RunContext) -> str:
    """Run all stages on few steps in a folder under the root, which is removed."""
    config = context.config
    folder = Path(tempfile.mkdtemp(prefix=".check-", dir=config.root))
    try:
        (folder / "data").symlink_to((Path(config.root) / "data").resolve())
        short = rehearsal_config(config, len(context.encoded(config.model).train), folder)
        with _output_into(folder / "output.txt"):
            try:
                run_pipeline(short)
                if not config.averages_checkpoints:
                    raise InputError("the target was not stopped after its first step, expected a saved state")
            except Stopped as stop:
                if stop.code == INTERRUPTED or not (folder / MARK).exists():  # not by `StopOnce`
                    raise
            plan = run_pipeline(short)
        preconditions.check_received(short.logger, folder / "loggers", plan.target.folder)
        peak, received = _peak_gib(plan.target.folder), ", ".join(short.logger)
        metrics = f"; {received} received metrics" if received else ""
        memory = "" if peak is None else f"; peak memory {peak:.1f} GiB of a GPU"
        return f"{NUM_STEPS} steps of each stage, stopped, continued and exported{metrics}{memory}"
    except (InputError, OSError, StageError):
        raise
    except Exception as error:  # of the model or of a class of the config: the run would end by it too
        traceback.print_exc()
        raise InputError(f"{type(error).__name__}: {first_line(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rehearsal_config(config: Config, num_examples: int, root: Path) -> Config:
    """Return the config of a short run of all stages, on the examples with the longest responses if they can be chosen.

    Args:
        num_examples: Number of examples to train on.
    """
    short = copy.deepcopy(config)
    short.mode, short.root, short.judge = "train", str(root), None
    short.logger = preconditions.rehearsed_loggers(config, root / "loggers")
    needs_second = config.splits_after_first_epoch or config.recipe.ntp.dro_losses == "previous_epoch"
    short.data.epochs = 2 if needs_second else 1
    short.reference.num_checkpoints, short.reference.epochs, short.confidence.use = 1, None, None
    if short.data.select is None and not (short.needs_split and short.split.by != "confidence"):
        number = min(num_examples, max(4, NUM_STEPS * short.recipe.global_batch_size))
        short.data.select = Select(by="longest", k=number, at_least=None, path=None, seed=None, block=None)
    trainer = short.trainer
    trainer.overfit_batches, trainer.limit_train_batches, trainer.limit_val_batches = 0, NUM_STEPS, 1
    trainer.save_every_n_steps, trainer.save_every_minutes, trainer.keep = 1, None, 1
    trainer.log_every_n_steps, trainer.progress_bar, trainer.profiler, trainer.curves = 1, False, None, None
    for entry in short.callbacks.values():  # null: the folder of the run, which is removed
        entry.update({key: None for key in FOLDERS if key in entry})
    stop = {"_target_": f"{__name__}.StopOnce", "file": str(root / MARK)}
    short.callbacks = {**short.callbacks, "stop_once": stop}
    return short


@contextmanager
def _output_into(file: Path) -> Iterator[None]:
    """Send the output of this process and of those that it starts into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with file.open("wb") as handle:
        for descriptor in (1, 2):
            os.dup2(handle.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def _peak_gib(folder: Path) -> float | None:
    from sftmix.training.loggers import logged

    values = logged(folder, "perf/peak_memory_gib")
    return max(values) if values else None
