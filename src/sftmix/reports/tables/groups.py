"""Rows of sweeps that differ in their seed alone, with what their runs measured."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sftmix.analysis.holm import holm
from sftmix.analysis.paired import Difference
from sftmix.analysis.verdict import Verdict, verdict_of
from sftmix.artifacts.manifest import MANIFEST
from sftmix.errors import InputError
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.quoting import key_of, shell_command
from sftmix.reports.dict_paths import leaves_of
from sftmix.reports.held_out import (
    HeldOutLoss,
    difference_over_seeds,
    mean_and_sd,
    read_halves,
    read_held_out,
)
from sftmix.reports.page import Cell
from sftmix.reports.runs import read_record
from sftmix.sweep.store import Sweep, SweepRow, is_inert, same_as

ALL, CONFIDENT, UNCONFIDENT = "all", "confident", "unconfident"
PARTS = (ALL, CONFIDENT, UNCONFIDENT)
INTERVAL = "intervals are over seeds and examples; with one seed they are over examples and do not cover other seeds"


@dataclass(frozen=True)
class Group:
    """The seeds of one setting.

    Attributes:
        overrides: what tells it from other groups.
        common: overrides that all rows of its sweep have.
        rows: one a seed.
        variant: What tells its runs from those of another group with the same overrides; empty for the first group.
    """

    overrides: tuple[str, ...]
    common: tuple[str, ...]
    rows: tuple[SweepRow, ...]
    variant: str = ""

    @property
    def label(self) -> str:
        """What it is called where the paper has no name for it."""
        return " ".join(filter(None, (*self.overrides, self.variant))) or "the run"

    @cached_property
    def done(self) -> list[SweepRow]:
        """Rows whose run is complete."""
        return [row for row in self.rows if row.is_done]

    @cached_property
    def losses(self) -> list[HeldOutLoss]:
        """Held-out losses of the complete runs that hold something out."""
        losses = [read_held_out(row.target) for row in self.done]
        return [loss for loss in losses if loss.nll]

    @cached_property
    def val_ids(self) -> frozenset[str]:
        """The held-out examples, the same under every seed.

        Raises:
            InputError: they are not the same: the rows are of other data.
        """
        found = {frozenset(loss.nll) for loss in self.losses}
        if len(found) > 1:
            raise InputError(f"{self.done[0].target}: its seeds hold out different examples, they are no group")
        return next(iter(found), frozenset())

    @cached_property
    def evaluations(self) -> list[tuple[str, Evaluation]]:
        """What suites found, with the name of the run."""
        return [(row.target.name, found) for row in self.done for found in read_evaluations(row.target)]

    @cached_property
    def configs(self) -> list[Mapping[str, Any]]:
        """The configuration of each complete run, as its passport has it."""
        return [read_record(row.target / "run.json").get("config", {}) for row in self.done]

    @cached_property
    def halves(self) -> dict[str, str]:
        """The half of each held-out example by the runs' own split; empty where they have none by confidence."""
        by = {str((config.get("split") or {}).get("by", "confidence")) for config in self.configs}
        return read_halves(self.done[0].target) if self.done and by == {"confidence"} else {}

    @property
    def is_ntp(self) -> bool:
        """Whether it is the NTP baseline itself."""
        return all(row.target == row.baseline for row in self.rows)

    def unfinished(self) -> Cell | None:
        """The cell that says why nothing is there; None where a run is."""
        if self.done:
            return None
        failed = [row for row in self.rows if row.state == "failed"]
        if failed:
            return Cell("failed", note="; ".join(map(why_failed, failed)))
        if any(row.state == "running" for row in self.rows):
            return Cell("running")
        if damaged := [row.damage for row in self.rows if row.damage is not None]:
            return Cell("damaged", note=f"damaged: {'; '.join(damaged)}")
        if unfinished := [row for row in self.rows if row.is_unfinished]:
            return Cell("unfinished", note=f"unfinished, continue: {'; '.join(row.command for row in unfinished)}")
        return Cell("not run", note=f"not run: {'; '.join(row.command for row in self.rows)}")

    def missing(self) -> str | None:
        """What is said of seeds that are not there beside some that are."""
        lacking = [row for row in self.rows if not row.is_done]
        if not self.done or not lacking:
            return None
        return "; ".join(f"{row.seed} {_why_missing(row)}" for row in lacking)

    def loss_cell(self, ids: Sequence[str], form: Callable[[float], float] = lambda loss: loss) -> Cell:
        """The mean over seeds of the loss over some examples, in nats per token, or of what a form makes of it."""
        unfinished = self.unfinished()
        if unfinished:
            return unfinished
        if not self.losses:
            return Cell("nothing held out")
        return figure([form(loss.over(ids)) for loss in self.losses], decimals=4) if ids else Cell()

    @cached_property
    def difference(self) -> Difference | None:
        """The paired difference to the NTP runs at the same settings; None where no seed has both."""
        pairs = [(read_held_out(row.target), read_held_out(row.baseline)) for row in self.done if row.has_baseline]
        pairs = [(ours, theirs) for ours, theirs in pairs if ours.nll and ours.nll.keys() == theirs.nll.keys()]
        return difference_over_seeds(pairs) if pairs else None

    def difference_cell(self, corrected: "Corrected") -> Cell:
        """Return the difference to NTP with its 95% interval and verdict, or why there is none.

        Args:
            corrected: p-values of all differences to NTP in the same table.
        """
        if self.unfinished() or not self.losses:
            return Cell()
        if self.is_ntp:
            return Cell("is NTP")
        found = self.difference
        if found is not None:
            lacking = [row.command for row in self.done if not row.has_baseline]
            cell = difference_figure(found, corrected.verdict(self))
            if lacking:
                note = f"over {len(found.of_seeds)} of {len(self.done)} seeds; NTP not run: "
                note += "; ".join(map(ntp_command, lacking))
                cell = replace(cell, note="; ".join(filter(None, (cell.note, note))))
            return cell
        if any(row.has_baseline for row in self.done):
            return Cell("none", note="the NTP run at the same settings holds out other examples")
        commands = "; ".join(ntp_command(row.command) for row in self.done)
        return Cell("NTP not run", note=f"NTP not run: {commands}")


