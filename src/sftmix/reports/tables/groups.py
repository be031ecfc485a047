"""Groups of runs that differ only in their seed, with the metrics of the runs."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sftmix.analysis.paired import Difference
from sftmix.analysis.scored_examples import read_scored_examples
from sftmix.analysis.verdict import ComparisonVerdict, corrected_verdicts
from sftmix.artifacts.manifest import MANIFEST
from sftmix.errors import InputError
from sftmix.evaluation.offline.scores import by_confidence
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.provenance.runs import ExampleLosses, read_config, read_held_out, read_record, read_subsets
from sftmix.quoting import key_of, shell_command
from sftmix.reports.diff import differing, leaves_of
from sftmix.reports.page import Cell
from sftmix.reports.tables.columns import difference_cell, difference_of_losses, mean_cell
from sftmix.sweep.store import StoredSweep, SweepRun, is_inert, same_as

REASONS = ("failed", "running", "damaged", "unfinished", "not run")  # If runs differ, a group shows the first of these
ALL = "all"
SUBSETS = (ALL, "confident", "unconfident")
INTERVAL = "intervals are over seeds and examples; with one seed they are over examples and do not cover other seeds"


@dataclass(eq=False)
class Group:
    """The runs of one setting under several seeds."""

    overrides: tuple[str, ...]  # Overrides that distinguish the group from other groups
    common: tuple[str, ...]  # Overrides that all runs of the sweep have
    runs: list[SweepRun] = field(default_factory=list)
    variant: str = ""  # What distinguishes the runs from the first group with the same overrides

    @property
    def label(self) -> str:
        """The name of the group where the paper has none."""
        return " ".join(filter(None, (*self.overrides, self.variant))) or "the run"

    @cached_property
    def done(self) -> list[SweepRun]:
        return [run for run in self.runs if run.is_done]

    @cached_property
    def losses(self) -> list[ExampleLosses]:
        """Held-out losses of the complete runs that hold something out."""
        losses = [read_held_out(run.target) for run in self.done]
        return [loss for loss in losses if loss.nll]

    @cached_property
    def val_ids(self) -> tuple[str, ...]:
        """The held-out examples in the order of their ids, the same under every seed.

        Raises:
            InputError: If the runs hold out different examples.
        """
        found = {tuple(sorted(loss.nll)) for loss in self.losses}
        if len(found) > 1:
            raise InputError(f"{self.done[0].target}: its seeds hold out different examples, expected the same")
        return next(iter(found), ())

    @cached_property
    def evaluations(self) -> list[tuple[str, Evaluation]]:
        """The results of suites, with the name of the run."""
        return [(run.target.name, found) for run in self.done for found in read_evaluations(run.target)]

    @cached_property
    def subset_of(self) -> dict[str, str]:
        """The subset of each held-out example, if the runs are split by confidence."""
        return subsets_by_confidence(self.done[0].target) if self.done else {}

    @property
    def is_ntp(self) -> bool:
        return all(run.target == run.baseline for run in self.runs)

    def unfinished(self) -> Cell | None:
        """Return the cell that says why there is no complete run, or None if there is one."""
        if self.done:
            return None
        found = list(map(_why_missing, self.runs))
        word = min((word for word, _ in found), key=REASONS.index)
        return Cell(word, note=None if word == "running" else "; ".join(why for other, why in found if other == word))

    def missing(self) -> str | None:
        """Return why some seeds have no complete run while other seeds have one, or None."""
        lacking = [f"{run.seed} {_why_missing(run)[1]}" for run in self.runs if not run.is_done]
        return "; ".join(lacking) if self.done and lacking else None

    def loss_cell(self, ids: Sequence[str], form: Callable[[float], float] = lambda loss: loss) -> Cell:
        """Return the mean over seeds of `form` of the loss over some examples in nats per token."""
        if unfinished := self.unfinished():
            return unfinished
        if not self.losses:
            return Cell("nothing held out")
        return mean_cell([form(loss.over(ids)) for loss in self.losses], decimals=4) if ids else Cell()

    @cached_property
    def difference(self) -> Difference | None:
        """The paired difference to the NTP runs at the same settings, or None if no seed has both."""
        pairs = [(read_held_out(run.target), read_held_out(run.baseline)) for run in self.done if run.has_baseline]
        return difference_of_losses([(a, b) for a, b in pairs if a.nll and a.nll.keys() == b.nll.keys()])

    def difference_cell(self, verdict: ComparisonVerdict | None) -> Cell:
        """Return the difference to NTP with its 95% interval and verdict, or why there is none."""
        if self.unfinished() or not self.losses:
            return Cell()
        if self.is_ntp:
            return Cell("is NTP")
        lacking = [ntp_command(run.command) for run in self.done if not run.has_baseline]
        not_run = f"NTP not run: {'; '.join(lacking)}"
        found = self.difference
        if found is not None:
            cell = difference_cell(found, verdict=verdict, show_sd=True)
            note = f"over {len(found.of_seeds)} of {len(self.done)} seeds; {not_run}" if lacking else None
            return replace(cell, note="; ".join(filter(None, (cell.note, note))) or None)
        if len(lacking) < len(self.done):
            return Cell("none", note="the NTP run at the same settings holds out other examples")
        return Cell("NTP not run", note=not_run)

    def takes(self, run: SweepRun) -> bool:
        """Return whether a run is the same as the runs collected so far, or the same under another seed."""
        done = [other for other in self.runs if other.is_done]
        if not done or not run.is_done or run.target in {other.target for other in self.runs}:
            return True
        return run.seed not in {other.seed for other in done} and _are_alike(done[0].target, run.target)


def verdicts_on(found: Mapping[Group, Difference]) -> dict[Group, ComparisonVerdict]:
    """Return the verdict on each difference of held-out losses, with Holm's correction over all of them."""
    return dict(zip(found, corrected_verdicts([(one, True) for one in found.values()]), strict=True))


