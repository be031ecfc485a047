"""Rows of sweeps that differ in their seed alone, with what their runs measured."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sftmix.analysis.paired import Difference
from sftmix.artifacts import MANIFEST, damaged, read_json
from sftmix.errors import InputError
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.reports.held_out import (
    HeldOutLoss,
    difference_over_seeds,
    mean_and_sd,
    read_halves,
    read_held_out,
)
from sftmix.reports.page import Cell
from sftmix.reports.sweeps import Sweep, SweepRow, is_complete, key_of, same_as

ALL, CONFIDENT, UNCONFIDENT = "all", "confident", "unconfident"
PARTS = (ALL, CONFIDENT, UNCONFIDENT)
INTERVAL = "intervals are over seeds and examples; of one seed they are over examples, and say nothing of other seeds"


@dataclass(frozen=True)
class Group:
    """The seeds of one setting.

    Attributes:
        overrides: what tells it from other groups.
        common: overrides that all rows of its sweep have.
        rows: one a seed.
    """

    overrides: tuple[str, ...]
    common: tuple[str, ...]
    rows: tuple[SweepRow, ...]

    @property
    def label(self) -> str:
        """What it is called where the paper has no name for it."""
        return " ".join(self.overrides) or "the run"

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

    @property
    def mixes_revisions(self) -> bool:
        """Whether its seeds differ in more than the seed, as after a change of the data or of a default."""
        fields = [read_record(row.target / MANIFEST).get("fields", {}) for row in self.done]
        return len({repr(sorted(seedless(f).items())) for f in fields}) > 1

    def unfinished(self) -> Cell | None:
        """The cell that says why nothing is there; None where a run is."""
        if self.done:
            return None
        failed = [row for row in self.rows if row.state == "failed"]
        if failed:
            return Cell("failed", note="; ".join(map(why_failed, failed)))
        if any(row.state == "running" for row in self.rows):
            return Cell("running")
        return Cell("not run", note=f"not run: {'; '.join(row.command for row in self.rows)}")

    def missing(self) -> str | None:
        """What is said of seeds that are not there beside some that are."""
        lacking = [row for row in self.rows if not row.is_done]
        if not self.done or not lacking:
            return None
        said = {"failed": why_failed, "running": lambda row: "running, or its turn comes"}
        return "; ".join(f"{row.seed} {said.get(row.state, _not_run)(row)}" for row in lacking)

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
        pairs = [
            (read_held_out(row.target), read_held_out(row.baseline))
            for row in self.done
            if row.baseline != row.target and is_complete(row.baseline)
        ]
        pairs = [(ours, theirs) for ours, theirs in pairs if ours.nll and ours.nll.keys() == theirs.nll.keys()]
        return difference_over_seeds(pairs) if pairs else None

    def difference_cell(self) -> Cell:
        """The difference to NTP with its 95% interval, or why there is none."""
        if self.unfinished() or not self.losses:
            return Cell()
        if self.is_ntp:
            return Cell("is NTP")
        found = self.difference
        if found is not None:
            lacking = [row.command for row in self.done if not is_complete(row.baseline)]
            cell = difference_figure(found)
            if lacking:
                note = f"over {len(found.of_seeds)} of {len(self.done)} seeds; NTP not run: "
                cell = replace(cell, note=note + "; ".join(map(ntp_command, lacking)))
            return cell
        if any(is_complete(row.baseline) for row in self.done):
            return Cell("none", note="the NTP run at the same settings holds out other examples")
        commands = "; ".join(ntp_command(row.command) for row in self.done)
        return Cell("NTP not run", note=f"NTP not run: {commands}")


def seedless(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's content depends on but its seed; that of random halves follows it unless told otherwise."""
    kept = {key: value for key, value in fields.items() if key != "seed"}
    split = fields.get("split")
    if isinstance(split, dict) and split.get("seed") == fields.get("seed"):
        kept["split"] = {key: value for key, value in split.items() if key != "seed"}
    return kept


def read_record(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a run.

    Raises:
        InputError: If the file is missing or damaged, or is not an object.
    """
    try:
        content = read_json(file)
    except OSError as error:
        raise damaged(file, f"cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise damaged(file, "is damaged, expected a JSON object")
    return content


def groups_of(sweeps: Sequence[Sweep]) -> list[Group]:
    """The rows of some sweeps, those that differ in their seed alone together, each run once."""
    together: dict[tuple[Any, ...], tuple[tuple[str, ...], tuple[str, ...], dict[Path, SweepRow]]] = {}
    for sweep in sweeps:
        for row in sweep.rows:
            key = tuple(map(same_as, row.seedless))
            _, _, rows = together.setdefault(key, (row.seedless, sweep.common, {}))
            known = rows.get(row.target)
            if known is None or row.state != "waiting":  # of several sweeps the last that has tried it
                rows[row.target] = row
    return [Group(own, common, tuple(rows.values())) for own, common, rows in together.values()]


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


def difference_figure(found: Difference) -> Cell:
    """A difference with its interval and, of several seeds, its standard deviation over them."""
    mean, sd = mean_and_sd(found.of_seeds)
    text = f"{mean:+.4f}"
    if not math.isnan(found.low):
        text += f" [{found.low:+.4f}, {found.high:+.4f}]"
    if sd is not None:
        text += f", sd {sd:.4f}"
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    return Cell(text, value=mean, sd=sd, n=len(found.of_seeds), low=low, high=high)


def _not_run(row: SweepRow) -> str:
    return f"not run: {row.command}"


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

    return shlex.join([*(part for part in shlex.split(command) if stays(part)), "recipe=ntp"])
