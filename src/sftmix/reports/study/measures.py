"""Measures of the arms of a study by seed, and the paired difference of two arms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sftmix.analysis.paired import Difference, hierarchical_difference
from sftmix.errors import InputError
from sftmix.evaluation.offline.scores import SUBSETS
from sftmix.evaluation.results import LOSS, OWN_HELD_OUT, Evaluation, loss_of, read_evaluations
from sftmix.provenance.runs import ExampleLosses, read_held_out
from sftmix.reports.study.protocol import Contrast, Measure
from sftmix.reports.tables.columns import OFFLINE, held_out_metrics, mean_by_question, pair_up

EVALUATE = "python eval.py run=RUN suite=offline"


@dataclass(frozen=True)
class ArmRun:
    """A complete run of an arm."""

    folder: Path

    @cached_property
    def losses(self) -> ExampleLosses:
        """Held-out losses by example."""
        return read_held_out(self.folder)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """Results of suite=offline by the name of the set."""
        return {found.benchmark: found for found in read_evaluations(self.folder) if found.suite == OFFLINE}

    def evaluation(self, name: str) -> Evaluation:
        """Return the results of suite=offline on a set.

        Raises:
            InputError: If there are none.
        """
        if name not in self.evaluations:
            sets = "" if name == OWN_HELD_OUT else f" 'suite.sets={{{name}: FILE}}'"
            command = EVALUATE.replace("RUN", str(self.folder))
            raise InputError(f"{self.folder}: was not evaluated on {name}: {command}{sets}")
        return self.evaluations[name]

    def training_loss(self, subset: str | None) -> float:
        """Return the loss of the training examples that suite=offline has measured, in nats per token.

        Raises:
            InputError: If suite=offline has not measured them.
        """
        scores = self.evaluation(OWN_HELD_OUT).scores
        of_val, gap = (LOSS, "gap") if subset is None else (loss_of(subset), f"gap, {subset}")
        if of_val not in scores or gap not in scores:
            raise InputError(f"{self.folder}: suite=offline knows no confidence of its training examples")
        return scores[of_val] - scores[gap]


Arm = Mapping[int, ArmRun]  # Complete runs by seed


@dataclass(frozen=True)
class Study:
    """The runs of the arms, and the subset of each held-out example."""

    arms: Mapping[str, Arm]
    subset_of: Mapping[str, str]

    @cached_property
    def ids(self) -> dict[str | None, list[str]]:
        """The held-out examples of all arms by subset; None: all of them.

        Raises:
            InputError: If runs hold out other examples, or an example has no subset.
        """
        runs = [run for arm in self.arms.values() for run in arm.values()]
        first = runs[0].losses.num_tokens
        for run in runs:
            if run.losses.num_tokens != first:
                raise InputError(f"{run.folder}: holds out other examples than {runs[0].folder}")
        ids = sorted(first)
        if lacking := sum(i not in self.subset_of for i in ids):
            raise InputError(f"subsets: has no confidence in {lacking:,} of the {len(ids):,} held-out examples")
        found: dict[str | None, list[str]] = {None: ids}
        found |= {name: [i for i in ids if self.subset_of[i] == name] for name in SUBSETS}
        return found

    def value(self, arm: str, seed: int, measure: Measure) -> float:
        """Return a measure of one run."""
        run = self.arms[arm][seed]
        if measure.set is not None:
            scores = run.evaluation(measure.set).scores
            if measure.name not in scores:
                raise InputError(f"{run.folder}: the evaluation on {measure.set} has no {measure.name}")
            return scores[measure.name]
        held_out = run.losses.over(self.ids[measure.subset])
        if measure.name == "held-out loss":
            return held_out
        training = run.training_loss(measure.subset)
        return training if measure.name == "training loss" else held_out - training

    def seeds(self, contrast: Contrast) -> list[int]:
        """Return the seeds that both arms have."""
        return sorted(self.arms[contrast.a].keys() & self.arms[contrast.b].keys())

    def difference(self, contrast: Contrast) -> Difference:
        """Return arm a minus arm b over seeds and, where examples are known, over examples.

        The training loss and the calibration error have one value for each run, so that the interval is Student's over
        seeds. Every seed has its own training examples. The gap is the held-out loss of each example minus the training
        loss of the run.

        Raises:
            InputError: If the arms have no seed in common, or an evaluation is missing.
        """
        seeds, measure = self.seeds(contrast), contrast.measure
        if not seeds:
            raise InputError(f"arms {contrast.a} and {contrast.b} have no complete run of the same seed")
        pairs = [(self.arms[contrast.a][seed], self.arms[contrast.b][seed]) for seed in seeds]
        if measure.set is not None and measure.name != "ECE":
            of_set = [tuple(mean_by_question([run.evaluation(measure.set)], measure.name) for run in p) for p in pairs]
            paired = pair_up([(a, b) for a, b in of_set])
            if paired is None:
                raise InputError(f"{measure.set}: the runs were not evaluated on the same examples")
            if paired.num_left_out:
                raise InputError(f"{measure.set}: {paired.num_left_out:,} examples are not in every evaluation")
            return paired.difference
        if measure.set is not None or measure.name == "training loss":
            return self._over_seeds(contrast, seeds)
        ids = self.ids[measure.subset]
        metrics = [[held_out_metrics(run.losses, ids).values for run in pair] for pair in pairs]
        num_tokens = np.array([pairs[0][0].losses.num_tokens[i] for i in ids], np.float64)
        nats = np.array([[a[i] - b[i] for i in ids] for a, b in metrics])
        if measure.name == "gap":
            training = [a.training_loss(measure.subset) - b.training_loss(measure.subset) for a, b in pairs]
            nats -= np.outer(training, num_tokens)
        return hierarchical_difference(nats, num_tokens)

    def _over_seeds(self, contrast: Contrast, seeds: Sequence[int]) -> Difference:
        of_seeds = [
            self.value(contrast.a, seed, contrast.measure) - self.value(contrast.b, seed, contrast.measure)
            for seed in seeds
        ]
        return hierarchical_difference([of_seeds])._replace(of_seeds=of_seeds)
