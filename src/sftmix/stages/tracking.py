"""Make the callbacks and loggers of the config, and log the distribution of confidence at Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hydra.errors import HydraException
from hydra.utils import instantiate
from pyarrow import parquet

from sftmix.artifacts.hashes import fingerprint
from sftmix.config.entries import FOLDERS, TARGET
from sftmix.config.schema import Config, literal, to_dict
from sftmix.errors import InputError
from sftmix.provenance.git import git_state
from sftmix.stages.context import StageSpec
from sftmix.terminal import one_line
from sftmix.training.loggers import WandbRunLogger

LONGEST_TAG = 64  # characters
EXTREMES = 20
QUANTILES = (0.05, 0.25, 0.75, 0.95)
OUTER, BINS = (0.01, 0.99), 64  # quantiles between which the histogram lies: perplexity has a long tail
COLUMNS = ("example_id", "confidence", "variability", "group", "instruction", "response")


def instantiate_entries(group: str, entries: dict[str, Any], kind: type[Any], folder: Path) -> list[Any]:
    """Return an object for each entry of `callbacks` or `logger`, in the order of the config.

    Args:
        entries: Arguments of each entry and its class, `_target_`. A `save_dir` or `dirpath` of null is the folder.
        kind: Class of all objects: Lightning's Callback or Logger.
    """
    made = []
    for name, entry in entries.items():
        arguments = {key: str(folder) if key in FOLDERS and value is None else value for key, value in entry.items()}
        try:
            found = instantiate(literal(literal(arguments)), _convert_="all")  # Hydra resolves twice
        except (HydraException, ImportError) as error:
            cause = error.__cause__ or error
            raise InputError(f"{group}.{name}: {' '.join(str(cause).split())}") from error
        if not isinstance(found, kind):
            raise InputError(f"{group}.{name}: {entry['_target_']} is not a {kind.__name__} of Lightning")
        made.append(found)
    return made


def wandb_arguments(config: Config, spec: StageSpec, job_type: str, *, tags: Sequence[str]) -> dict[str, object] | None:
    """Return the arguments of a stage's run at Weights & Biases, or None if the stage is not logged there.

    The name of the run is the name of the artifact, and `group` is the sweep. The resolved config is logged too. It
    contains no key and no token.

    Args:
        job_type: reference, confidence or target. It is also a tag.
    """
    wandb = config.wandb
    if wandb is None or wandb.get("mode") == "disabled":
        return None
    name = spec.folder.name.removesuffix(".partial")
    return {
        **{key: value for key, value in wandb.items() if key != TARGET},
        "name": name,
        "job_type": job_type,
        "tags": [one_line(tag)[:LONGEST_TAG] for tag in dict.fromkeys((*tags, job_type))],
        "config": {
            **to_dict(config),
            "artifact": {"name": name, "fingerprint": fingerprint(spec.fields)},
            "git": git_state(),
        },
    }


def log_confidence(run: WandbRunLogger, file: Path) -> None:
    """Log the distribution of confidence, and the extreme examples, from `examples.parquet`."""
    examples = parquet.read_table(file, columns=list(COLUMNS), memory_map=True)
    confidence = examples["confidence"].to_numpy()
    low, high = np.quantile(confidence, OUTER).tolist()
    if low == high:
        low, high = low - 0.5, high + 0.5
    run.log_histogram("confidence/histogram", confidence.tolist(), 0, low, high, BINS)
    order = np.argsort(-confidence, kind="stable")
    ends = [("most confident", order[:EXTREMES]), ("least confident", order[::-1][:EXTREMES])]
    rows = [[end, *row.values()] for end, indices in ends for row in examples.take(pa.array(indices)).to_pylist()]
    run.log_rows("confidence/extremes", ("end", *COLUMNS), rows, 0)
    metrics = {"examples": len(confidence), "mean": confidence.mean(), "median": np.median(confidence)}
    metrics |= {f"q{100 * q:02.0f}": np.quantile(confidence, q) for q in QUANTILES}
    run.summarize({f"confidence/{name}": float(value) for name, value in metrics.items()}, 0)
