"""The state of a run that was cut off: weights and optimizer in safetensors, found again complete or not at all.

Each rank writes the rows that it holds, so that a state saved by any number of ranks is read by any other. Randomness,
the order of the data and the schedule are functions of the step, so nothing of them is stored.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sftmix.artifacts import sync_folder, write_json
from sftmix.errors import InputError
from sftmix.training.ranks import Ranks, barrier, gather, of_first

COMPLETE, SAVED = "complete.json", "saved.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Rows(NamedTuple):
    """The rows of a tensor that a rank holds.

    Attributes:
        tensor: them, on this rank.
        first: the number of the first one.
    """

    tensor: Tensor
    first: int


def rows_of(tensor: Tensor) -> Rows:
    """What this rank holds of a tensor: some rows of one in shards, else all of it."""
    if not isinstance(tensor, DTensor):
        return Rows(tensor.detach(), 0)
    local = tensor.to_local().detach()
    mesh = tensor.device_mesh
    most = -(-tensor.shape[0] // mesh.size())  # rows of a rank, fewer or none on the last ones
    first = min(mesh.get_local_rank() * most, tensor.shape[0])
    if local.shape[0] != min(most, tensor.shape[0] - first):
        raise RuntimeError(
            f"a shard has {local.shape[0]} rows, expected {min(most, tensor.shape[0] - first)} of {tensor.shape[0]} on "
            f"rank {mesh.get_local_rank()} of {mesh.size()}"
        )
    return Rows(local, first)


class States:
    """The saved states of a run, in folders by their step, the newest few of them kept.

    Args:
        folder: where they are.
        ranks: this process.
        keep: how many complete ones stay.
        fields: what the run's content depends on; a state of another run is refused.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int, fields: Mapping[str, Any]) -> None:
        """Nothing is read yet."""
        self.folder = folder
        self.ranks = ranks
        self.keep = keep
        self.fields = json.loads(json.dumps(fields))

    def save(self, step: int, lm: nn.Module, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
        """Save the state after a step: it counts once every rank has written its part and the first has marked it.

        Args:
            step: optimizer steps that were taken.
            lm: the model.
            optimizer: of its trainable parameters.
            saved: what else to remember, as JSON holds it.

        Raises:
            InputError: it cannot be written; the last complete state stays.
        """
        folder = self.folder / f"step-{step:08d}"
        if self.ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        barrier()
        problem, sizes = "", {}
        try:
            sizes = self._write_part(folder, dict(_tensors(lm, optimizer)))
        except (OSError, SafetensorError) as error:
            problem = str(error)
        of_ranks = gather([problem, sizes])
        problem = next((text for text, _ in of_ranks if text), "")
        if self.ranks.is_first and not problem:
            content = {"step": step, "fields": self.fields, "saved": dict(saved)}
            try:
                self._mark(folder, content, {name: size for _, part in of_ranks for name, size in part.items()})
            except OSError as error:
                problem = str(error)
        problem = of_first(problem)
        if self.ranks.is_first:
            if problem:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self._drop_old()
        barrier()
        if problem:
            last = next(iter(self._complete()), None)
            stays = f"the state after step {step_of(last)} stays" if last else "no state was saved before it"
            raise InputError(f"{folder}: the state after step {step} cannot be written ({problem}); {stays}")

    def _mark(self, folder: Path, content: Mapping[str, Any], sizes: dict[str, int]) -> None:
        """Write what is no tensor, and then the mark that says which files of which size there are."""
        write_json(folder / SAVED, content)
        sync_folder(folder)
        write_json(folder / COMPLETE, {**sizes, SAVED: (folder / SAVED).stat().st_size})
        sync_folder(folder)

    def _write_part(self, folder: Path, tensors: Mapping[str, Rows]) -> dict[str, int]:
        """Write what this rank holds; of what all hold whole, the first rank's. The files' sizes, by name."""
        held = {
            name: rows
            for name, rows in tensors.items()
            if self.ranks.is_first or (rows.first > 0 and rows.tensor.shape[0] > 0)
        }
        if not held:
            return {}
        firsts = {name: str(rows.first) for name, rows in held.items()}
        contents = {name: rows.tensor.to("cpu").contiguous() for name, rows in held.items()}
        file = folder / f"rank-{self.ranks.rank:05d}.safetensors"
        save_file(_untied(contents), file, metadata=firsts)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        return {file.name: file.stat().st_size}

    def _drop_old(self) -> None:
        complete = self._complete()
        for folder in complete[self.keep :]:
            (folder / COMPLETE).unlink()  # half a state is none
            shutil.rmtree(folder, ignore_errors=True)

    def _complete(self) -> list[Path]:
        """The folders of complete states, the newest first."""
        return [folder for folder in self._newest_first() if not _lacks(folder)]

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def find(self, say: Callable[[str], None]) -> Path | None:
        """The newest complete state, the same for all ranks; those that are torn are named and removed.

        Raises:
            InputError: it is of another configuration; the field that differs is named.
        """
        found = None
        if self.ranks.is_first:
            for folder in self._newest_first():
                lacks = _lacks(folder)
                if not lacks:
                    found = str(folder)
                    break
                say(f"{folder}: torn, not taken ({lacks})")
                shutil.rmtree(folder, ignore_errors=True)
        found = of_first(found)
        if found is None:
            return None
        content = json.loads((Path(found) / SAVED).read_text())
        if other := _difference(content["fields"], self.fields):
            raise InputError(f"{found}: the state of another run: {other}")
        return Path(found)

    def load(self, folder: Path, lm: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
        """Put a saved state into model and optimizer; the steps that were taken, and what else was remembered."""
        content = json.loads((folder / SAVED).read_text())
        step = int(content["step"])
        parts = [safe_open(file, "pt") for file in sorted(folder.glob("rank-*.safetensors"))]
        _fill_moments(optimizer, step)
        with torch.no_grad():
            for name, rows in _tensors(lm, optimizer):
                rows.tensor.copy_(_read_rows(parts, name, rows))
        return step, content["saved"]


def _tensors(lm: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Rows]]:
    """What a state holds: weights that are trained, and AdamW's moments."""
    names = {parameter: name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    for parameter, name in names.items():
        yield f"weight/{name}", rows_of(parameter)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state[parameter]
            for moment in MOMENTS:
                if moment in moments:
                    yield f"{moment}/{names[parameter]}", rows_of(moments[moment])


def _fill_moments(optimizer: Optimizer, step: int) -> None:
    """Give AdamW the moments that it makes at its first step, empty ones, at a number of steps."""
    content = optimizer.state_dict()
    number = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            empty = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            content["state"][number] = {"step": torch.tensor(float(step)), **empty}
            number += 1
    optimizer.load_state_dict(content)


def _read_rows(parts: list[Any], name: str, wanted: Rows) -> Tensor:
    """The rows of a tensor that a rank wants, from whichever parts have them."""
    if wanted.tensor.ndim == 0:
        return next(part.get_tensor(name) for part in parts if name in part.keys())  # noqa: SIM118 - no mapping
    stop = wanted.first + wanted.tensor.shape[0]
    pieces = []
    for part in parts:
        if name not in part.keys():  # noqa: SIM118 - no mapping
            continue
        first = int(part.metadata()[name])
        held = part.get_slice(name)
        begin, end = max(wanted.first, first), min(stop, first + held.get_shape()[0])
        if begin < end:
            pieces.append(held[begin - first : end - first])
    found = torch.cat(pieces) if pieces else wanted.tensor.new_empty(0, *wanted.tensor.shape[1:])
    if found.shape != wanted.tensor.shape:
        raise RuntimeError(
            f"training state: {name} has the shape {tuple(found.shape)}, expected {tuple(wanted.tensor.shape)}"
        )
    return found


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without shared memory: safetensors refuses it."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _lacks(folder: Path) -> str:
    """What a state lacks to be complete; empty where it lacks nothing."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
    except (OSError, ValueError):
        return "its mark of completeness is not there"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is not there"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, expected {size}"
    return ""


def step_of(folder: Path) -> int:
    """The optimizer steps after which a state was saved."""
    return int(folder.name.removeprefix("step-"))


def _difference(saved: Any, now: Any, key: str = "") -> str:
    """The first field that differs, with both values; empty where none does."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in sorted(saved.keys() | now.keys()):
            if found := _difference(saved.get(name), now.get(name), f"{key}.{name}" if key else name):
                return found
        return ""
    return "" if saved == now else f"{key} was {saved} and is {now}"
