"""The scoring loop: nats of every response under one checkpoint. Killed anywhere, it goes on where it was."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from sftmix.artifacts.tables import read_table, write_table
from sftmix.data.collate import collate_dialogues
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


def score(
    lm: SFTMixLM,
    encoded: EncodedExamples,
    runs: Sequence[Sequence[int]],
    *,
    folder: Path,
    title: str,
    device: torch.device,
    bfloat16: bool,
    layout: str,
    batch_tokens: int,
    pad_token_id: int,
    show_progress: bool,
    ranks: Ranks = SINGLE,
    in_step: bool = False,
    stop: StopRequest | None = None,
) -> list[float]:
    """Nats of each response, in the order of the examples.

    The batches are fixed: sorted by length and cut by a budget, whatever was done before. After every few of them
    their figures are written, and what is written is not computed again. Ranks take these parts in turn, and each reads
    what the others wrote.

    Args:
        lm: the checkpoint, on the device.
        encoded: what to score.
        runs: all of them, those together that one sequence holds: each one's ids are the beginning of the next one's.
        folder: where unfinished figures are kept; made where it is not there.
        title: what the progress bar calls the pass.
        device: where to compute.
        bfloat16: compute under autocast.
        layout: padded, grouped or packed.
        batch_tokens: tokens per batch, counted with the padding that would bring all to the longest's length.
        pad_token_id: fills up shorter sequences.
        show_progress: with a bar.
        ranks: this process among those that score.
        in_step: the ranks share the model and must run it equally often.
        stop: whether this process was asked to stop.

    Raises:
        Stopped: a stop was asked for; what was scored is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = [
        [runs[k] for k in batch]
        for batch in cut_by_tokens([int(encoded.lengths[run[-1]]) for run in runs], batch_tokens)
    ]
    parts = [batches[start : start + BATCHES_PER_PART] for start in range(0, len(batches), BATCHES_PER_PART)]

    def ids_of(part: Sequence[Sequence[Sequence[int]]]) -> tuple[list[int], list[str]]:
        members = [i for batch in part for run in batch for i in run]
        return members, encoded.select(np.array(members, dtype=np.int64)).ids

    def file_of(number: int) -> Path:
        return folder / f"part-{number:06d}.parquet"

    lm.eval()
    stop = StopRequest() if stop is None else stop
    with progress_bar(len(encoded), title, "example", hide=not show_progress) as bar, stop.between_steps():
        for turn in range(0, len(parts), ranks.world_size):
            number = turn + ranks.rank
            part = parts[number] if number < len(parts) else []
            members, ids = ids_of(part)
            known = not part or _read_part(file_of(number), ids) is not None
            if not (all(all_gather_object(known)) if in_step else known):
                figures: list[float] = []
                for k in range(BATCHES_PER_PART if in_step else len(part)):
                    batch = part[k] if k < len(part) else batches[0]
                    dialogues = [[encoded[i] for i in run] for run in batch]
                    scored = _score_batch(lm, dialogues, device, bfloat16, layout, pad_token_id)
                    figures += scored if k < len(part) else []
                    bar.update(sum(len(run) for run in batch) if k < len(part) else 0)
                if part:
                    write_table(file_of(number), {"example_id": ids, "nll": figures})
            else:
                bar.update(len(members))
            if code := stop.asked_of_any():
                raise Stopped(f"stopped in {title}; what was scored is written", code)
    barrier()
    nll = [0.0] * len(encoded)
    for number, part in enumerate(parts):
        members, ids = ids_of(part)
        read = _read_part(file_of(number), ids)
        if read is None:
            raise InputError(f"{file_of(number)}: rank {ranks.rank} cannot read it: is root on a disk that all share?")
        for i, value in zip(members, read, strict=True):
            nll[i] = value
    return nll


def _read_part(part: Path, ids: list[str]) -> list[float] | None:
    """The figures of a part that was written for these very examples, or None."""
    try:
        table = read_table(part)
    except InputError:  # not there, or torn
        return None
    return table["nll"] if table.get("example_id") == ids else None


def _score_batch(
    lm: SFTMixLM,
    dialogues: Sequence[Sequence[EncodedExample]],
    device: torch.device,
    bfloat16: bool,
    layout: str,
    pad_token_id: int,
) -> list[float]:
    batch = move_data_to_device(collate_dialogues(dialogues, layout, pad_token_id), device)
    with torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext():
        nll = lm.response_nll(
            batch.inputs, batch.positions, batch.labels, batch.example_of_position, batch.num_examples
        )
    return nll.tolist()
