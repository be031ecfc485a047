"""The runs of a sweep in the order of their held-out loss."""

from dataclasses import replace

from sftmix.analysis.paired import Difference
from sftmix.provenance.runs import read_record
from sftmix.reports.page import Block, Cell, ReportPage
from sftmix.reports.tables.columns import difference_cell, difference_of_losses, mean_cell
from sftmix.reports.tables.groups import INTERVAL, Group, groups_of, verdicts_on, verdicts_to_ntp
from sftmix.sweep.store import StoredSweep, same_as

COLUMNS = ("held-out loss", "minus the best [95%]", "minus NTP [95%]", "seeds", "seconds", "state")


def leaderboard(sweep: StoredSweep) -> ReportPage:
    """Return a table of the runs of a sweep in the order of their held-out loss, missing runs last.

    Raises:
        InputError: If a file of a run cannot be read.
    """
    groups = groups_of([sweep])
    held_out = [group for group in groups if group.losses]
    ranked = sorted(held_out, key=lambda group: group.loss_cell(group.val_ids).value or 0.0)
    block = Block("Held-out loss, nats per response token; lower is better", ("run",), COLUMNS)
    to_ntp = verdicts_to_ntp(ranked)
    behind = {group: _behind(group, ranked[0]) for group in ranked[1:]}
    to_best = verdicts_on({group: found for group, found in behind.items() if isinstance(found, Difference)})
    everywhere = set.intersection(*({same_as(o) for o in group.overrides} for group in groups)) if groups else set()
    for group in [*ranked, *(group for group in groups if not group.losses)]:
        loss = Cell("nothing held out") if group.done else Cell()
        above = minus_ntp = Cell()
        if group.losses:
            loss = replace(group.loss_cell(group.val_ids), is_best=group is ranked[0])
            found, verdict = behind.get(group, "best"), to_best.get(group)
            above = Cell(found) if isinstance(found, str) else difference_cell(found, verdict=verdict, show_sd=True)
            minus_ntp = group.difference_cell(to_ntp.get(group))
        label = " ".join(o for o in group.overrides if same_as(o) not in everywhere) or "the run"
        seeds = Cell(f"{len(group.done)} of {len(group.runs)}", value=len(group.done))
        missing = group.missing()
        state = group.unfinished() or Cell("done" if missing is None else "incomplete", note=missing)
        block.rows.append((Cell(label), loss, above, minus_ntp, seeds, _seconds(group), state))
    head = [
        f"{sweep.folder.name}: {sum(len(group.done) for group in groups)} of "
        f"{sum(len(group.runs) for group in groups)} runs done",
        f"command: {sweep.command}",
        f"common: {' '.join(sweep.common) or 'nothing but the defaults'}",
    ]
    notes = [f"differences are paired over held-out examples, seed by seed; {INTERVAL}", *sweep.shared]
    if len({group.val_ids for group in ranked}) > 1:
        notes.append("runs hold out different examples: their losses are listed in one order and are not comparable")
    return ReportPage(sweep.folder.name, head, [block], notes)


def _behind(group: Group, best: Group) -> Difference | str:
    """Return how far the loss of a group is above the best under their common seeds, or why they are not compared."""
    if group.val_ids != best.val_ids:
        return "other examples"
    mine, theirs = ({run.seed: loss for run, loss in zip(g.done, g.losses, strict=True)} for g in (group, best))
    return difference_of_losses([(mine[seed], theirs[seed]) for seed in mine if seed in theirs]) or "other seeds"


def _seconds(group: Group) -> Cell:
    seconds = [read_record(run.target / "metrics.json").get("seconds") for run in group.done]
    known = [float(value) for value in seconds if isinstance(value, int | float)]
    return mean_cell(known, decimals=1) if known else Cell()
