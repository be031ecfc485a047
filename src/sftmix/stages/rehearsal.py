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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer

from sftmix.config.data import Select
from sftmix.config.schema import Config
from sftmix.errors import InputError, StageError, Stopped, explain_os_error
from sftmix.stages.context import RunContext
from sftmix.stages.device_choice import choose_device
from sftmix.stages.inputs import check_hub, check_inputs, quantized_by
from sftmix.stages.pipeline import run_pipeline
from sftmix.terminal import counted

NUM_STEPS = 2
MARK = ".stopped_once"
SKIPPED = "not reached"


class CheckResult(NamedTuple):
    """The result of one check."""

    title: str
    is_passed: bool | None  # None: skipped, because an earlier check has failed
    text: str  # What was found, or what is wrong


class StopOnce(Callback):
    """Asks once for a stop after the first step.

    Args:
        file: Is made when the stop is asked for. If it exists, the run is not stopped again.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Let the callback that saves training states see a stop."""
        from sftmix.training.states import TrainingStates

        if not self.file.exists() and trainer.global_step == 1:
            self.file.touch()
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, TrainingStates):
                    callback.stop.asked = True


def rehearse(config: Config) -> list[CheckResult]:
    """Check a run and rehearse it. Print each result as soon as it is known.

    Prepared data stay in the root folder, where the run finds them.
    """
    context = RunContext(config)
    found: list[CheckResult] = []

    def check(title: str, action: Callable[[], str], *needs: str) -> None:
        failed = {result.title for result in found if not result.is_passed}
        if failed & set(needs):
            result = CheckResult(title, None, f"{SKIPPED}: {', '.join(sorted(failed & set(needs)))}")
        else:
            result = _result(title, action)
        found.append(result)
        _show(result)

    check("folder", lambda: _check_folder(Path(config.root)))
    check("device", lambda: choose_device(config.trainer, quantized_by(config)).in_words)
    check("files", lambda: _check_files(config))
    check("hub", lambda: _check_hub(config), "files")
    check("model", lambda: _check_model(config), "files", "hub")
    check("data", lambda: _check_data(context), "files", "hub", "folder")
    check("template", lambda: _check_template(context), "data")
    check("loggers", lambda: _check_loggers(config))
    check("stages", lambda: _rehearse_stages(context), *(result.title for result in found))
    return found


def _result(title: str, action: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(title, True, action())
    except OSError as error:
        return CheckResult(title, False, explain_os_error(error))
    except InputError as error:
        return CheckResult(title, False, str(error))
    except StageError as error:  # of several lines: which process failed, then its traceback or output
        first, *_, last = [line.strip() for line in str(error).splitlines() if line.strip()] * 2
        return CheckResult(title, False, f"{first} {last}")


def _show(result: CheckResult) -> None:
    from rich.console import Console
    from rich.text import Text

    word, style = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "dim")}[result.is_passed]
    line = Text(f"{word:7}", style=style) + Text(f"{result.title:10}", style="bold") + Text(result.text)
    Console(soft_wrap=True).print(line)


def _check_folder(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=root) as folder:
        (Path(folder) / "file").write_bytes(b"\0" * 2**20)
    free = shutil.disk_usage(root).free / 2**30
    return f"{root} can be written, {free:,.0f} GiB are free"


def _check_files(config: Config) -> str:
    check_inputs(config)
    given = config.data.path or "the embedded data set" if config.data.hub_id is None else config.data.hub_id
    return f"data: {given}; model: {config.model.path or config.model.title}"


def _check_hub(config: Config) -> str:
    check_hub(config, config.needs_confidence and config.confidence.checkpoints is None)
    return "every model and data set can be read"


def _check_model(config: Config) -> str:
    from sftmix.models.loading import check_weights

    if config.model.path is None:
        return "embedded"
    check_weights(config.model.path, config.model.revision)
    return f"{config.model.path}: all weights are there, with the shapes of config.json"


def _check_data(context: RunContext) -> str:
    encoded = context.encoded(context.config.model)
    longest = int(encoded.train.lengths.max())
    return (
        f"{counted(len(encoded.train), 'example')}, {len(encoded.val):,} held out; the longest has {longest:,} tokens"
    )


def _check_template(context: RunContext) -> str:
    """Show the beginning of the response that carries loss, and the token that ends it."""
    encoded = context.encoded(context.config.model)
    example, tokenizer = encoded.train[0], encoded.tokenizer
    response = tokenizer.decode(example.input_ids[example.num_prompt_tokens :])
    end = tokenizer.convert_ids_to_tokens(encoded.encoder.end_token_id)
    shown = response if len(response) <= 60 else f"{response[:40]} ... {response[-16:]}"
    return f"loss on {shown!r}, which ends with {end!r}; padding is {tokenizer.pad_token!r}"


def _check_loggers(config: Config) -> str:
    wandb = config.wandb
    if wandb is not None and wandb.get("mode") in (None, "online"):
        import wandb as client

        if not client.login(prompt=False):
            raise InputError("logger=wandb: no key, run `wandb login`, or set logger.wandb.mode=offline")
    return ", ".join(["logs/metrics.csv", *config.logger])


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
                raise InputError("the target was not stopped after its first step, expected a saved state")
            except Stopped:
                plan = run_pipeline(short)
        peak = _peak_gib(plan.target.folder)
        memory = "" if peak is None else f"; peak memory {peak:.1f} GiB of a GPU"
        return f"{NUM_STEPS} steps of each stage, stopped, continued and exported{memory}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rehearsal_config(config: Config, num_examples: int, root: Path) -> Config:
    """Return the config of a short run of all stages, on the examples with the longest responses if they can be chosen.

    Args:
        num_examples: Number of examples to train on.
    """
    short = copy.deepcopy(config)
    short.mode, short.root, short.logger = "train", str(root), {}
    short.data.epochs, short.reference.num_checkpoints, short.confidence.use = 1, 1, None
    if short.data.select is None and not (short.needs_split and short.split.by != "confidence"):
        number = min(num_examples, max(4, NUM_STEPS * short.recipe.global_batch_size))
        short.data.select = Select(by="longest", k=number, at_least=None, path=None, seed=None)
    trainer = short.trainer
    trainer.overfit_batches, trainer.limit_train_batches, trainer.limit_val_batches = 0, NUM_STEPS, 1
    trainer.save_every_n_steps, trainer.save_every_minutes, trainer.keep = 1, None, 1
    trainer.log_every_n_steps, trainer.progress_bar, trainer.profiler, trainer.curves = 1, False, None, None
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
