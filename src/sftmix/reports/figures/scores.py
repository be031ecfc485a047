"""The scored training examples of a run, and the most and least confident ones among them."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.scored_examples import ScoredExamples, read_scored_examples
from sftmix.artifacts.artifact import folder_of
from sftmix.errors import InputError
from sftmix.terminal import counted

HELD_OUT = "val"


class ScoredRun(NamedTuple):
    """A run, or a folder of scores."""

    folder: Path
    examples: ScoredExamples  # Training examples only

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def num_infinite(self) -> int:
        """Number of examples with an infinite perplexity under a checkpoint."""
        return int(np.isinf(self.examples.confidence).sum())


class Extremes(NamedTuple):
    """The most and the least confident examples of a run, as many of each."""

    confident: NDArray[np.int64]  # Indices of the examples, the most confident first
    unconfident: NDArray[np.int64]  # The least confident first

    @property
    def both(self) -> NDArray[np.int64]:
        """Indices of all of them, the confident ones first."""
        return np.concatenate([self.confident, self.unconfident])


def check_package(key: str) -> None:
    """Refuse a report that needs scikit-learn if it is not installed."""
    if find_spec("sklearn") is None:
        raise InputError(f"{key}: needs scikit-learn: pip install 'sftmix[figures]'")


def read_scored_run(given: str, root: Path, key: str) -> ScoredRun:
    """Return the training examples of a run with their confidence. Held-out examples are left out.

    Raises:
        InputError: If there is no such run, it has no confidence, a confidence is NaN, or there are fewer than two
            training examples.
    """
    folder = folder_of(given, root, key)
    examples = read_scored_examples(folder, root)
    examples = examples.select(np.flatnonzero([part != HELD_OUT for part in examples.part]))
    if len(examples) < 2:
        raise InputError(f"{key}={given}: {counted(len(examples), 'scored training example')}, expected at least 2")
    if wrong := int(np.isnan(examples.confidence).sum()):
        raise InputError(
            f"{key}={given}: {wrong:,} of {len(examples):,} confidences are NaN, expected numbers or infinity"
        )
    return ScoredRun(folder, examples)


def extremes(run: ScoredRun, k: int) -> Extremes:
    """Return the `k` most and the `k` least confident examples, half of the examples each if there are fewer.

    Raises:
        InputError: If all confidences are equal.
    """
    confidence = run.examples.confidence
    if (confidence == confidence[0]).all():
        value = f"{confidence[0]:g}"
        raise InputError(f"{run.folder}: all {len(confidence):,} confidences are {value}: none is more confident")
    order = np.lexsort((np.asarray(run.examples.ids), -confidence))
    number = min(k, len(order) // 2)
    return Extremes(order[:number], order[::-1][:number])
