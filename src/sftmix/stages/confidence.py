"""Stage 2 (section 3.1): score every example under every checkpoint.

Reads the reference's checkpoints or any list of Hugging Face folders; writes nats of each response
(`confidence.parquet`) and, for reading, the confidence of each example (`examples.parquet`). Nothing here depends on
mu, alpha or the target.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import content_hash, fingerprint
from sftmix.artifacts.tables import write_parts, write_table
from sftmix.config.schema import Config
from sftmix.data.layout import group_shared_prefixes
from sftmix.data.shards import EncodedExamples
from sftmix.data.vocabulary import check_examples
from sftmix.distributed.process_group import broadcast_object
from sftmix.errors import InputError
from sftmix.functional.confidence import confidence, perplexity, variability
from sftmix.models.folder_check import has_tokenizer
from sftmix.models.loading import empty_causal_lm, load_causal_lm, num_embeddings
from sftmix.models.lora import is_adapter, load_adapter
from sftmix.models.tokenizer import load_tokenizer, set_pad_token
from sftmix.provenance.metadata import Effort, run_metadata
from sftmix.stages.context import EncodedData, RankContext, RunContext, StageSpec
from sftmix.stages.fingerprint import MODEL_FILES
from sftmix.stages.inputs import checkpoint_base
from sftmix.stages.language_model import place, prepare_language_model
from sftmix.stages.plan import data_name, model_name
from sftmix.stages.tracking import log_confidence, wandb_arguments
from sftmix.terminal import one_line
from sftmix.training.scoring import score
from sftmix.training.wandb_run import WandbRun

SHOWN_CHARACTERS = 300
INTEGERS = {"integers": pa.types.is_integer}
KINDS: dict[str, dict[str, Callable[[pa.DataType], bool]]] = {
    "example_id": {"text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)},
    "checkpoint": INTEGERS,
    "num_tokens": INTEGERS,
    "nll": {"numbers": pa.types.is_floating, **INTEGERS},
}  # columns of a confidence file, and which types they may have
ROWS_PER_PART = 10_000


class Scored(NamedTuple):
    """The examples under one checkpoint.

    Attributes:
        under: the data under the checkpoint's tokenizer.
        encoded: what was scored: examples to train on, then held-out ones.
        nll: nats of each response.
        layout: how the sequences lay.
        num_sequences: forwards' sequences: fewer than examples where turns of a dialogue shared one.
        num_tokens: tokens of these sequences.
        num_parameters: of the checkpoint.
    """

    under: EncodedData
    encoded: EncodedExamples
    nll: list[float]
    layout: str
    num_sequences: int
    num_tokens: int
    num_parameters: int


def write_confidence(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Score all examples, held-out ones included, under each checkpoint; what an unfinished pass left is kept."""
    with _tracked(spec, context, rank) as run:
        _write_confidence(spec, context, rank)
        if run is not None:
            log_confidence(run, spec.folder / "examples.parquet")


@contextmanager
def _tracked(spec: StageSpec, context: RunContext, rank: RankContext) -> Iterator[WandbRun | None]:
    """A run of its own at Weights & Biases, begun before anything is scored, so that a missing key is told first."""
    config = context.config
    tags = (model_name(config.reference.model), data_name(config.data))
    arguments = wandb_arguments(config, spec, "confidence", tags=tags) if rank.ranks.is_first else None
    if arguments is None:
        yield None
        return
    with WandbRun(spec.folder, arguments) as run:
        yield run


