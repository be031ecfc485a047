"""Lightning checkpoints in safetensors and JSON, as a folder that any number of ranks can write and read.

Each rank writes the slices of the tensors that it holds. Nothing is pickled. The file `complete.json` is written last,
with a checksum of every other file: a folder without it is incomplete.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from sftmix.artifacts.files import remove, sync_folder, write_json
from sftmix.artifacts.hashes import is_intact, sealed
from sftmix.artifacts.manifest import differs, entry_of
from sftmix.distributed.process_group import all_gather_object, broadcast_object
from sftmix.errors import InputError

COMPLETE, CONTENT = "complete.json", "content.json"
FILE_BYTES = 2**30  # Tensors of a file, unless one tensor is larger
TENSOR, SCALAR, ITEMS = "$tensor", "$scalar", "$items"  # marks in the JSON of what JSON does not have


def local_slice(tensor: Tensor) -> tuple[Tensor, int]:
    """Return this rank's part of a tensor, and the index of the first entry of the part in the whole tensor.

    The part of a tensor that is not sharded is the whole tensor.

    Raises:
        RuntimeError: If the tensor is sharded in another way than FSDP2 does.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    local, mesh = tensor.to_local().detach(), tensor.device_mesh
    most = -(-tensor.shape[0] // mesh.size())  # the last ranks hold fewer entries, or none
    first = min(mesh.get_local_rank() * most, tensor.shape[0])
    expected = min(most, tensor.shape[0] - first)
    if local.shape[0] != expected:
        raise RuntimeError(
            f"a shard has {local.shape[0]} entries, expected {expected} of {tensor.shape[0]} on rank "
            f"{mesh.get_local_rank()} of {mesh.size()}"
        )
    return local, first


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint folder, which is read when it is needed, as a whole or in part."""

    parts: list[Any]  # Open files of the ranks
    name: str
    shape: list[int]

    def read(self, first: int = 0, count: int | None = None) -> Tensor:
        """Return some entries along the first dimension, from the files that hold them.

        Raises:
            InputError: If the files hold another number of entries.
        """
        count = self.shape[0] if count is None else count
        pieces: list[tuple[int, Tensor]] = []
        for part in self.parts:
            if self.name not in part.keys():  # noqa: SIM118 - not a mapping
                continue
            start, held = int(part.metadata()[self.name]), part.get_slice(self.name)
            begin, end = max(first, start), min(first + count, start + held.get_shape()[0])
            if begin < end:
                pieces.append((begin, held[begin - start : end - start]))
        found = [piece for _, piece in sorted(pieces, key=lambda piece: piece[0])]
        if sum(len(piece) for piece in found) != count:
            raise InputError(f"training state: {self.name} is incomplete, expected the shape {self.shape}")
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0, *self.shape[1:])


class CheckpointFolderIO(CheckpointIO):
    """Saves Lightning checkpoints as folders of safetensors and JSON files.

    `Trainer(plugins=[CheckpointFolderIO()])` makes `ModelCheckpoint` and `ckpt_path=` use it. With the strategies of
    `sftmix.distributed.strategy`, a checkpoint of any number of ranks is read by any other number.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint from one process.

        Raises:
            InputError: If it cannot be written, or holds something else than tensors, numbers, texts, lists and
                dictionaries.
        """
        _save(checkpoint, Path(path), is_shared=False)

    def save_from_all_ranks(self, checkpoint: dict[str, Any], path: Any) -> None:
        """Save a checkpoint from every rank. An error of one rank is raised on all.

        Raises:
            InputError: As in `save_checkpoint`.
        """
        _save(checkpoint, Path(path), is_shared=dist.is_initialized())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None, *, lazy: bool = False
    ) -> dict[str, Any]:
        """Return the checkpoint of a folder. Tensors are read to the CPU, and nothing is unpickled.

        Args:
            lazy: Leave tensors in their files, as `StoredTensor`.

        Raises:
            InputError: If the folder is not a complete checkpoint.
        """
        folder = Path(path)
        if lack := lacks(folder):
            raise InputError(f"{folder}: not a complete training state ({lack})")
        parts = [safe_open(file, "pt") for file in sorted(folder.glob("rank-*.safetensors"))]
        return dict(_decode(read_content(folder), parts, lazy=lazy))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint. An interrupted removal leaves an incomplete one, which is not used."""
        (Path(path) / COMPLETE).unlink(missing_ok=True)
        remove(Path(path))


def read_content(folder: Path) -> dict[str, Any]:
    """Return the JSON of a checkpoint folder, in which tensors are marks."""
    return dict(json.loads((folder / CONTENT).read_text(encoding="utf-8")))


def lacks(folder: Path) -> str:
    """Return what a folder lacks to be complete, by names and sizes of files; an empty text if nothing is missing."""
    try:
        content = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        return f"{COMPLETE} is missing or damaged"
    if not is_intact(content):
        return f"{COMPLETE} is damaged: its content does not match its checksum"
    for name, entry in content["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, expected {entry['bytes']}"
    extra = [f.name for f in folder.glob("rank-*.safetensors") if f.name not in content["files"]]
    return f"{extra[0]} is not a file of this state" if extra else ""


def damage(folder: Path, rank: int, world_size: int) -> str:
    """Return what is damaged in a folder, the same on all ranks; an empty text if nothing is.

    Every file is compared with its checksum. Each rank reads its share of the files.
    """
    if lack := broadcast_object(lacks(folder) if rank == 0 else ""):
        return str(lack)
    files = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))["files"]
    own = ""
    for name in sorted(files)[rank::world_size]:
        if not own and (why := differs(folder / name, files[name])):
            own = f"{name} {why}"
    return next((why for why in all_gather_object(own) if why), "")