def verdicts_to_ntp(groups: Sequence[Group]) -> dict[Group, ComparisonVerdict]:
    """Return the verdict on the difference of each group to NTP, if there is a difference."""
    found = {group: group.difference for group in groups if not group.is_ntp and group.losses}
    return verdicts_on({group: difference for group, difference in found.items() if difference is not None})


def seedless(fields: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return the fields of a run without its seed and without everything that follows the seed.

    The seed of the split follows the seed if both are equal, and so does `data.select.block`. In the latter case the
    run has a reference for its own examples, so the settings of the reference are returned instead of its fingerprint.

    Args:
        run: Folder of the run, whose config has the settings of the reference.

    Raises:
        InputError: If the config cannot be read.
    """
    seed = fields.get("seed")
    kept = {key: value for key, value in fields.items() if key != "seed"}
    split, data = fields.get("split"), fields.get("data") or {}
    if isinstance(split, dict) and split.get("seed") == seed:
        kept["split"] = {key: value for key, value in split.items() if key != "seed"}
    select = data.get("select")
    if isinstance(select, dict) and select.get("by") == "random" and select.get("block", 0) == seed:
        kept["data"] = {**data, "select": {**select, "block": "seed"}}
        if isinstance(fields.get("confidence"), str):
            config = read_config(run)
            kept["confidence"] = {key: config.get(key) for key in ("reference", "confidence")}
    return kept


def groups_of(sweeps: Sequence[StoredSweep]) -> list[Group]:
    """Return the runs of some sweeps in groups that differ only in the seed. Each run is in one group.

    Runs with the same overrides that differ in more than the seed, such as another data file under the same name or a
    changed default, are in separate groups.
    """
    together: dict[tuple[Any, ...], list[Group]] = {}
    for sweep in sweeps:
        for run in sweep.runs:
            variants = together.setdefault(tuple(map(same_as, run.seedless)), [])
            group = next((variant for variant in variants if variant.takes(run)), None)
            if group is None:
                variants.append(group := Group(run.seedless, sweep.common))
            targets = [known.target for known in group.runs]
            if run.target not in targets:
                group.runs.append(run)
            elif run.state != "waiting":  # of several sweeps, the last one that has started the run
                group.runs[targets.index(run.target)] = run
    for first, *others in together.values():
        for other in others:
            other.variant = _difference_in_words(other.done[0].target, first.done[0].target)
    return [group for variants in together.values() for group in variants]


def _difference_in_words(run: Path, other: Path) -> str:
    """Return the settings of a run that differ from another run with the same overrides, or the name of the run."""
    here, there = read_config(run), read_config(other)
    keys = [key for key in differing(here, there) if not is_inert(f"{key}=") and key != "split.seed"]
    return " ".join(f"{key}={leaves_of(here).get(key)}" for key in keys) or run.name


def _are_alike(one: Path, other: Path) -> bool:
    """Return whether two runs differ only in the seed, or in the confidence of references with the run's own seed."""
    left, right = (seedless(read_record(run / MANIFEST).get("fields", {}), run) for run in (one, other))
    if left == right:
        return True
    if {**left, "confidence": None} != {**right, "confidence": None}:
        return False
    configs = [read_config(run) for run in (one, other)]
    return all((config.get("reference") or {}).get("seed") == config.get("seed") for config in configs)


def subsets_for(groups: Sequence[Group]) -> dict[Group, tuple[dict[str, Sequence[str]], Group | None]]:
    """Return the examples of each subset of a group, and the group whose split defines them if it is another group."""
    found, others = {}, [group for group in groups if group.subset_of]
    for group in groups:
        owner = group if group.subset_of else next((g for g in others if g.val_ids == group.val_ids), None)
        subset_of = owner.subset_of if owner is not None and group.val_ids else {}
        subsets = {name: [i for i in group.val_ids if subset_of.get(i) == name] for name in SUBSETS[1:]}
        found[group] = {ALL: group.val_ids, **subsets}, owner if owner is not group and subset_of else None
    return found


def subsets_of_scores(folder: Path, root: Path) -> dict[str, str]:
    """Return the subset of each held-out example of a run or of a folder of scores.

    A run has its own split. The held-out examples of a folder of scores are split at their median confidence.

    Raises:
        InputError: If the folder has no scores.
    """
    if split := subsets_by_confidence(folder) if (folder / "split.parquet").is_file() else {}:
        return split
    examples = read_scored_examples(folder, root)
    held_out = {
        i: value
        for i, value, part in zip(examples.ids, examples.confidence.tolist(), examples.part, strict=True)
        if part == "val"
    }
    ranked = by_confidence(held_out, SUBSETS[1:])
    return {i: subset for subset, ids in ranked.items() for i in ids}


def subsets_by_confidence(run: Path) -> dict[str, str]:
    """Return the subset of each held-out example of a run, or an empty dict if the run is not split by confidence."""
    by = (read_config(run).get("split") or {}).get("by", "confidence")
    return read_subsets(run) if by == "confidence" else {}


def _why_missing(run: SweepRun) -> tuple[str, str]:
    """Return why a run is not complete: a word of `REASONS`, and the same with the cause or the command."""
    if run.damage is not None:
        return "damaged", f"damaged: {run.damage}"
    if run.state == "failed":
        log = f" (log: {run.log})" if run.log else ""
        return "failed", f"failed: {run.cause or 'no cause was written'}{log}; again: {run.command}"
    if run.state == "running":
        return "running", "running, or waiting for its turn"
    if run.is_unfinished:
        return "unfinished", f"unfinished, continue: {run.command}"
    return "not run", f"not run: {run.command}"


OF_RECIPE = re.compile(
    r"recipe|(recipe\.mixup|recipe\.ntp|recipe\.neftune_alpha|confidence|split|reference\.model)(\..*)?|.*@reference\.model"
)


def ntp_command(command: str) -> str:
    """Return the command of the NTP run at the settings of another run, without its recipe and reference."""
    kept = [argument for argument in shlex.split(command) if not OF_RECIPE.fullmatch(key_of(argument))]
    return shell_command([*kept, "recipe=ntp"])
