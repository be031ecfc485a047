"""The runs of a sweep in the order of their held-out loss."""

from collections.abc import Sequence
from dataclasses import replace

from sftmix.analysis.paired import Difference
from sftmix.analysis.verdict import Verdict
from sftmix.provenance.runs import read_record
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.reports.tables.columns import difference_cell, difference_of_losses, mean_cell
from sftmix.reports.tables.groups import INTERVAL, Group, groups_of, verdicts_on, verdicts_to_ntp
from sftmix.sweep.store import StoredSweep, same_as

COLUMNS = ("held-out loss", "minus the best [95%]", "minus NTP [95%]", "seeds", "seconds", "state")


def leaderboard(sweep: StoredSweep, form: str = "text", *, styled: bool = False) -> str:
    """Return the runs of a sweep by held-out loss in nats per response token, missing runs last.

    Args:
        form: text, markdown, latex or csv.
        styled: Use the terminal's bold.

    Raises:
        ConfigError: If there is no such form.
        InputError: If a file of a run cannot be read.
    """
    groups = groups_of([sweep])
    ranked = sorted((group for group in groups if group.losses), key=_loss)
    rest = [group for group in groups if not group.losses]
    block = Block("Held-out loss, nats per response token; lower is better", ("run",), COLUMNS)
    to_ntp = verdicts_to_ntp(ranked)
    behind = {id(group): _behind(group, ranked[0]) for group in ranked[1:]}
    to_best = verdicts_on({key: found for key, found in behind.items() if isinstance(found, Difference)})
    for group in [*ranked, *rest]:
        key = id(group)
        cells = _loss_cells(group, behind.get(key, "best"), to_best.get(key), to_ntp.get(key))
        seeds = Cell(f"{len(group.done)} of {len(group.runs)}", value=len(group.done))
        block.rows.append((Cell(_label(group, groups)), *cells, seeds, _seconds(group), _state(group)))
    done = sum(run.is_done for group in groups for run in group.runs)
    head = [
        f"{sweep.folder.name}: {done} of {sum(len(group.runs) for group in groups)} runs done",
        f"command: {sweep.command}",
        f"common: {' '.join(sweep.common) or 'nothing but the defaults'}",
    ]
    notes = [f"differences are paired over held-out examples, seed by seed; {INTERVAL}", *sweep.shared]
    if len({group.val_ids for group in ranked}) > 1:
        notes.append("runs hold out different examples: their losses are listed in one order and are not comparable")
    return write_pages([Page(sweep.folder.name, head, [block], notes)], form, styled=styled)


def _loss(group: Group) -> float:
    value = group.loss_cell(sorted(group.val_ids)).value
    assert value is not None
    return value


def _label(group: Group, groups: Sequence[Group]) -> str:
    """Return the overrides that not all groups have."""
    everywhere = set.intersection(*({same_as(o) for o in other.overrides} for other in groups))
    return " ".join(o for o in group.overrides if same_as(o) not in everywhere) or "the run"


def _loss_cells(
    group: Group, behind: Difference | str, to_best: Verdict | None, to_ntp: Verdict | None
) -> tuple[Cell, Cell, Cell]:
    """Return the loss, how far the loss is above the best, and the difference to NTP."""
    if not group.losses:
        return Cell("nothing held out") if group.done else Cell(), Cell(), Cell()
    loss = replace(group.loss_cell(sorted(group.val_ids)), is_best=behind == "best")
    above = Cell(behind) if isinstance(behind, str) else difference_cell(behind, verdict=to_best, show_sd=True)
    return loss, above, group.difference_cell(to_ntp)


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


def _state(group: Group) -> Cell:
    return group.unfinished() or Cell("done" if group.missing() is None else "incomplete", note=group.missing())
