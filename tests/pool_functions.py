"""Functions that processes of a `ModelPool` import in its tests, and a source that loads no model."""

import io
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from sftmix.errors import InputError
from sftmix.evaluation.model_pool import LoadedModel


class NoModel(NamedTuple):
    """Has the fields of a `ModelSource`, so that processes start without torch."""

    path: str = "no model"
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    error: str = ""

    def load(self, tokenizer: Any = None) -> LoadedModel:
        if self.error:
            raise InputError(self.error)
        return LoadedModel(None, None)

    def load_tokenizer(self) -> Any:
        return None


def square(loaded: LoadedModel, number: int) -> int:
    return number * number


def wait_seconds(loaded: LoadedModel, seconds: float) -> int:
    """Wait, and return the id of the process."""
    time.sleep(seconds)
    return os.getpid()


def variable(loaded: LoadedModel, name: str) -> tuple[int, str | None]:
    """Wait for the other process, and return the process id and a variable of the environment."""
    time.sleep(0.5)
    return os.getpid(), os.environ.get(name)


def blocks_ctrl_c(loaded: LoadedModel, text: str) -> tuple[int, bool]:
    """Print the text, wait for the other process, and return the process id and whether SIGINT is blocked."""
    print(text, flush=True)
    time.sleep(0.5)
    return os.getpid(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def fail(loaded: LoadedModel, error: Exception) -> None:
    raise error


def end_by(loaded: LoadedModel, number: int) -> int:
    """End this process by a signal, or return the number if it is 0."""
    if number:
        os.kill(os.getpid(), number)
    return number


def note_process(loaded: LoadedModel, folder: Path) -> None:
    """Write the process id into a folder, and wait in a progress bar until a signal comes."""
    with tqdm(total=1, file=io.StringIO()):
        (folder / f"pid-{os.getpid()}").touch()
        signal.pause()


def echo(loaded: LoadedModel, item: Any) -> Any:
    return item


def generator_of(loaded: LoadedModel, item: Any) -> Any:
    return (item for _ in range(2))