@dataclass(frozen=True)
class Corrected:
    """Differences of some groups, each with its p-value after Holm's correction over all of them.

    Attributes:
        found: Difference of each group, by the group's id; groups without a difference are absent.
    """

    found: Mapping[int, Difference]

    @cached_property
    def _adjusted(self) -> dict[int, float]:
        return dict(zip(self.found, holm([found.p for found in self.found.values()]), strict=True))

    def verdict(self, group: Group) -> Verdict:
        """Return the verdict on the held-out loss of a group that has a difference."""
        found, adjusted = self.found[id(group)], self._adjusted[id(group)]
        number = sum(not math.isnan(other.p) for other in self.found.values())
        return verdict_of(found, lower_is_better=True, adjusted_p=adjusted, num_comparisons=number)


def corrected_to_ntp(groups: Sequence[Group]) -> Corrected:
    """Return the differences of groups to NTP, corrected for each other."""
    found = {id(group): group.difference for group in groups if not group.is_ntp and group.losses}
    return Corrected({key: difference for key, difference in found.items() if difference is not None})


def seedless(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's content depends on but its seed; that of random halves follows it unless told otherwise."""
    kept = {key: value for key, value in fields.items() if key != "seed"}
    split = fields.get("split")
    if isinstance(split, dict) and split.get("seed") == fields.get("seed"):
        kept["split"] = {key: value for key, value in split.items() if key != "seed"}
    return kept


def groups_of(sweeps: Sequence[Sweep]) -> list[Group]:
    """Return the rows of some sweeps, grouped: rows of a group differ in the seed only. Each run is in one group.

    Runs with the same overrides that differ in more than the seed, such as another data file under the same name or a
    changed default, are groups of their own.
    """
    together: dict[tuple[Any, ...], list[_Rows]] = {}
    for sweep in sweeps:
        for row in sweep.rows:
            variants = together.setdefault(tuple(map(same_as, row.seedless)), [])
            fitting = next((rows for rows in variants if rows.takes(row)), None)
            if fitting is None:
                fitting = _Rows(row.seedless, sweep.common, {})
                variants.append(fitting)
            known = fitting.rows.get(row.target)
            if known is None or row.state != "waiting":  # of several sweeps the last that has tried it
                fitting.rows[row.target] = row
    return [
        Group(rows.overrides, rows.common, tuple(rows.rows.values()), rows.differs_from(variants[0]))
        for variants in together.values()
        for rows in variants
    ]


@dataclass(frozen=True)
class _Rows:
    """Rows that differ in the seed only, while they are collected."""

    overrides: tuple[str, ...]
    common: tuple[str, ...]
    rows: dict[Path, SweepRow]

    def takes(self, row: SweepRow) -> bool:
        """Whether a row is under another seed what these rows are."""
        if row.target in self.rows or not row.is_done:
            return True
        done = [other for other in self.rows.values() if other.is_done]
        if not done:
            return True
        return row.seed not in {other.seed for other in done} and _are_alike(done[0].target, row.target)

    def differs_from(self, first: "_Rows") -> str:
        """What tells these rows from the first ones with the same overrides."""
        if first is self:
            return ""
        run, other = (next(row.target for row in rows.rows.values() if row.is_done) for rows in (self, first))
        here, there = (leaves_of(read_record(folder / "run.json").get("config", {})) for folder in (run, other))
        differing = [
            f"{key}={here.get(key)}"
            for key in dict.fromkeys((*here, *there))
            if here.get(key) != there.get(key) and not is_inert(f"{key}=") and key != "split.seed"
        ]
        return " ".join(differing) or run.name


def _are_alike(one: Path, other: Path) -> bool:
    """Whether two runs differ in the seed only, or in the confidence of references that have the run's own seed."""
    left, right = (seedless(read_record(run / MANIFEST).get("fields", {})) for run in (one, other))
    if left == right:
        return True
    if {**left, "confidence": None} != {**right, "confidence": None}:
        return False
    configs = [read_record(run / "run.json").get("config", {}) for run in (one, other)]
    references = [config.get("reference") or {} for config in configs]
    return all(
        reference.get("seed") == config.get("seed") for reference, config in zip(references, configs, strict=True)
    )


def halves_for(groups: Sequence[Group]) -> Iterator[tuple[Group, dict[str, list[str]], Group | None]]:
    """Each group with the examples of each part, and the group whose split they are by where it is another."""
    for group in groups:
        owner = group if group.halves else next((g for g in groups if g.halves and g.val_ids == group.val_ids), None)
        halves = owner.halves if owner is not None and group.val_ids else {}
        parts = {name: sorted(i for i in group.val_ids if halves.get(i) == name) for name in PARTS[1:]}
        yield group, {ALL: sorted(group.val_ids), **parts}, owner if owner is not group and halves else None


def figure(values: Sequence[float], decimals: int, *, show_n: bool = False) -> Cell:
    """A mean with its standard deviation where there is one, and how many values it is of."""
    mean, sd = mean_and_sd(values)
    text = f"{mean:.{decimals}f}" + ("" if sd is None else f" ± {sd:.{decimals}f}")
    return Cell(f"{text} ({len(values)})" if show_n else text, value=mean, sd=sd, n=len(values))


def difference_figure(found: Difference, verdict: Verdict) -> Cell:
    """Return a difference with its interval, its standard deviation over several seeds, and the verdict."""
    mean, sd = mean_and_sd(found.of_seeds)
    text = f"{mean:+.4f}"
    if not math.isnan(found.low):
        text += f" [{found.low:+.4f}, {found.high:+.4f}]"
    if sd is not None:
        text += f", sd {sd:.4f}"
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    return Cell(
        f"{text}: {verdict.words}",
        note=verdict.reason,
        value=mean,
        sd=sd,
        n=len(found.of_seeds),
        low=low,
        high=high,
    )


def _why_missing(row: SweepRow) -> str:
    if row.damage is not None:
        return f"damaged: {row.damage}"
    if row.state == "failed":
        return why_failed(row)
    if row.state == "running":
        return "running, or its turn comes"
    return f"unfinished, continue: {row.command}" if row.is_unfinished else f"not run: {row.command}"


def why_failed(row: SweepRow) -> str:
    """A failed row's cause, and where to read more."""
    log = f" (log: {row.log})" if row.log else ""
    return f"failed: {row.cause or 'no cause was written'}{log}; again: {row.command}"


OF_RECIPE = ("recipe", "recipe.mixup", "recipe.ntp", "recipe.neftune_alpha", "confidence", "split", "reference.model")


def ntp_command(command: str) -> str:
    """The command of the NTP run at the settings of another: its recipe, and what a reference needs, taken out."""

    def stays(argument: str) -> bool:
        key = key_of(argument)
        is_reference = key.endswith("@reference.model")
        return not is_reference and not any(key == n or (key.startswith(f"{n}.") and n != "recipe") for n in OF_RECIPE)

    return shell_command([*(part for part in shlex.split(command) if stays(part)), "recipe=ntp"])
