"""Groups of runs that differ only in their seed, with what the runs measured."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sftmix.analysis.paired import Difference
from sftmix.analysis.verdict import Verdict, holm, verdict_of
from sftmix.artifacts.manifest import MANIFEST
from sftmix.errors import InputError
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.provenance.runs import ExampleLosses, read_config, read_held_out, read_record, read_subsets
from sftmix.quoting import key_of, shell_command
from sftmix.reports.diff import differing, leaves_of
from sftmix.reports.page import Cell
from sftmix.reports.tables.columns import difference_cell, difference_of_losses, mean_cell
from sftmix.sweep.store import StoredSweep, SweepRun, is_inert, same_as

ALL = "all"
SUBSETS = (ALL, "confident", "unconfident")
INTERVAL = "intervals are over seeds and examples; with one seed they are over examples and do not cover other seeds"


@dataclass(frozen=True)
class Group:
    """The seeds of one setting.

    Attributes:
        overrides: Overrides that distinguish the group from other groups.
        common: Overrides that all runs of the sweep have.
        variant: What distinguishes the runs from another group with the same overrides; empty for the first group.
    """

    overrides: tuple[str, ...]
    common: tuple[str, ...]
    runs: tuple[SweepRun, ...]
    variant: str = ""

    @property
    def label(self) -> str:
        """The name of the group where the paper has none."""
        return " ".join(filter(None, (*self.overrides, self.variant))) or "the run"

    @cached_property
    def done(self) -> list[SweepRun]:
        """The complete runs."""
        return [run for run in self.runs if run.is_done]

    @cached_property
    def losses(self) -> list[ExampleLosses]:
        """Held-out losses of the complete runs that hold something out."""
        losses = [read_held_out(run.target) for run in self.done]
        return [loss for loss in losses if loss.nll]

    @cached_property
    def val_ids(self) -> frozenset[str]:
        """The held-out examples, the same under every seed.

        Raises:
            InputError: If the runs hold out different examples.
        """
        found = {frozenset(loss.nll) for loss in self.losses}
        if len(found) > 1:
            raise InputError(f"{self.done[0].target}: its seeds hold out different examples, expected the same")
        return next(iter(found), frozenset())

    @cached_property
    def evaluations(self) -> list[tuple[str, Evaluation]]:
        """The results of suites, with the name of the run."""
        return [(run.target.name, found) for run in self.done for found in read_evaluations(run.target)]

    @cached_property
    def configs(self) -> list[Mapping[str, Any]]:
        """The config of each complete run."""
        return [read_config(run.target) for run in self.done]

    @cached_property
    def subset_of(self) -> dict[str, str]:
        """The subset of each held-out example by the runs' own split; empty unless they are split by confidence."""
        by = {str((config.get("split") or {}).get("by", "confidence")) for config in self.configs}
        return read_subsets(self.done[0].target) if self.done and by == {"confidence"} else {}

    @property
    def is_ntp(self) -> bool:
        """Whether the group is the NTP baseline itself."""
        return all(run.target == run.baseline for run in self.runs)

    def unfinished(self) -> Cell | None:
        """Return the cell that says why there is no complete run, or None if there is one."""
        if self.done:
            return None
        failed = [run for run in self.runs if run.state == "failed"]
        if failed:
            return Cell("failed", note="; ".join(map(_why_failed, failed)))
        if any(run.state == "running" for run in self.runs):
            return Cell("running")
        if damaged := [run.damage for run in self.runs if run.damage is not None]:
            return Cell("damaged", note=f"damaged: {'; '.join(damaged)}")
        if unfinished := [run for run in self.runs if run.is_unfinished]:
            return Cell("unfinished", note=f"unfinished, continue: {'; '.join(run.command for run in unfinished)}")
        return Cell("not run", note=f"not run: {'; '.join(run.command for run in self.runs)}")

    def missing(self) -> str | None:
        """Return the seeds that are missing beside complete ones, or None."""
        lacking = [run for run in self.runs if not run.is_done]
        if not self.done or not lacking:
            return None
        return "; ".join(f"{run.seed} {_why_missing(run)}" for run in lacking)

    def loss_cell(self, ids: Sequence[str], form: Callable[[float], float] = lambda loss: loss) -> Cell:
        """Return the mean over seeds of `form` of the loss over some examples in nats per token."""
        unfinished = self.unfinished()
        if unfinished:
            return unfinished
        if not self.losses:
            return Cell("nothing held out")
        return mean_cell([form(loss.over(ids)) for loss in self.losses], decimals=4) if ids else Cell()

    @cached_property
    def difference(self) -> Difference | None:
        """The paired difference to the NTP runs at the same settings, or None if no seed has both."""
        pairs = [(read_held_out(run.target), read_held_out(run.baseline)) for run in self.done if run.has_baseline]
        return difference_of_losses([(a, b) for a, b in pairs if a.nll and a.nll.keys() == b.nll.keys()])

    def difference_cell(self, verdict: Verdict | None) -> Cell:
        """Return the difference to NTP with its 95% interval and verdict, or why there is none."""
        if self.unfinished() or not self.losses:
            return Cell()
        if self.is_ntp:
            return Cell("is NTP")
        found = self.difference
        if found is not None:
            lacking = [run.command for run in self.done if not run.has_baseline]
            cell = difference_cell(found, verdict=verdict, show_sd=True)
            if lacking:
                note = f"over {len(found.of_seeds)} of {len(self.done)} seeds; NTP not run: "
                note += "; ".join(map(ntp_command, lacking))
                cell = replace(cell, note="; ".join(filter(None, (cell.note, note))))
            return cell
        if any(run.has_baseline for run in self.done):
            return Cell("none", note="the NTP run at the same settings holds out other examples")
        commands = "; ".join(ntp_command(run.command) for run in self.done)
        return Cell("NTP not run", note=f"NTP not run: {commands}")