def _save(checkpoint: dict[str, Any], folder: Path, *, is_shared: bool) -> None:
    """Save a checkpoint from one process, or from every rank at once."""
    gather = all_gather_object if is_shared else lambda value: [value]
    rank = dist.get_rank() if is_shared else 0
    tensors: dict[str, Tensor] = {}
    content = _encode(checkpoint, "", tensors)
    files: dict[str, Any] = {}

    def make() -> None:
        if rank == 0:
            remove(folder)
            folder.mkdir(parents=True)

    def write() -> None:
        files.update(_write_slices(folder, tensors, rank))

    def complete() -> None:
        if rank == 0:
            write_json(folder / CONTENT, content)
            sync_folder(folder)
            write_json(folder / COMPLETE, sealed({"files": {**files, CONTENT: entry_of(folder / CONTENT)}}))
            sync_folder(folder)

    for action in (make, write, complete):
        problem = ""
        try:
            action()
        except (OSError, SafetensorError) as error:
            problem = str(error)
        outcomes = gather([problem, files])
        if problem := next((text for text, _ in outcomes if text), ""):
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            gather(None)
            raise InputError(f"{folder}: the training state cannot be written ({problem})")
        files.update({name: entry for _, part in outcomes for name, entry in part.items()})


def _write_slices(folder: Path, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Any]:
    """Write the slices that this rank holds, whole tensors on the first rank only. Return the entries of the files.

    Only the tensors of one file are copied from the device to the host at a time.
    """
    slices = {name: local_slice(tensor) for name, tensor in tensors.items()}
    held = {name: s for name, s in slices.items() if rank == 0 or (s[1] > 0 and len(s[0]) > 0)}
    groups: list[list[str]] = []
    num_bytes = FILE_BYTES
    for name, (tensor, _) in held.items():
        if num_bytes + tensor.nbytes > FILE_BYTES:
            groups.append([])
            num_bytes = 0
        groups[-1].append(name)
        num_bytes += tensor.nbytes
    entries: dict[str, Any] = {}
    for number, names in enumerate(groups):
        file = folder / (f"rank-{rank:05d}-{number}.safetensors" if number else f"rank-{rank:05d}.safetensors")
        _write_file(file, {name: held[name] for name in names})
        entries[file.name] = entry_of(file)
    return entries


def _write_file(file: Path, slices: Mapping[str, tuple[Tensor, int]]) -> None:
    contents: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, (tensor, _) in slices.items():
        here = tensor.to("cpu").contiguous()
        place = here.untyped_storage().data_ptr()
        contents[name] = here.clone() if place in seen else here  # safetensors refuses shared memory
        seen.add(place)
    save_file(contents, file, metadata={name: str(first) for name, (_, first) in slices.items()})
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON can hold it, and collect its tensors by their path."""
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return {SCALAR: value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
        tensors[key] = value
        return {TENSOR: key, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        if all(isinstance(name, str) and not name.startswith("$") for name in value):
            return {name: _encode(entry, f"{key}/{name}".lstrip("/"), tensors) for name, entry in value.items()}
        pairs = enumerate(value.items())
        return {ITEMS: [[_encode(k, key, {}), _encode(v, f"{key}/{i}", tensors)] for i, (k, v) in pairs]}
    if isinstance(value, list | tuple):
        return [_encode(entry, f"{key}/{i}", tensors) for i, entry in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise InputError(
        f"training state: {key} is a {type(value).__name__}, expected tensors, numbers, texts, lists and dictionaries"
    )


def _decode(value: Any, parts: list[Any], *, lazy: bool) -> Any:
    if isinstance(value, list):
        return [_decode(entry, parts, lazy=lazy) for entry in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        stored = StoredTensor(parts, value[TENSOR], value["shape"])
        return stored if lazy else stored.read()
    if SCALAR in value:
        return torch.tensor(value[SCALAR], dtype=getattr(torch, value["dtype"]))
    if ITEMS in value:
        return {_decode(k, parts, lazy=lazy): _decode(v, parts, lazy=lazy) for k, v in value[ITEMS]}
    return {name: _decode(entry, parts, lazy=lazy) for name, entry in value.items()}