def _write_confidence(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    start, num_tokens = time.monotonic(), 0
    folder, checkpoints = spec.folder, spec.inputs
    if context.config.confidence.checkpoints is not None:
        for checkpoint in checkpoints:  # all are checked before the first one scores
            _encoded_under(context, checkpoint)
    tables: list[pa.Table] = []
    counts = []
    for number, checkpoint in enumerate(checkpoints, start=1):
        title = f"confidence, checkpoint {number}/{len(checkpoints)}"
        weights = broadcast_object(_weights_of(checkpoint, context.config) if rank.ranks.is_first else "")
        parts = folder / f"parts-{number:02d}-{weights}"
        scored = _score_checkpoint(parts, context, rank, checkpoint, title)
        rank.device.release()
        _check_finite(scored, checkpoint)
        num_tokens += scored.num_tokens
        tables.append(
            pa.table(
                {
                    "example_id": scored.encoded.column("example_id"),
                    "checkpoint": pa.array(np.full(len(scored.nll), number)),
                    "num_tokens": pa.array(scored.encoded.num_response_tokens.astype(np.int64)),
                    "nll": pa.array(scored.nll, pa.float64()),
                }
            )
        )
        counts.append({"examples": len(scored.nll), "sequences": scored.num_sequences})
        if counts[-1] not in counts[:-1] and rank.ranks.is_first:
            _tell_shared(counts[-1])
    if not rank.ranks.is_first:
        return
    scores = pa.concat_tables(tables)
    write_table(folder / "confidence.parquet", {name: scores[name] for name in scores.column_names})
    write_parts(folder / "examples.parquet", _examples(scores, scored, context))
    effort = Effort(time.monotonic() - start, num_tokens, scored.num_parameters, 0)
    device = rank.device._replace(layout=scored.layout)
    record = run_metadata(context.config, device, scored.under, spec, effort)
    write_json(folder / "run.json", {**record, "scored": counts})
    for unfinished in folder.glob("parts-*"):
        shutil.rmtree(unfinished)


def _weights_of(checkpoint: Path, config: Config) -> str:
    """Return 8 hexadecimal digits of the hash of a checkpoint's bytes: unfinished scores are of these weights only."""
    cache = Path(config.root) / ".hashes.json"
    return fingerprint({"checkpoint": content_hash(checkpoint, cache, MODEL_FILES)})


def _check_finite(scored: Scored, checkpoint: Path) -> None:
    """Refuse a checkpoint under which a response has no finite nll, before the next one is scored."""
    wrong = [k for k, nll in enumerate(scored.nll) if not math.isfinite(nll)]
    if wrong:
        example = scored.encoded.ids[wrong[0]]
        raise InputError(
            f"{checkpoint}: under this checkpoint {len(wrong):,} of {len(scored.nll):,} responses have an nll that is "
            f"not finite (example {example}: {scored.nll[wrong[0]]}): its weights are damaged, or overflow under "
            f"trainer.precision"
        )


def confidence_of(scores: pa.Table, use: int | Sequence[int] | None) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Ids, confidence and variability of the examples that every counted checkpoint scored.

    Args:
        scores: of columns `example_id, checkpoint, num_tokens, nll`.
        use: which checkpoints count: None (all), k (the last k), or a list of their numbers.

    Raises:
        ValueError: a cell is empty, or what it holds is no perplexity.
    """
    for name in scores.column_names:
        if scores[name].null_count:
            raise ValueError(f"column {name} has {scores[name].null_count} empty cells")
    coded = scores["example_id"].combine_chunks().dictionary_encode()
    example = coded.indices.to_numpy()
    checkpoint, num_tokens, nll = (scores[name].to_numpy() for name in ("checkpoint", "num_tokens", "nll"))
    numbers = np.unique(checkpoint).tolist()
    counted = numbers if use is None else numbers[-use:] if isinstance(use, int) else sorted(use)
    shape = (len(counted), len(coded.dictionary))
    tokens_of, nll_of, is_scored = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, bool)
    for c, number in enumerate(counted):
        here = checkpoint == number
        tokens_of[c, example[here]], nll_of[c, example[here]] = num_tokens[here], nll[here]
        is_scored[c, example[here]] = True
    by_all = np.flatnonzero(is_scored.all(axis=0))
    ids = coded.dictionary.take(by_all).to_pylist()
    by_checkpoint = perplexity(torch.from_numpy(nll_of[:, by_all]), torch.from_numpy(tokens_of[:, by_all]))
    return ids, confidence(by_checkpoint), variability(by_checkpoint)


def check_scores(path: Path, scores: pa.Table, use: int | Sequence[int] | None) -> None:
    """Refuse scores that are not negative log-likelihoods of responses under checkpoints 1 to C.

    Args:
        path: File of the scores, for the message.
        scores: Table of columns `example_id, checkpoint, num_tokens, nll`.
        use: Which checkpoints count: None (all), k (the last k), or a list of their numbers. Each of them must have
            scored every example.

    Raises:
        InputError: The message names the file and the first row that is wrong, counted from 1.
    """
    if not len(scores):
        raise InputError(f"{path}: no rows, expected one row for each example and checkpoint")
    for name, expected in KINDS.items():
        kind = scores[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_kind(kind) for is_kind in expected.values()):
            raise InputError(f"{path}: column {name} has the type {kind}, expected {' or '.join(expected)}")
        if scores[name].null_count:
            first = scores[name].is_null().to_numpy().argmax() + 1
            raise InputError(f"{path}: row {first} has no {name}; the column has {scores[name].null_count} empty cells")
    example, checkpoint, num_tokens, nll = (scores[name].to_numpy() for name in KINDS)

    def refuse(wrong: np.ndarray, name: str, expected: str) -> None:
        if wrong.any():
            row, number = int(wrong.argmax()), int(wrong.sum())
            value = scores[name][row].as_py()
            others = f", and {number - 1:,} more of {len(wrong):,} rows are wrong in this way" if number > 1 else ""
            raise InputError(
                f"{path}: row {row + 1} (example {one_line(example[row])}, checkpoint {checkpoint[row]}) has "
                f"{name}={value}{others}; expected {expected}"
            )

    positive = "the negative log-likelihood of the response in nats, a finite number of at least 0"
    refuse(~np.isfinite(nll), "nll", positive)
    refuse(nll < 0, "nll", f"{positive}: if the column holds log-likelihoods, negate it")
    refuse(num_tokens < 1, "num_tokens", "at least 1 token in each response")
    numbers = np.unique(checkpoint)
    wrong = ~np.isin(checkpoint, np.arange(1, len(numbers) + 1))
    refuse(wrong, "checkpoint", f"the {len(numbers)} checkpoints to be numbered from 1 to {len(numbers)} without a gap")
    codes = scores["example_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    cells = codes * (len(numbers) + 1) + checkpoint
    order = np.argsort(cells, kind="stable")
    again = np.flatnonzero(np.diff(cells[order]) == 0)
    if len(again):
        first, second = order[again[0]] + 1, order[again[0] + 1] + 1
        raise InputError(
            f"{path}: rows {first} and {second} both have example {one_line(example[first - 1])} under checkpoint "
            f"{checkpoint[first - 1]}, expected one row for each example and checkpoint ({len(again):,} rows repeat "
            f"an earlier one)"
        )
    counted = numbers if use is None else numbers[-use:] if isinstance(use, int) else np.array(use)
    per_example = np.bincount(codes, weights=np.isin(checkpoint, counted))
    refuse(
        per_example[codes] < len(counted),
        "example_id",
        f"every example to be scored under each of the {len(counted)} checkpoints that count",
    )


def _score_checkpoint(parts: Path, context: RunContext, rank: RankContext, checkpoint: Path, title: str) -> Scored:
    """Score under one checkpoint, with its own tokenizer; the run's template, or its own by data.template=tokenizer."""
    config = context.config
    tokenizer, under = _encoded_under(context, checkpoint)
    encoded = under.train.joined(under.val)
    runs = group_shared_prefixes(encoded)
    is_sharded = rank.device.strategy == "fsdp"
    lm, layout = prepare_language_model(
        lambda weights: _causal_lm_of(context, checkpoint, weights), config.trainer, rank
    )
    place(lm, rank)
    nll = score(
        lm,
        encoded,
        runs,
        folder=parts,
        title=title,
        device=rank.torch_device,
        bfloat16=rank.device.precision == "bf16-mixed" and not is_sharded,
        layout=layout,
        batch_tokens=config.confidence.batch_tokens,
        pad_token_id=tokenizer.pad_token_id,
        show_progress=config.trainer.progress_bar,
        ranks=rank.ranks,
        in_step=is_sharded,
        stop=rank.stop,
    )
    num_tokens = sum(int(encoded.lengths[run[-1]]) for run in runs)
    num_parameters = sum(p.numel() for p in lm.parameters())
    return Scored(under, encoded, nll, layout, len(runs), num_tokens, num_parameters)


def _encoded_under(context: RunContext, checkpoint: Path) -> tuple[Any, EncodedData]:
    """Return the tokenizer of a checkpoint and the data under this tokenizer.

    Raises:
        InputError: If a token of the data has no embedding in the checkpoint.
    """
    tokenizer = _tokenizer_of(context.config, checkpoint)
    size = _num_embeddings_of(context.config, checkpoint)
    set_pad_token(tokenizer, None, size)
    under = context.encoded_by(tokenizer)
    check_examples(under.train, tokenizer, size, f"checkpoint {checkpoint}")
    return tokenizer, under


def _causal_lm_of(context: RunContext, checkpoint: Path, weights: bool) -> Any:
    """The model of a checkpoint, with its weights or without; an adapter's is its base with it."""
    load = load_causal_lm if weights else empty_causal_lm
    if not is_adapter(checkpoint):
        return load(str(checkpoint), None)
    config = context.config
    if config.confidence.checkpoints is None:  # the reference's own: found also where the folder of runs has moved
        base = context.causal_lm(config.reference.model, weights=weights)
    else:
        base = load(*checkpoint_base(config, checkpoint))
    return load_adapter(base, checkpoint, weights=weights)


def _tokenizer_of(config: Config, checkpoint: Path) -> Any:
    """The tokenizer of a checkpoint; an adapter that has none takes its base's."""
    if is_adapter(checkpoint) and not has_tokenizer(checkpoint):
        return load_tokenizer(*checkpoint_base(config, checkpoint), None)
    return load_tokenizer(str(checkpoint), None, None)


def _num_embeddings_of(config: Config, checkpoint: Path) -> int | None:
    """Return the number of embeddings of a checkpoint, for an adapter that of its base."""
    if not is_adapter(checkpoint):
        return num_embeddings(str(checkpoint), None)
    if config.confidence.checkpoints is None:
        return None  # the reference's own tokenizer was checked when the data was prepared
    return num_embeddings(*checkpoint_base(config, checkpoint))


def _tell_shared(count: dict[str, int]) -> None:
    """Say how many forwards the turns of dialogues have spared."""
    if count["sequences"] < count["examples"]:
        print(
            f"            {count['examples']:,} examples in {count['sequences']:,} sequences: turns of a dialogue "
            f"share one where their tokens allow it",
            flush=True,
        )


def _examples(scores: pa.Table, scored: Scored, context: RunContext) -> Iterator[dict[str, list[Any]]]:
    """One row an example, for reading: its confidence over all checkpoints, its part, and what it is."""
    ids, conf, spread = confidence_of(scores, None)
    all_ids = scored.encoded.column("example_id").combine_chunks()
    places = compute.index_in(pa.array(ids, pa.string()), value_set=all_ids).to_numpy()
    num_train = len(scored.under.train)
    for start in range(0, max(1, len(ids)), ROWS_PER_PART):
        part = slice(start, start + ROWS_PER_PART)
        examples = [context.examples[int(scored.encoded.lines[place])] for place in places[part]]
        yield {
            "example_id": ids[part],
            "confidence": conf[part].tolist(),
            "variability": spread[part].tolist(),
            "part": ["train" if place < num_train else "val" for place in places[part]],
            "source": [e.source for e in examples],
            "row": [e.row for e in examples],
            "group": [e.group for e in examples],
            "instruction": [e.instruction[:SHOWN_CHARACTERS] for e in examples],
            "response": [e.response[:SHOWN_CHARACTERS] for e in examples],
        }