def verdicts_on(found: Mapping[int, Difference]) -> dict[int, Verdict]:
    """Return the verdict on each difference of held-out losses, with Holm's correction over all of them."""
    p_values = [difference.p for difference in found.values()]
    number = sum(not math.isnan(p) for p in p_values)
    return {
        key: verdict_of(difference, lower_is_better=True, adjusted_p=p, num_comparisons=number)
        for (key, difference), p in zip(found.items(), holm(p_values), strict=True)
    }


def verdicts_to_ntp(groups: Sequence[Group]) -> dict[int, Verdict]:
    """Return the verdict on the difference of each group to NTP, by the group's id, if there is a difference."""
    found = {id(group): group.difference for group in groups if not group.is_ntp and group.losses}
    return verdicts_on({key: difference for key, difference in found.items() if difference is not None})


def seedless(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the content of a run depends on except the seed, also without a split seed equal to the seed."""
    kept = {key: value for key, value in fields.items() if key != "seed"}
    split = fields.get("split")
    if isinstance(split, dict) and split.get("seed") == fields.get("seed"):
        kept["split"] = {key: value for key, value in split.items() if key != "seed"}
    return kept


def groups_of(sweeps: Sequence[StoredSweep]) -> list[Group]:
    """Return the runs of some sweeps in groups that differ only in the seed. Each run is in one group.

    Runs with the same overrides that differ in more than the seed, such as another data file under the same name or a
    changed default, are groups of their own.
    """
    together: dict[tuple[Any, ...], list[_Collected]] = {}
    for sweep in sweeps:
        for run in sweep.runs:
            variants = together.setdefault(tuple(map(same_as, run.seedless)), [])
            fitting = next((variant for variant in variants if variant.takes(run)), None)
            if fitting is None:
                fitting = _Collected(run.seedless, sweep.common, {})
                variants.append(fitting)
            known = fitting.runs.get(run.target)
            if known is None or run.state != "waiting":  # of several sweeps, the last one that has started the run
                fitting.runs[run.target] = run
    return [
        Group(found.overrides, found.common, tuple(found.runs.values()), found.differs_from(variants[0]))
        for variants in together.values()
        for found in variants
    ]


@dataclass(frozen=True)
class _Collected:
    """Runs that differ only in the seed, while they are collected."""

    overrides: tuple[str, ...]
    common: tuple[str, ...]
    runs: dict[Path, SweepRun]

    def takes(self, run: SweepRun) -> bool:
        """Return whether a run is the same as these runs under another seed."""
        if run.target in self.runs or not run.is_done:
            return True
        done = [other for other in self.runs.values() if other.is_done]
        if not done:
            return True
        return run.seed not in {other.seed for other in done} and _are_alike(done[0].target, run.target)

    def differs_from(self, first: "_Collected") -> str:
        """Return what distinguishes these runs from the first runs with the same overrides."""
        if first is self:
            return ""
        run, other = (next(run.target for run in found.runs.values() if run.is_done) for found in (self, first))
        here, there = read_config(run), read_config(other)
        keys = [key for key in differing(here, there) if not is_inert(f"{key}=") and key != "split.seed"]
        return " ".join(f"{key}={leaves_of(here).get(key)}" for key in keys) or run.name


def _are_alike(one: Path, other: Path) -> bool:
    """Return whether two runs differ only in the seed, or in the confidence of references with the run's own seed."""
    left, right = (seedless(read_record(run / MANIFEST).get("fields", {})) for run in (one, other))
    if left == right:
        return True
    if {**left, "confidence": None} != {**right, "confidence": None}:
        return False
    configs = [read_config(run) for run in (one, other)]
    return all((config.get("reference") or {}).get("seed") == config.get("seed") for config in configs)


def subsets_for(groups: Sequence[Group]) -> dict[int, tuple[dict[str, list[str]], Group | None]]:
    """Return the examples of each subset by the group's id, and the group whose split defines them if it is another."""
    found, others = {}, [group for group in groups if group.subset_of]
    for group in groups:
        owner = group if group.subset_of else next((g for g in others if g.val_ids == group.val_ids), None)
        subset_of = owner.subset_of if owner is not None and group.val_ids else {}
        subsets = {name: sorted(i for i in group.val_ids if subset_of.get(i) == name) for name in SUBSETS[1:]}
        found[id(group)] = {ALL: sorted(group.val_ids), **subsets}, owner if owner is not group and subset_of else None
    return found


def _why_missing(run: SweepRun) -> str:
    if run.damage is not None:
        return f"damaged: {run.damage}"
    if run.state == "failed":
        return _why_failed(run)
    if run.state == "running":
        return "running, or waiting for its turn"
    return f"unfinished, continue: {run.command}" if run.is_unfinished else f"not run: {run.command}"


def _why_failed(run: SweepRun) -> str:
    log = f" (log: {run.log})" if run.log else ""
    return f"failed: {run.cause or 'no cause was written'}{log}; again: {run.command}"


OF_RECIPE = ("recipe", "recipe.mixup", "recipe.ntp", "recipe.neftune_alpha", "confidence", "split", "reference.model")


def ntp_command(command: str) -> str:
    """Return the command of the NTP run at the settings of another run, without its recipe and reference."""

    def stays(argument: str) -> bool:
        key = key_of(argument)
        is_reference = key.endswith("@reference.model")
        return not is_reference and not any(key == n or (key.startswith(f"{n}.") and n != "recipe") for n in OF_RECIPE)

    return shell_command([*(part for part in shlex.split(command) if stays(part)), "recipe=ntp"])
