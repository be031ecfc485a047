"""Training states: weights and optimizer in safetensors, with a checksum of every file.

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

from sftmix.artifacts.files import remove, sync_folder, write_json
from sftmix.artifacts.hashes import is_intact, sealed
from sftmix.artifacts.manifest import differs, entry_of
from sftmix.distributed.process_group import all_gather_object, barrier, broadcast_object
from sftmix.distributed.ranks import Ranks
from sftmix.errors import InputError

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
    """The training states of a run, in folders by their step. The newest few are kept.

    Args:
        folder: Folder of the states.
        ranks: This process among the ranks.
        keep: Number of complete states that are kept.
        fields: Everything that the run's content depends on. A state of another run is refused.
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
        problem, files = "", {}
        if self.ranks.is_first:
            try:
                remove(folder)
                folder.mkdir(parents=True)
            except OSError as error:
                problem = str(error)
        barrier()
        try:
            files = self._write_part(folder, dict(_tensors(lm, optimizer)))
        except (OSError, SafetensorError) as error:
            problem = problem or str(error)
        of_ranks = all_gather_object([problem, files])
        problem = next((text for text, _ in of_ranks if text), "")
        if self.ranks.is_first and not problem:
            content = {"step": step, "fields": self.fields, "saved": dict(saved)}
            try:
                self._mark(folder, content, {name: entry for _, part in of_ranks for name, entry in part.items()})
            except OSError as error:
                problem = str(error)
        problem = broadcast_object(problem)
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

    def _mark(self, folder: Path, content: Mapping[str, Any], files: dict[str, Any]) -> None:
        """Write step, fields and what else is remembered, and then `complete.json` with the checksum of every file."""
        write_json(folder / SAVED, content)
        sync_folder(folder)
        write_json(folder / COMPLETE, sealed({"files": {**files, SAVED: entry_of(folder / SAVED)}}))
        sync_folder(folder)

    def _write_part(self, folder: Path, tensors: Mapping[str, Rows]) -> dict[str, Any]:
        """Write the tensors that this rank holds, replicated ones on the first rank only. Return the file's entry."""
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
        return {file.name: entry_of(file)}

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
        """Return the newest intact state, the same on all ranks, or None.

        Every file is compared with its checksum; each rank reads its share of the files. A damaged or incomplete state
        is reported, removed and not used: the run continues from the state before, or from the first step.

        Raises:
            InputError: If the state is of another configuration; the field that differs is named.
        """
        was_damaged = False
        while (name := broadcast_object(next((f.name for f in self._newest_first()), None))) is not None:
            folder = self.folder / name
            if not (why := self._damage(folder)):
                fields = json.loads((folder / SAVED).read_text(encoding="utf-8"))["fields"]
                if other := _difference(fields, self.fields):
                    raise InputError(f"{folder}: the state of another run: {other}")
                return folder
            was_damaged = True
            say(f"{folder}: damaged or incomplete, not used and removed ({why})")
            barrier()
            if self.ranks.is_first:
                remove(folder)
                if folder.exists() or folder.is_symlink():
                    raise InputError(f"{folder}: damaged ({why}), and cannot be removed; remove it")
            barrier()
        if was_damaged:
            say("no intact training state is left: training starts from the first step")
        return None

    def _damage(self, folder: Path) -> str:
        """Return what is damaged in a state, the same on all ranks; an empty text if nothing is."""
        lacks = broadcast_object(_lacks(folder) if self.ranks.is_first else "")
        if lacks:
            return str(lacks)
        files = json.loads((folder / COMPLETE).read_text(encoding="utf-8")).get("files", {})  # none in older states
        own = ""
        for name in sorted(files)[self.ranks.rank :: self.ranks.world_size]:
            if not own and (why := differs(folder / name, files[name])):
                own = f"{name} {why}"
        if not own and self.ranks.is_first:
            own = _misplaced(folder)
        return next((why for why in all_gather_object(own) if why), "")

    def load(self, folder: Path, lm: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
        """Load a state into model and optimizer. Return the steps that were taken, and what else was remembered."""
        content = json.loads((folder / SAVED).read_text(encoding="utf-8"))
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
    """Return what a state lacks to be complete, by names and sizes of files; an empty text if it lacks nothing."""
    try:
        content = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{COMPLETE} is missing or damaged"
    if not isinstance(content, dict):
        return f"{COMPLETE} is missing or damaged"
    if content and all(isinstance(size, int) for size in content.values()):  # saved before checksums were kept
        sizes = content
    elif is_intact(content):
        sizes = {name: entry["bytes"] for name, entry in content["files"].items()}
    else:
        return f"{COMPLETE} is damaged: its content does not match its checksum"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, expected {size}"
    extra = [f.name for f in folder.glob("rank-*.safetensors") if f.name not in sizes]
    return f"{extra[0]} is not a file of this state" if extra else ""


def _misplaced(folder: Path) -> str:
    """Return why `saved.json` is not the one of this state; an empty text if it is."""
    try:
        content = json.loads((folder / SAVED).read_text(encoding="utf-8"))
        step, _ = content["step"], content["fields"]
        return "" if int(step) == step_of(folder) else f"{SAVED} is of step {step}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SAVED} is damaged"


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
