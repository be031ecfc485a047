"""The data of a finished run as its model sees them, and the confidence of the reference in its examples."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.artifact import find_artifacts
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.artifacts.tables import read_confidence
from sftmix.config.schema import Config, from_dict
from sftmix.data.shards import EncodedExamples, Examples
from sftmix.errors import InputError, first_line
from sftmix.evaluation.target import Target
from sftmix.hub import check_on_hub
from sftmix.models.tokenizer import load_tokenizer
from sftmix.provenance.runs import read_columns, read_held_out
from sftmix.stages.context import RunContext
from sftmix.stages.inputs import check_data_files, hub_sources
from sftmix.stages.plan import examples_artifact

LEAST_COVERAGE = 0.99


class RunData(NamedTuple):
    """The data of a run."""

    train: EncodedExamples  # Training examples of both subsets
    trained: EncodedExamples  # Those of them that the run was trained on: all, or one subset
    val: EncodedExamples  # Held-out examples
    texts: Examples  # Examples with their messages, by the lines of `train` and `val`
    trained_subset: str | None  # The subset if the run was trained on one only, or None
    subsets: dict[str, str]  # Subset of training and held-out examples by the run's own split, if it has one
    batch_tokens: int  # Tokens of a forward pass of this run's scoring, padding included


class RunConfidence(NamedTuple):
    """Confidence of the reference by example id (higher is more confident), and its origin in words."""

    values: dict[str, float]
    source: str


def holds_out(target: Target) -> bool:
    """Return whether the target is a run with held-out examples."""
    return target.run is not None and bool(read_held_out(target.run).nll)


def check_run_data(target: Target) -> None:
    """Check whether the data of a run can be read, as far as the check is cheap."""
    config = _config_of(target)
    check_data_files(config.data)
    if not examples_artifact(config).is_complete:
        for source in hub_sources(config.data):
            check_on_hub("dataset", str(source.hub_id), source.revision, "data.path=FILE of train.py")


def _config_of(target: Target) -> Config:
    """Return the config of a run, whose folder may have moved with its neighbors."""
    assert target.run is not None
    assert target.config is not None
    try:
        config = from_dict(target.config)
    except OmegaConfBaseException as error:
        cause = first_line(error)
        raise InputError(f"{target.run / 'run.json'}: not the configuration of this version ({cause})") from None
    config.root = str(target.run.parent)
    return config


def read_run_data(target: Target, show_progress: bool) -> RunData:
    """Return the data of a run under the tokenizer in the folder of its model.

    Raises:
        InputError: If the data cannot be read, or have changed since the run.
    """
    config = _config_of(target)
    config.trainer.progress_bar = show_progress
    run = target.run
    assert run is not None
    context = RunContext(config)
    tokenizer = load_tokenizer(target.model, None, None)
    encoded = context.data.encode(tokenizer)
    train, val = encoded.train, encoded.val
    there, held_out = set(val.ids), read_held_out(run).nll.keys()
    if there != held_out:
        raise InputError(
            f"suite=offline: {config.data.path or config.data.title} has changed since the run {target.name}: "
            f"{len(there ^ held_out)} held-out examples differ"
        )
    subsets = _split_column(run, "subset")
    recipe = read_json(run / MANIFEST)["fields"].get("recipe", {})
    on = recipe.get("ntp", {}).get("on", "all")
    subset = None if on == "all" or recipe.get("mixup") is not None else str(on)  # Table 6 without Mixup
    trained = train
    if subset is not None:
        trained = train.select(np.array([subsets.get(i) == subset for i in train.ids], dtype=bool))
    batch_tokens = config.confidence.batch_tokens
    return RunData(train, trained, val, context.data.examples, subset, subsets, batch_tokens)


def _split_column(run: Path, column: str) -> dict[str, Any]:
    """Return a column of a run's own split by example id; empty if it has no split."""
    file = run / "split.parquet"
    if not file.is_file():
        return {}
    ids, values = read_columns(file, ("example_id", column))
    return {i: x for i, x in zip(ids, values, strict=True) if x is not None}


def find_confidence(run: Path, val_ids: Collection[str], train_ids: Collection[str] = ()) -> RunConfidence | None:
    """Return the confidence in nearly all held-out examples of a run, or None if they were not scored.

    A run that was split by confidence has the confidence in its own split. For another run, the artifacts beside it are
    searched: first those of which the run is the reference, then all others, the newest first. Scores of the training
    examples too are preferred: runs of other training examples may hold out the same ones.
    """
    from sftmix.stages.scores import confidence_of

    def covers(values: dict[str, float], ids: Collection[str] = val_ids) -> bool:
        return sum(i in values for i in ids) >= LEAST_COVERAGE * len(ids)

    own = _split_column(run, "confidence")
    if own and covers(own):
        return RunConfidence(own, "the run's own split")
    fingerprint = read_json(run / MANIFEST)["fingerprint"]
    scored = [
        (scored.fields.get("checkpoints") == fingerprint, scored.completed, scored.folder)
        for scored in find_artifacts(run.parent, "confidence")[0]
    ]
    of_others: RunConfidence | None = None
    for *_, folder in sorted(scored, reverse=True):
        try:
            ids, confidence, _ = confidence_of(read_confidence(folder / "confidence.parquet"), None)
        except (InputError, ValueError, TypeError):  # of another run, which reports the damage itself
            continue
        values = dict(zip(ids, confidence.tolist(), strict=True))
        if covers(values) and covers(values, train_ids):
            return RunConfidence(values, folder.name)
        if covers(values) and of_others is None:
            of_others = RunConfidence(values, folder.name)
    return of_others
