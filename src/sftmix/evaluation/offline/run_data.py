"""The data of a finished run as its model sees them: what it was trained on, and what it held out."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.manifest import MANIFEST, damaged, read_json
from sftmix.artifacts.tables import read_table
from sftmix.config.schema import Config, from_dict
from sftmix.data.shards import EncodedExamples, Examples
from sftmix.errors import InputError
from sftmix.evaluation.target import Target
from sftmix.hub import check_on_hub
from sftmix.models.tokenizer import load_tokenizer
from sftmix.provenance.runs import ExampleLosses, read_held_out
from sftmix.stages.context import RunContext
from sftmix.stages.inputs import check_data_files, hub_sources
from sftmix.stages.plan import examples_artifact


class RunData(NamedTuple):
    """What a run was made from.

    Attributes:
        train: the examples to train on.
        trained: those of them that it was trained on: all, or one half.
        val: held-out examples.
        texts: examples with their messages, by the lines of `train` and `val`.
        trained_half: the half that was trained on alone, or None where all examples were.
        halves: by the run's own split, where it has one; of training and held-out examples.
        pad_token_id: fills up shorter sequences.
        batch_tokens: of a scoring pass of this run, padding included.
    """

    train: EncodedExamples
    trained: EncodedExamples
    val: EncodedExamples
    texts: Examples
    trained_half: str | None
    halves: dict[str, str]
    pad_token_id: int
    batch_tokens: int


def check_run_data(target: Target, suite: str) -> ExampleLosses:
    """What a run has measured on its held-out examples; its data can be had, as far as can be told without reading.

    Raises:
        InputError: it is no run, holds nothing out, or a file of its data is not there.
    """
    config = run_config(target, suite)
    assert target.run is not None
    measured = read_held_out(target.run)
    if not measured.nll:
        raise InputError(f"suite={suite}: {target.name} holds nothing out, expected a run with data.val_fraction=0.1")
    check_data_files(config.data)
    if not examples_artifact(config).is_complete:
        for source in hub_sources(config.data):
            check_on_hub("dataset", str(source.hub_id), source.revision, "data.path=FILE of train.py")
    return measured


def run_config(target: Target, suite: str) -> Config:
    """What a run was configured by; its folder may have moved with all that is beside it.

    Raises:
        InputError: it is no run of `train.py`, or one of another version.
    """
    if target.run is None or target.config is None:
        raise InputError(
            f"suite={suite}: {target.model} is a model alone, expected a run of train.py, whose held-out data are known"
        )
    try:
        config = from_dict(target.config)
    except OmegaConfBaseException as error:
        cause = str(error).split("\n")[0]
        raise InputError(f"{target.run / 'run.json'}: not the configuration of this version ({cause})") from None
    config.root = str(target.run.parent)
    return config


def read_run_data(target: Target, suite: str, show_progress: bool) -> RunData:
    """The data of a run, under the tokenizer in its model's folder.

    Raises:
        InputError: they cannot be read, or are not what it was run with.
    """
    config = run_config(target, suite)
    config.trainer.progress_bar = show_progress
    assert target.run is not None
    context = RunContext(config)
    tokenizer = load_tokenizer(target.model, None, None)
    encoded = context.data.encode(tokenizer)
    train, val = encoded.train, encoded.val
    measured = read_held_out(target.run)
    there = set(val.ids)
    if there != measured.nll.keys():
        raise InputError(
            f"suite={suite}: {len(there ^ measured.nll.keys())} held-out examples of {target.name} are not those of "
            f"its data as they are now: {config.data.path or config.data.title} has changed since"
        )
    halves = read_split_column(target.run, "subset")
    half, trained = trained_half(target.run), train
    if half is not None:
        trained = train.select(np.array([halves.get(i) == half for i in train.ids], dtype=bool))
    return RunData(
        train, trained, val, context.data.examples, half, halves, tokenizer.pad_token_id, config.confidence.batch_tokens
    )


def trained_half(run: Path) -> str | None:
    """The half that a run was trained on alone (Table 6 without Mixup); None where all examples took part."""
    recipe = fields_of(run).get("recipe", {})
    on = recipe.get("ntp", {}).get("on", "all")
    return None if on == "all" or recipe.get("mixup") is not None else str(on)


def read_split_column(run: Path, column: str) -> dict[str, Any]:
    """A column of a run's own split, by example id; empty where it has no split.

    Raises:
        InputError: its `split.parquet` cannot be read.
    """
    file = run / "split.parquet"
    if not file.is_file():
        return {}
    table = read_table(file)
    if lacking := [name for name in ("example_id", column) if name not in table]:
        raise damaged(file, f"no column {', '.join(lacking)}")
    return {i: x for i, x in zip(table["example_id"], table[column], strict=True) if x is not None}


def fields_of(folder: Path) -> dict[str, Any]:
    """What the content of an artifact depends on, as its manifest has it."""
    fields: dict[str, Any] = read_json(folder / MANIFEST)["fields"]
    return fields
