"""Stage 2 (section 3.1): score every example under every checkpoint.

The stage reads the checkpoints of the reference, any list of Hugging Face folders, or the untuned `reference.model`. It
writes `confidence.parquet` (the nll of each response under each checkpoint, in nats) and, for reading,
`examples.parquet` (the confidence of each example). Nothing here depends on mu, alpha or the target.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import content_hash, fingerprint
from sftmix.artifacts.tables import write_parts, write_table
from sftmix.data.collate import BatchSettings
from sftmix.data.layout import group_shared_prefixes
from sftmix.data.shards import EncodedExamples
from sftmix.data.vocabulary import check_examples
from sftmix.distributed.device import Device
from sftmix.distributed.process_group import broadcast_object
from sftmix.errors import InputError
from sftmix.models.quantization import parameter_sizes
from sftmix.provenance.metadata import Effort, run_metadata
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.data import EncodedData
from sftmix.stages.fingerprint import MODEL_FILES, hash_cache
from sftmix.stages.language_model import place, prepare_language_model
from sftmix.stages.models import load_checkpoint, load_checkpoint_tokenizer, load_untuned_model
from sftmix.stages.scores import confidence_of
from sftmix.stages.tracking import log_confidence, wandb_arguments
from sftmix.training.loggers import WandbRunLogger, finishing
from sftmix.training.scoring import ScoringSettings, score

SHOWN_CHARACTERS = 300
EXAMPLES_PER_PART = 10_000


class CheckpointScores(NamedTuple):
    """The examples under one checkpoint."""

    data: EncodedData  # The data under the tokenizer of the checkpoint
    examples: EncodedExamples  # What was scored: the examples to train on, then the held-out ones
    nll: list[float]  # Negative log-likelihood of each response, in nats
    device: Device  # The device with the layout and attention of the model
    num_sequences: int  # Sequences of the forward passes. Turns of a dialogue may share a sequence.
    num_tokens: int  # Tokens of these sequences
    num_parameters: int


def write_confidence(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Score all examples, held-out ones included, under each checkpoint. Scores of an interrupted pass are kept."""
    config = context.config
    tags = (config.reference.model.title, config.data.title)
    arguments = wandb_arguments(config, spec, "confidence", tags=tags) if rank.ranks.is_first else None
    # the run at Weights & Biases starts before anything is scored, so that a missing key is reported early
    loggers = [] if arguments is None else [WandbRunLogger(spec.folder, arguments)]
    with finishing(loggers):
        _write_confidence(spec, context, rank)
        for logger in loggers:
            log_confidence(logger, spec.folder / "examples.parquet")


