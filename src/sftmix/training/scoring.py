"""The scoring loop: nats of every response under one checkpoint. Killed anywhere, it goes on where it was."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from sftmix.artifacts import read_table, write_table
from sftmix.data.collate import collate_dialogues
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.data.shards import EncodedExamples
from sftmix.errors import InputError
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
) -> list[float]:
    """Nats of each response, in the order of the examples.

    The batches are fixed: sorted by length and cut by a budget, whatever was done before. After every few of them
    their figures are written, and what is written is not computed again.

    Args:
        lm: the checkpoint; it is moved to the device.
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
    """
    folder.mkdir(parents=True, exist_ok=True)
    nll = [0.0] * len(encoded)
    batches = cut_by_tokens([int(encoded.lengths[run[-1]]) for run in runs], batch_tokens)
    lm.to(device).eval()
    with progress_bar(len(encoded), title, "example", hide=not show_progress) as bar:
        for start in range(0, len(batches), BATCHES_PER_PART):
            part = folder / f"part-{start // BATCHES_PER_PART:06d}.parquet"
            here = [[runs[k] for k in batch] for batch in batches[start : start + BATCHES_PER_PART]]
            members = [i for batch in here for run in batch for i in run]
            ids = encoded.select(np.array(members, dtype=np.int64)).ids
            figures = _read_part(part, ids)
            if figures is None:
                figures = []
                for batch in here:
                    dialogues = [[encoded[i] for i in run] for run in batch]
                    figures += _score_batch(lm, dialogues, device, bfloat16, layout, pad_token_id)
                    bar.update(sum(len(run) for run in batch))
                write_table(part, {"example_id": ids, "nll": figures})
            else:
                bar.update(len(members))
            for i, value in zip(members, figures, strict=True):
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
        return lm.response_nll(batch.inputs, batch.rows, batch.labels, batch.examples, batch.num_examples).tolist()
