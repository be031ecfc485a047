"""The model that is evaluated: in this process, or one copy on each of several devices, which share the questions.

Several devices are used by data-parallel processes. Each has a copy of the model. This process makes the batches, gives
each free process the next batch, and collects the results. `concurrent.futures` does not serve: it cannot give each of
its processes another device, and it cannot end them while they compute, so Ctrl-C would wait for the batches at work.
"""

import multiprocessing
import os
import pickle
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from signal import SIGINT
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from sftmix.distributed.device import num_cores, visible_gpus
from sftmix.distributed.launch import ending
from sftmix.distributed.stopping import blocked, die_with
from sftmix.errors import InputError, StageError

T = TypeVar("T")
R = TypeVar("R")


class LoadedModel(NamedTuple):
    """What a function of a `ModelPool` receives."""

    causal_lm: Any  # On its device, in its dtype, in evaluation mode
    tokenizer: Any


class ModelSource(NamedTuple):
    """A model of a folder or the hub, and how a process loads it."""

    path: str
    revision: str | None
    dtype: str
    device: str  # cpu or cuda

    def load(self, tokenizer: Any = None) -> LoadedModel:
        """Return the model on its device.

        Args:
            tokenizer: Its tokenizer if it is loaded already.

        Raises:
            InputError: If the model cannot be read, or does not fit the GPU.
        """
        import torch

        from sftmix.models.loading import load_causal_lm

        try:
            causal_lm = load_causal_lm(self.path, self.revision, dtype=self.dtype, device=self.device)
        except torch.OutOfMemoryError:
            raise InputError(f"model {self.path}: it does not fit the memory of a GPU in {self.dtype}") from None
        return LoadedModel(causal_lm.eval(), self.load_tokenizer() if tokenizer is None else tokenizer)

    def load_tokenizer(self) -> Any:
        """Return the tokenizer of the model."""
        from sftmix.models.tokenizer import load_tokenizer

        return load_tokenizer(self.path, self.revision, None)