def _write_confidence(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    start, config, folder = time.monotonic(), context.config, spec.folder
    checkpoints: Sequence[Path | None] = spec.inputs if config.confidence.from_ == "reference" else [None]
    if config.confidence.checkpoints is not None:
        for checkpoint in checkpoints:  # all are checked before the first one scores
            _encode_for(checkpoint, context)
    tables, counts, num_tokens = list[pa.Table](), list[dict[str, int]](), 0
    for number, checkpoint in enumerate(checkpoints, start=1):
        title = f"confidence, checkpoint {number}/{len(checkpoints)}"
        # the hash of the weights, so that parts of other weights are not continued
        if checkpoint is None:
            sha256 = str(spec.fields["checkpoints"])
        else:
            sha256 = content_hash(checkpoint, hash_cache(config), MODEL_FILES) if rank.ranks.is_first else ""
        weights = fingerprint({"checkpoint": broadcast_object(sha256)})
        scored = _score(checkpoint, folder / f"parts-{number:02d}-{weights}", title, context, rank)
        rank.device.release()
        _check_finite(scored, str(checkpoint or f"{config.reference.model.title}, untuned"))
        num_tokens += scored.num_tokens
        columns = {
            "example_id": scored.examples.column("example_id"),
            "checkpoint": pa.array(np.full(len(scored.nll), number)),
            "num_tokens": pa.array(scored.examples.num_response_tokens.astype(np.int64)),
            "nll": pa.array(scored.nll, pa.float64()),
        }
        tables.append(pa.table(columns))
        count = {"examples": len(scored.nll), "sequences": scored.num_sequences}
        if count not in counts and rank.ranks.is_first and scored.num_sequences < len(scored.nll):
            print(
                f"            {len(scored.nll):,} examples in {scored.num_sequences:,} sequences: turns of a dialogue "
                f"share one where their tokens allow it",
                flush=True,
            )
        counts.append(count)
    if not rank.ranks.is_first:
        return
    scores = pa.concat_tables(tables)
    write_table(folder / "confidence.parquet", {name: scores[name] for name in scores.column_names})
    ids, confidence, variability = confidence_of(scores, None)
    columns = {"confidence": confidence.tolist(), "variability": variability.tolist()}
    write_parts(folder / "examples.parquet", readable_examples(ids, columns, scored.data, context))
    effort = Effort(time.monotonic() - start, num_tokens, scored.num_parameters, 0)
    record = run_metadata(config, scored.device, scored.data, spec, effort)
    write_json(folder / "run.json", {**record, "scored": counts})
    for unfinished in folder.glob("parts-*"):
        shutil.rmtree(unfinished)


def _encode_for(checkpoint: Path | None, context: RunContext) -> EncodedData:
    """Return the data under the tokenizer of a checkpoint. Refuse a token that has no embedding in the checkpoint.

    None is the untuned `reference.model`.
    """
    if checkpoint is None:
        return context.encoded(context.config.reference.model)
    tokenizer, num_embeddings = load_checkpoint_tokenizer(context.config, checkpoint)
    data = context.data.encode(tokenizer)
    check_examples(data.train, tokenizer, num_embeddings, f"checkpoint {checkpoint}")
    return data


def _score(
    checkpoint: Path | None, parts: Path, title: str, context: RunContext, rank: RankContext
) -> CheckpointScores:
    config, data = context.config, _encode_for(checkpoint, context)
    examples = data.train.joined(data.val)
    runs = group_shared_prefixes(examples)

    def load(weights: bool) -> Any:
        if checkpoint is None:
            return load_untuned_model(config.reference.model, weights=weights)
        return load_checkpoint(config, checkpoint, weights=weights)

    lm, device = prepare_language_model(load, config.trainer, rank)
    place(lm.requires_grad_(False), rank)  # autocast keeps the casts of weights that have a gradient
    settings = ScoringSettings(
        parts,
        BatchSettings(device.layout, config.confidence.batch_tokens, data.tokenizer.pad_token_id),
        rank.torch_device,
        bfloat16=rank.device.precision == "bf16-mixed" and rank.device.strategy != "fsdp",
        title=title,
        show_progress=config.trainer.progress_bar,
    )
    try:
        nll = score(lm, examples, runs, settings, rank.ranks, rank.stop)
    except torch.OutOfMemoryError:
        raise InputError(
            f"out of memory: scoring does not fit a GPU, lower confidence.batch_tokens={config.confidence.batch_tokens}"
            f", or choose trainer=fsdp with more devices"
        ) from None
    num_tokens = sum(int(examples.lengths[run[-1]]) for run in runs)
    num_parameters = sum(size for _, size in parameter_sizes(lm))
    return CheckpointScores(data, examples, nll, device, len(runs), num_tokens, num_parameters)


def _check_finite(scored: CheckpointScores, checkpoint: str) -> None:
    """Refuse a checkpoint under which a response has no finite nll, before the next one scores."""
    wrong = [k for k, nll in enumerate(scored.nll) if not math.isfinite(nll)]
    if wrong:
        example = scored.examples.ids[wrong[0]]
        raise InputError(
            f"{checkpoint}: under this checkpoint {len(wrong):,} of {len(scored.nll):,} responses have an nll that is "
            f"not finite (example {example}: {scored.nll[wrong[0]]}): its weights are damaged, or overflow under "
            f"trainer.precision"
        )


def readable_examples(
    ids: Sequence[str], columns: Mapping[str, Sequence[float]], data: EncodedData, context: RunContext
) -> Iterator[dict[str, Sequence[Any]]]:
    """Yield parts of `examples.parquet`: the text of each example and its confidence.

    Args:
        columns: Numbers of the examples, by the names of the columns.
    """
    examples, num_train = data.train.joined(data.val), len(data.train)
    all_ids = examples.column("example_id").combine_chunks()
    indices = compute.index_in(pa.array(ids, pa.string()), value_set=all_ids).to_numpy()
    for start in range(0, max(1, len(ids)), EXAMPLES_PER_PART):
        part = slice(start, start + EXAMPLES_PER_PART)
        texts = [context.data.examples[int(examples.lines[index])] for index in indices[part]]
        yield {
            "example_id": ids[part],
            **{name: values[part] for name, values in columns.items()},
            "part": ["train" if index < num_train else "val" for index in indices[part]],
            "source": [e.source for e in texts],
            "row": [e.row for e in texts],
            "group": [e.group for e in texts],
            "instruction": [e.instruction[:SHOWN_CHARACTERS] for e in texts],
            "response": [e.response[:SHOWN_CHARACTERS] for e in texts],
        }
