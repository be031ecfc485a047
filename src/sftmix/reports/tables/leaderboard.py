"""The rows of any sweep in the order of their held-out loss."""

from collections.abc import Sequence
from dataclasses import replace

from sftmix.analysis.paired import Difference
from sftmix.reports.held_out import difference_over_seeds
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.reports.runs import read_record
from sftmix.reports.tables.groups import (
    INTERVAL,
    Corrected,
    Group,
    corrected_to_ntp,
    difference_figure,
    figure,
    groups_of,
)
from sftmix.sweep.store import Sweep, same_as

COLUMNS = ("held-out loss", "minus the best [95%]", "minus NTP [95%]", "seeds", "seconds", "state")


def leaderboard(sweep: Sweep, form: str = "text", *, styled: bool = False) -> str:
    """The rows of a sweep by held-out loss in nats per response token, those that are not there last.

    Args:
        sweep: what it left.
        form: text, markdown, latex or csv.
        styled: bold by the terminal's own means.

    Raises:
        ConfigError: there is no such form.
        InputError: a file of a run cannot be read.
    """
    groups = groups_of([sweep])
    ranked = sorted((group for group in groups if group.losses), key=_loss)
    rest = [group for group in groups if not group.losses]
    block = Block("Held-out loss, nats per response token; lower is better", ("row",), COLUMNS)
    to_ntp = corrected_to_ntp(ranked)
    behind = {id(group): _behind(group, ranked[0]) for group in ranked[1:]}
    to_best = Corrected({key: found for key, found in behind.items() if isinstance(found, Difference)})
    for group in [*ranked, *rest]:
        block.rows.append(_row(group, behind.get(id(group), "best"), to_ntp, to_best, _label(group, groups)))
    done = sum(row.is_done for group in groups for row in group.rows)
    head = [
        f"{sweep.folder.name}: {done} of {sum(len(group.rows) for group in groups)} rows done",
        f"command: {sweep.command}",
        f"common: {' '.join(sweep.common) or 'nothing but the defaults'}",
    ]
    notes = [
        f"differences are paired over held-out examples, seed by seed; {INTERVAL}",
        *sweep.shared,
    ]
    if len({group.val_ids for group in ranked}) > 1:
        notes.append("rows hold out different examples: their losses stand in one order and are not comparable")
    return write_pages([Page(sweep.folder.name, head, [block], notes)], form, styled=styled)


def _loss(group: Group) -> float:
    value = group.loss_cell(sorted(group.val_ids)).value
    assert value is not None
    return value


def _label(group: Group, groups: Sequence[Group]) -> str:
    """The overrides that not all rows have."""
    everywhere = set.intersection(*({same_as(o) for o in other.overrides} for other in groups))
    return " ".join(o for o in group.overrides if same_as(o) not in everywhere) or "the run"


def _row(group: Group, behind: Difference | str, to_ntp: Corrected, to_best: Corrected, label: str) -> tuple[Cell, ...]:
    state = _state(group)
    if not group.losses:
        figures = [Cell("nothing held out") if group.done else Cell(), Cell(), Cell()]
    else:
        loss = replace(group.loss_cell(sorted(group.val_ids)), is_best=behind == "best")
        to_first = Cell(behind) if isinstance(behind, str) else difference_figure(behind, to_best.verdict(group))
        figures = [loss, to_first, group.difference_cell(to_ntp)]
    seconds = _seconds(group)
    seeds = Cell(f"{len(group.done)} of {len(group.rows)}", value=len(group.done))
    return (Cell(label), *figures, seeds, seconds, state)


def _behind(group: Group, best: Group) -> Difference | str:
    """Return how far a row's loss is above the best row's under their common seeds, or why it is not compared."""
    if group.val_ids != best.val_ids:
        return "other examples"
    mine, theirs = ({row.seed: loss for row, loss in zip(g.done, g.losses, strict=True)} for g in (group, best))
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    return difference_over_seeds(pairs) if pairs else "other seeds"


def _seconds(group: Group) -> Cell:
    """Mean time of training."""
    seconds = [read_record(row.target / "metrics.json").get("seconds") for row in group.done]
    known = [float(value) for value in seconds if isinstance(value, int | float)]
    return figure(known, decimals=1) if known else Cell()


def _state(group: Group) -> Cell:
    unfinished = group.unfinished()
    if unfinished is not None:
        return unfinished
    return Cell("done" if group.missing() is None else "in part", note=group.missing())