@dataclass(frozen=True)
class Worker:
    """A process with a copy of the model. It works on one item at a time."""

    process: BaseProcess
    link: Connection

    def give(self, message: Any) -> None:
        """Send the process a message. If the process has ended, `result` reports it."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.link.send_bytes(pickle.dumps(message))

    def result(self) -> tuple[int, Any, Exception | None]:
        """Return the index of the item that is finished, its result, and the error that the function raised.

        Raises:
            EOFError: If the process has ended.
        """
        try:
            return pickle.loads(self.link.recv_bytes())
        except ConnectionResetError:
            raise EOFError from None


class ModelPool:
    """A model, loaded when the first item needs it, and the processes that have a copy of it.

    Args:
        num_devices: Number of devices, each with one process. With one device everything happens in this process.
    """

    def __init__(self, source: ModelSource, num_devices: int) -> None:
        self.source, self.num_devices = source, num_devices
        self._workers: list[Worker] = []

    @classmethod
    def holding(cls, causal_lm: Any, tokenizer: Any) -> "ModelPool":
        """Return a pool of one device for a model that is in memory."""
        dtype, device = str(causal_lm.dtype).removeprefix("torch."), causal_lm.device.type
        pool = cls(ModelSource(causal_lm.config.name_or_path, None, dtype, device), 1)
        pool.loaded, pool.tokenizer = LoadedModel(causal_lm, tokenizer), tokenizer
        pool.empty_model = causal_lm
        return pool

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.source.load_tokenizer()

    @cached_property
    def empty_model(self) -> Any:
        """The model on the meta device: its configs and the shapes of its weights, without a value of a weight."""
        from sftmix.models.loading import check_weights

        return check_weights(self.source.path, self.source.revision)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model in this process."""
        self._print_model("")
        return self.source.load(self.tokenizer)

    def map(self, function: Callable[[LoadedModel, T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield the index of each item and function(model, item), as they are finished.

        With several devices, `function`, items and results are pickled. `function` is a function of a module or a
        `functools.partial` of one. If a process fails or the caller stops early, all processes are killed, and started
        again by the next call.

        Raises:
            Exception: What `function` raised. The traceback of another process is in its notes.
            InputError: If the model cannot be loaded.
            StageError: If a process was ended.
        """
        if self.num_devices > 1:
            yield from self._map_in_processes(function, items)
            return
        for index, item in enumerate(items):
            yield index, function(self.loaded, item)

    def close(self) -> None:
        """Kill the processes. They hold nothing that is not in this process."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.link.close()

    def _map_in_processes(self, function: Callable[[LoadedModel, T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        left = deque(enumerate(items))
        at_work: list[Worker] = []

        def give_next(worker: Worker) -> None:
            # A process is only sent an item while it waits for one: two that both send could block each other
            if left:
                index, item = left.popleft()
                at_work.append(worker)
                worker.give((index, function, item))

        try:
            self._start(min(self.num_devices, len(items)))
            for worker in self._workers:
                give_next(worker)
            while at_work:
                ready = wait([worker.link for worker in at_work])
                failure: Exception | None = None
                for worker in [worker for worker in at_work if worker.link in ready]:
                    at_work.remove(worker)
                    try:
                        index, result, error = worker.result()
                    except EOFError:
                        error = StageError(self._how_ended(worker))
                    failure = failure or error
                    if error is None:
                        give_next(worker)
                        yield index, result
                if failure is not None:
                    raise failure
        except BaseException:  # Ctrl-C and a caller that stops too
            self.close()
            raise

    def _start(self, number: int) -> None:
        """Start processes until there are so many."""
        if len(self._workers) >= number:
            return
        if not self._workers:
            self._print_model(f", {self.num_devices} processes")
        gpus = visible_gpus() if self.source.device == "cuda" else []
        context = multiprocessing.get_context("spawn")  # a fork cannot use CUDA
        resource_tracker.ensure_running()  # otherwise the first start does this, and unblocks signals
        while len(self._workers) < number:
            place = len(self._workers)
            link, its_link = context.Pipe()
            variables = {"CUDA_VISIBLE_DEVICES": gpus[place]} if gpus else self._cpu_variables()
            process = context.Process(
                target=_serve, args=(its_link, self.source, variables, place, os.getpid()), daemon=True
            )
            with blocked(SIGINT):  # Ctrl-C of a terminal reaches all its processes; this one ends the others
                process.start()
            its_link.close()
            self._workers.append(Worker(process, link))

    def _cpu_variables(self) -> dict[str, str]:
        variables = {"OMP_NUM_THREADS": str(max(1, num_cores() // self.num_devices)), "OMP_WAIT_POLICY": "PASSIVE"}
        return {name: os.environ.get(name, value) for name, value in variables.items()}

    def _how_ended(self, worker: Worker) -> str:
        worker.process.join()
        place = self._workers.index(worker) + 1
        return (
            f"process {place} of {self.num_devices} with the model {ending(worker.process.exitcode or 0)}; run the "
            "same command again, finished answers are kept; devices=1 computes in one process"
        )

    def _print_model(self, how: str) -> None:
        # Not print: the line would be appended to a progress bar
        tqdm.write(f"model       {self.source.path}, {self.source.dtype} on {self.source.device}{how}")
        sys.stdout.flush()


def _serve(link: Connection, source: ModelSource, variables: dict[str, str], place: int, parent: int) -> None:
    """Call functions on the items that a pool sends, until the pool is closed.

    Args:
        variables: Variables of the environment, which torch reads when it is imported, so it is not imported before.
        place: Index of this process among those of the pool.
        parent: Process id of the process with the pool.
    """
    die_with(parent)
    os.environ.update(variables)
    if place > 0:  # each process would print the same
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a killed process leaves behind
    loaded = None
    while True:
        try:
            message = link.recv_bytes()
        except EOFError:
            return
        try:
            index, function, item = pickle.loads(message)
            loaded = loaded or source.load()
            reply = pickle.dumps((index, function(loaded, item), None))
        except Exception as error:
            reply = pickle.dumps((0, None, _portable(error)))
        # Not link.send: it hands tensors over in shared memory, which may be small, and ends with this process
        link.send_bytes(reply)


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled, with its traceback in a note."""
    text = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        return StageError(text)
    if not isinstance(error, InputError):
        error.add_note(f"In a process of the model pool:\n{text}")
    return error
