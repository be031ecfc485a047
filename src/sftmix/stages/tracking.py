"""What a stage logs at Weights & Biases: its run, and the distribution of confidence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from sftmix.artifacts.hashes import fingerprint
from sftmix.config.entries import TARGET
from sftmix.config.schema import Config, to_dict
from sftmix.provenance.git import git_state
from sftmix.stages.context import StageSpec
from sftmix.terminal import one_line
from sftmix.training.loggers import WandbRunLogger

LONGEST_TAG = 64  # characters
EXTREMES = 20
QUANTILES = (0.05, 0.25, 0.75, 0.95)
OUTER, BINS = (0.01, 0.99), 64  # quantiles between which the histogram lies: perplexity has a long tail
COLUMNS = ("example_id", "confidence", "variability", "group", "instruction", "response")


def wandb_arguments(config: Config, spec: StageSpec, job_type: str, *, tags: Sequence[str]) -> dict[str, object] | None:
    """Return the arguments of a stage's run at Weights & Biases, or None if the stage is not logged there.

    The name of the run is the name of the artifact, whichever sweep made it; `group` is the sweep. The resolved config
    is logged too. It contains no key and no token.

    Args:
        job_type: reference, confidence or target. It is also a tag.
        tags: Names of model, data and recipe.
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
    """Log the distribution of confidence, and the examples with the highest and the lowest confidence.

    Args:
        file: Its `examples.parquet`.
    """
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
