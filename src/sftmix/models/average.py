"""The mean of the weights of several checkpoints, as one Hugging Face folder."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sftmix.artifacts.files import replacing_folder
from sftmix.errors import InputError
from sftmix.models.lora import is_adapter

WEIGHTS = "*.safetensors"


def write_mean(checkpoints: Sequence[Path], folder: Path) -> None:
    """Write the mean of the weights of checkpoints: the whole folder or nothing.

    A weight is added up in float64 and written in the type of the checkpoints. Config and tokenizer are those of the
    last checkpoint. Weights are read one at a time, so memory holds the weights of one file and one weight of each
    checkpoint. A tied weight is in the files once, so it stays tied.

    Raises:
        InputError: If a checkpoint is an adapter, or has other weights, shapes or types than the last one.
    """
    for checkpoint in checkpoints:
        if is_adapter(checkpoint):
            raise InputError(
                f"{checkpoint}: an adapter, expected all weights of a model: the mean of the factors of adapters is "
                f"not the mean of the models"
            )
    last = checkpoints[-1]
    with ExitStack() as stack, replacing_folder(folder) as aside:
        stored = [stack.enter_context(_open_weights(checkpoint)) for checkpoint in checkpoints]
        for other, checkpoint in zip(stored, checkpoints, strict=True):
            _check_alike(other, stored[-1], checkpoint, last)
        for path in last.iterdir():
            if path.is_file() and not path.match(WEIGHTS):
                shutil.copyfile(path, aside / path.name)
        for file in sorted(last.glob(WEIGHTS)):
            with safe_open(file, "pt") as handle:
                names, metadata = list(handle.keys()), handle.metadata()
            means = {name: _mean([other[name].get_tensor(name) for other in stored]) for name in names}
            save_file(means, aside / file.name, metadata=metadata)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean in the type of the tensors. Integers are those of the last tensor."""
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)


@contextmanager
def _open_weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Open the files of a folder, and return the open file of each weight by the name of the weight."""
    with ExitStack() as stack:
        handles = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob(WEIGHTS))]
        yield {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - not a mapping


def _check_alike(one: dict[str, Any], other: dict[str, Any], folder: Path, last: Path) -> None:
    def content(stored: dict[str, Any], name: str) -> str:
        part = stored[name].get_slice(name) if name in stored else None
        return "missing" if part is None else json.dumps([part.get_dtype(), part.get_shape()])

    for name in sorted(one.keys() | other.keys()):
        if (found := content(one, name)) != (expected := content(other, name)):
            raise InputError(f"{folder}: weight {name} is {found}, expected {expected} as in {last}")
