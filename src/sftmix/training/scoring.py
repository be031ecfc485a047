"""The scoring loop: the nll of every response under one checkpoint. An interrupted pass continues where it was."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.distributed.fsdp import FSDPModule

from sftmix.artifacts.tables import read_table, write_table
from sftmix.data.collate import BatchSettings, collate_dialogues
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.process_group import all_gather_object, barrier
from sftmix.distributed.ranks import SINGLE, Ranks
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError, Stopped
from sftmix.models.language_model import SFTMixLM
from sftmix.training.progress import progress_bar

BATCHES_PER_PART = 16


@dataclass(frozen=True)
class ScoringSettings:
    """How examples are scored."""

    folder: Path  # Folder of the parts, made if it does not exist
    batches: BatchSettings  # Layout and size of a batch
    device: torch.device
    bfloat16: bool = False  # Compute under autocast
    title: str = "scoring"  # Name of the pass in the progress bar
    show_progress: bool = False


def score(
    lm: SFTMixLM,
    encoded: EncodedExamples,
    runs: Sequence[Sequence[int]],
    settings: ScoringSettings,
    ranks: Ranks = SINGLE,
    stop: StopRequest | None = None,
) -> list[float]:
    """Return the nll of each response in nats, in the order of the examples.

    The batches depend on the examples and the settings only: the examples are sorted by length and cut by tokens. Every
    `BATCHES_PER_PART` batches are a part, which is written to a file. A part that exists is not scored again. The ranks
    score the parts in turn, and read the parts of the other ranks.

    Args:
        lm: The checkpoint, on the device.
        runs: All examples, in runs. Examples whose token ids begin those of the next example form a run: they are
            scored as one sequence.

    Raises:
        Stopped: If a stop was asked for. The scored parts are written.
        InputError: If a rank cannot read the parts of another rank.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    lengths = [int(encoded.lengths[run[-1]]) for run in runs]
    batches = [[runs[k] for k in batch] for batch in cut_by_tokens(lengths, settings.batches.micro_batch_tokens)]
    parts = [batches[start : start + BATCHES_PER_PART] for start in range(0, len(batches), BATCHES_PER_PART)]

    def ids_of(part: Sequence[Sequence[Sequence[int]]]) -> tuple[list[int], list[str]]:
        members = [i for batch in part for run in batch for i in run]
        return members, encoded.select(np.array(members, dtype=np.int64)).ids

    def file_of(number: int) -> Path:
        return settings.folder / f"part-{number:06d}.parquet"

    lm.eval()
    stop = StopRequest() if stop is None else stop
    in_step = isinstance(lm, FSDPModule)  # ranks that share the model must run it equally often
    bar = progress_bar(len(encoded), settings.title, "example", hide=not settings.show_progress)
    with bar, stop.between_steps():
        for turn in range(0, len(parts), ranks.world_size):
            number = turn + ranks.rank
            part = parts[number] if number < len(parts) else []
            members, ids = ids_of(part)
            known = not part or _read_part(file_of(number), ids) is not None
            if not (all(all_gather_object(known)) if in_step else known):
                nll: list[float] = []
                for k in range(BATCHES_PER_PART if in_step else len(part)):
                    is_own = k < len(part)
                    batch = part[k] if is_own else batches[0]
                    scored = _score_batch(lm, [[encoded[i] for i in run] for run in batch], settings)
                    if is_own:
                        nll += scored
                        bar.update(len(scored))
                if part:
                    write_table(file_of(number), {"example_id": ids, "nll": nll})
            else:
                bar.update(len(members))
            if code := stop.asked_of_any():
                raise Stopped(f"stopped in {settings.title}; what was scored is written", code)
    barrier()
    found = [0.0] * len(encoded)
    for number, part in enumerate(parts):
        members, ids = ids_of(part)
        read = _read_part(file_of(number), ids)
        if read is None:
            raise InputError(f"{file_of(number)}: rank {ranks.rank} cannot read it: is root on a disk that all share?")
        for i, value in zip(members, read, strict=True):
            found[i] = value
    return found


def _read_part(part: Path, ids: list[str]) -> list[float] | None:
    """Return the nll of a part that was written for these examples, or None."""
    try:
        table = read_table(part)
    except InputError:  # missing or incomplete
        return None
    return table["nll"] if table.get("example_id") == ids else None


def _score_batch(lm: SFTMixLM, dialogues: Sequence[Sequence[EncodedExample]], settings: ScoringSettings) -> list[float]:
    batches, device = settings.batches, settings.device
    batch = move_data_to_device(collate_dialogues(dialogues, batches.layout, batches.pad_token_id), device)
    with torch.autocast(device.type, torch.bfloat16) if settings.bfloat16 else nullcontext():
        nll = lm.response_nll(
            batch.inputs, batch.positions, batch.labels, batch.example_of_position, batch.num_examples
        )
    return nll.tolist()
