"""Held-out losses of runs, and how sure their differences are."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.analysis.paired import Difference, hierarchical_difference
from sftmix.artifacts.tables import read_table
from sftmix.errors import InputError


class HeldOutLoss(NamedTuple):
    """Nats per held-out response token of one run, over some of the examples."""

    nll: dict[str, float]
    num_tokens: dict[str, int]

    def over(self, ids: Sequence[str]) -> float:
        """The loss over these examples."""
        return sum(self.nll[i] for i in ids) / sum(self.num_tokens[i] for i in ids)


def read_held_out(run: Path) -> HeldOutLoss:
    """Nats of each held-out response of a run.

    Raises:
        InputError: its `val.parquet` cannot be read.
    """
    table = read_table(run / "val.parquet")
    lacking = [name for name in ("example_id", "num_tokens", "nll") if name not in table]
    if lacking:
        raise InputError(f"{run / 'val.parquet'}: no column {', '.join(lacking)}")
    ids = table["example_id"]
    return HeldOutLoss(dict(zip(ids, table["nll"], strict=True)), dict(zip(ids, table["num_tokens"], strict=True)))


def read_halves(run: Path) -> dict[str, str]:
    """Which half each held-out example of a run is in: `confident` or `unconfident`; empty where it has no split.

    Raises:
        InputError: its `split.parquet` cannot be read.
    """
    if not (run / "split.parquet").is_file():
        return {}
    table = read_table(run / "split.parquet")
    lacking = [name for name in ("example_id", "part", "half") if name not in table]
    if lacking:
        raise InputError(f"{run / 'split.parquet'}: no column {', '.join(lacking)}")
    rows = zip(table["example_id"], table["part"], table["half"], strict=True)
    return {i: half for i, part, half in rows if part == "val" and half is not None}


def difference_over_seeds(pairs: Sequence[tuple[HeldOutLoss, HeldOutLoss]]) -> Difference:
    """Return the mean over seeds of the paired difference of two recipes in nats per token, below 0 if ours is lower.

    Args:
        pairs: Held-out losses of ours and theirs, one pair per seed, all over the same examples.
    """
    ids = sorted(pairs[0][0].nll)
    if any(loss.nll.keys() != set(ids) for pair in pairs for loss in pair):
        raise ValueError("the held-out losses are over different examples, expected the same for all")
    by_seed = [[ours.nll[i] - theirs.nll[i] for i in ids] for ours, theirs in pairs]
    return hierarchical_difference(by_seed, [pairs[0][0].num_tokens[i] for i in ids])


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation (n - 1); None where there is one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
