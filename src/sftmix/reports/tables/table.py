"""A table of the paper with the runs of a sweep beside it: theirs and ours, row by row."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from sftmix.errors import ConfigError
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.reports.tables.differences import CORRECTED, HELD_OUT, Contrast, differences, minus_group, minus_ntp
from sftmix.reports.tables.groups import ALL, INTERVAL, PARTS, Group, corrected_to_ntp, groups_of, halves_for
from sftmix.reports.tables.heading import our_words, papers_words
from sftmix.reports.tables.offline_metrics import without_judge
from sftmix.reports.tables.paper import Paper, PaperRow, PaperTable, read_paper
from sftmix.reports.tables.scores import Variant, score_cell, unlike_rows, variants_of
from sftmix.sweep.store import Sweep, has_all, is_inert, same_as
from sftmix.terminal import counted

UNKNOWN = "unknown in our copy of the table"
APPENDED = "beside the paper's rows"


def table(
    name: str,
    sweeps: Sequence[Sweep],
    form: str = "text",
    *,
    given: Sequence[str] = (),
    ablations: Sequence[str] = (),
    unreadable: Sequence[str] = (),
    composed_by: Sequence[str] = (),
    styled: bool = False,
) -> str:
    """A table of the paper, or of an ablation beyond it, from the runs that its sweeps left.

    Args:
        name: of the ablation.
        sweeps: all there are; those of this name count.
        form: text, markdown, latex or csv.
        given: settings of train.py: sweeps that do not have them are left out.
        ablations: names of those that are no table of the paper.
        unreadable: what is said of sweeps that could not be read.
        composed_by: arguments that say where configurations are read, for the commands of what was not run.
        styled: bold by the terminal's own means.

    Raises:
        ConfigError: there is no such table or form.
        InputError: a file of a run cannot be read.
    """
    paper = read_paper()
    known = [*paper.tables, *(other for other in ablations if other not in paper.tables)]
    named = [sweep for sweep in sweeps if sweep.name == name]
    if name not in known and not named:
        raise ConfigError(f"table={name}: no such table, expected one of {', '.join(known)}")
    wanted = [override for override in given if not is_inert(override)]
    chosen = [sweep for sweep in named if has_all(sweep.common, wanted)]
    published = paper.tables.get(name)
    together: dict[Any, list[Sweep]] = {}
    for sweep in chosen:
        together.setdefault(sweep.page or tuple(map(same_as, sweep.settings)), []).append(sweep)
    pages = [
        _page(name, paper, published, same, same[0].common, same[0].composed_by or composed_by)
        for same in together.values()
    ]
    names = [page.name for page in pages]
    for page, same in zip(pages, together.values(), strict=True):
        if names.count(page.name) > 1:  # the same settings, but other content under the same path
            run = next((row.target.name for sweep in same for row in sweep.rows if row.is_done), None)
            page.name = " ".join(filter(None, (page.name, run)))
            page.head.append(
                "other runs have the same settings but other content of the data or the model, on their own page"
            )
    if not pages:
        pages = [_page(name, paper, published, [], given, composed_by)]
        others = sorted({" ".join(sweep.settings) or "its own settings" for sweep in named})
        if others:
            pages[0].notes.append(
                f"no sweep of {name} has {' '.join(wanted)}; there are those with {'; '.join(others)}"
            )
    pages[-1].notes += [f"left out: {line}" for line in unreadable]
    return write_pages(pages, form, styled=styled)


@dataclass(frozen=True)
class _Line:
    """A row of the paper with the group of ours that is the same, either of them None where there is none."""

    group: str
    label: str
    paper: PaperRow | None
    ours: Group | None
    command: str | None = None


def _page(
    name: str,
    paper: Paper,
    published: PaperTable | None,
    sweeps: Sequence[Sweep],
    common: Sequence[str],
    composed_by: Sequence[str],
) -> Page:
    groups = groups_of(sweeps)
    command = ["python", train_script(), *composed_by, f"ablation={name}"]
    lines = list(_lines(published, groups, _fill(command, published, common)))
    title = " ".join([name, *(sweeps[0].settings if sweeps else ())])
    page = Page(title, [*papers_words(name, paper, published), *our_words(paper, published, sweeps, groups)], [])
    if published is None and not groups:
        page.notes.append(f"not run: {shell_command([*command, *common])}")
        return page
    columns = published.columns if published is not None else _columns(paper, groups)
    if columns:
        page.blocks.append(_scores(paper, columns, lines, page.notes))
    page.blocks += [*_held_out(lines, page.notes), *_without_judge(lines)]
    compared = _differences(paper, published, columns, lines)
    page.blocks += compared
    page.notes += _remarks(groups)
    if compared:
        page.notes += [*([] if any(INTERVAL in note for note in page.notes) else [INTERVAL]), CORRECTED]
    return page


def _lines(published: PaperTable | None, groups: Sequence[Group], fill: Mapping[str, str]) -> Iterator[_Line]:
    """The paper's rows in order, each with ours; then those of ours that are none of the paper's."""
    taken: list[Group] = []
    for row in published.rows if published is not None else ():
        when = row.when
        same = [] if when is None else [g for g in groups if has_all((*g.common, *g.overrides), when)]
        taken += same
        command = None if when is None else fill[row.group + row.label]
        for number, group in enumerate(same or [None]):
            more = [o for o in (*group.overrides, group.variant) if o and not has_all(when or (), [o])] if group else []
            label = " ".join([row.label, *more]) if len(same) > 1 else row.label
            yield _Line(row.group, label, row if number == 0 else None, group, command)
    for group in groups:
        if group not in taken:
            yield _Line(APPENDED if published is not None else "", group.label, None, group)


def _fill(command: Sequence[str], published: PaperTable | None, common: Sequence[str]) -> dict[str, str]:
    """The command that fills a row of the paper, by its group and label."""
    commands: dict[str, str] = {}
    if published is None:
        return commands
    for row in published.rows:
        own = [] if published.is_list else list(row.when or ())
        keys = {key_of(override) for override in own}
        rest = [override for override in common if key_of(override) not in keys | {"ablation"}]
        commands[row.group + row.label] = shell_command([*command, *rest, *own])
    return commands


def _columns(paper: Paper, groups: Sequence[Group]) -> tuple[str, ...]:
    """The columns of the suites that any run was evaluated by."""
    found = {evaluation.suite for group in groups for _, evaluation in group.evaluations}
    return tuple(column for name, suite in paper.suites.items() if name in found for column in suite.columns)


def _scores(paper: Paper, columns: Sequence[str], lines: Sequence[_Line], notes: list[str]) -> Block:
    """The paper's columns: what it published, and what suites found of ours, a line for each judge."""
    variants = _variants(paper, lines)
    depth = max([1, *(len(variants[paper.suite_of(column)]) for column in columns)])
    block = Block("Scores, mean ± sd (seeds x rounds)", ("", "row", "whose"), tuple(columns))
    owners: list[tuple[str, int] | None] = []  # of each row: None where it is the paper's
    for line in lines:
        labels = (Cell(line.group), Cell(line.label))
        if line.paper is not None:
            owners.append(None)
            values = zip(columns, line.paper.values, strict=True)
            block.rows.append((*labels, Cell("paper"), *(_published(paper, c, value) for c, value in values)))
        if line.ours is None and line.command is None:
            continue
        for k in range(depth):
            cells = (score_cell(paper, variants, column, line.ours, line.command, k) for column in columns)
            block.rows.append((*labels, _whose(line), *cells))
            owners.append((line.group, k))
    comparable = dict.fromkeys(columns, [True] * len(owners))
    unlike: dict[tuple[str, str], list[str]] = {}
    for column, owner in product(columns, dict.fromkeys(filter(None, owners))):
        groups = [line.ours for line in lines if line.ours is not None and line.group == owner[0]]
        if said := unlike_rows(paper, variants, column, groups, owner[1]):
            comparable[column] = [is_so and owner != o for is_so, o in zip(comparable[column], owners, strict=True)]
            unlike.setdefault((owner[0], said), []).append(column)
    notes += [
        f"{', '.join([*filter(None, [group]), *names])}: no best, {said}" for (group, said), names in unlike.items()
    ]
    return _trimmed(_with_best(block, comparable, highest=True))


def _variants(paper: Paper, lines: Sequence[_Line]) -> dict[str, list[Variant]]:
    groups = [line.ours for line in lines if line.ours is not None]
    return {name: variants_of(suite, name, groups) for name, suite in paper.suites.items()}


def _differences(
    paper: Paper, published: PaperTable | None, columns: Sequence[str], lines: Sequence[_Line]
) -> list[Block]:
    """The scores minus those of NTP, and figures minus those of the row that the paper compares a row with."""
    rows = [(line, (Cell(line.group), Cell(line.label)), line.ours) for line in lines if line.ours is not None]
    variants = _variants(paper, lines)
    contrasts = [Contrast(labels, minus_ntp(group)) for _, labels, group in rows]
    found = [differences("Scores minus NTP", contrasts, paper, columns, variants)]
    if published is not None and published.control is not None:
        controls = {line.group: group for line, _, group in rows if line.label == published.control}
        contrasts = [
            Contrast(labels, minus_group(group, controls[line.group]))
            for line, labels, group in rows
            if line.group in controls and line.label != published.control
        ]
        title = f"Minus {published.control} on the same examples"
        found.append(differences(title, contrasts, paper, (HELD_OUT, *columns), variants))
    return [_trimmed(block) for block in found if block is not None]


def _without_judge(lines: Sequence[_Line]) -> list[Block]:
    found = without_judge(((Cell(line.group), Cell(line.label)), line.ours) for line in lines if line.ours is not None)
    return [] if found is None else [_trimmed(found)]


def _whose(line: _Line) -> Cell:
    return Cell("ours", note=line.ours.missing() if line.ours is not None else None)


def _published(paper: Paper, column: str, value: float | None) -> Cell:
    if value is None:
        return Cell("?", note=UNKNOWN)
    return Cell(f"{value:.{paper.suites[paper.suite_of(column)].decimals}f}", value=value)


def _held_out(lines: Sequence[_Line], notes: list[str]) -> list[Block]:
    """Held-out loss with the difference to NTP, and perplexity: overall and for each half."""
    ours = [line for line in lines if line.ours is not None or line.command is not None]
    groups = [line.ours for line in ours if line.ours is not None]
    if not any(group.done for group in groups):
        return []
    parts = {id(group): (members, owner) for group, members, owner in halves_for(groups)}
    labels = ("", "row")
    halves = tuple(f"{part} half" for part in PARTS[1:])
    corrected = corrected_to_ntp(groups)
    loss = Block(
        "Held-out loss, nats per response token", labels, (ALL, *halves, "minus NTP [95%]", "examples", "seeds")
    )
    perplexity = Block("Held-out perplexity", labels, (ALL, *halves))
    for line in ours:
        own = (Cell(line.group), Cell(line.label))
        if line.ours is None:
            said = Cell("not run", note=f"not run: {line.command}")
            loss.rows.append((*own, said, *(Cell() for _ in loss.columns[1:])))
            perplexity.rows.append((*own, said, *(Cell() for _ in perplexity.columns[1:])))
            continue
        group = line.ours
        members, owner = parts[id(group)]
        first = replace(own[1], note=group.missing())
        if owner is not None:
            notes.append(f"the halves of {group.label} are by the split of {owner.label}")
        count = Cell(str(len(group.val_ids)), value=len(group.val_ids)) if group.losses else Cell()
        seeds = Cell(str(len(group.done)), value=len(group.done))
        losses = [group.loss_cell(members[part]) for part in PARTS]
        perplexities = [group.loss_cell(members[part], math.exp) for part in PARTS]
        if not group.done:
            losses[1:], perplexities[1:] = [Cell(), Cell()], [Cell(), Cell()]
        loss.rows.append((own[0], first, *losses, group.difference_cell(corrected), count, seeds))
        perplexity.rows.append((own[0], first, *perplexities))
    columns = (ALL, *halves)
    comparable = {column: _comparable(ours, parts, part) for column, part in zip(columns, PARTS, strict=True)}
    if not all(all(flags) for flags in comparable.values()):
        notes.append("figures over other examples than those they stand with have no best")
    return [_trimmed(_with_best(block, comparable, highest=False)) for block in (loss, perplexity)]


def _comparable(
    lines: Sequence[_Line], parts: Mapping[int, tuple[Mapping[str, list[str]], Group | None]], part: str
) -> list[bool]:
    """Of each line whether all that stand with it have the same held-out examples in a part."""
    by_group: dict[str, set[tuple[str, ...]]] = {}
    for line in lines:
        if line.ours is not None and (ids := parts[id(line.ours)][0][part]):
            by_group.setdefault(line.group, set()).add(tuple(ids))
    return [len(by_group.get(line.group, ())) < 2 for line in lines]


def _with_best(block: Block, comparable: Mapping[str, Sequence[bool]], *, highest: bool) -> Block:
    """The best of each column marked, among rows of one group and one author, where they can be compared."""
    first = len(block.labels)
    rows = [list(row) for row in block.rows]
    for column, flags in comparable.items():
        k = first + block.columns.index(column)
        together: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(rows):
            if row[k].value is not None and (not flags or flags[number]):
                key = (row[0].text, *(cell.text for cell in row[2:first]), row[k].note or "")
                together.setdefault(key, []).append(number)
        for numbers in together.values():
            values = [rows[number][k].value or 0.0 for number in numbers]
            best = max(values) if highest else min(values)
            for number, value in zip(numbers, values, strict=True):
                if len(numbers) > 1 and value == best:
                    rows[number][k] = replace(rows[number][k], is_best=True)
    return replace(block, rows=[tuple(row) for row in rows])


def _trimmed(block: Block) -> Block:
    """Without the column of groups where there is none."""
    if any(row[0].text for row in block.rows):
        return block
    return replace(block, labels=block.labels[1:], rows=[row[1:] for row in block.rows])


def _remarks(groups: Sequence[Group]) -> Iterator[str]:
    """What has to be known to read the figures."""
    if any(group.done for group in groups):
        seeds = max(len(group.done) for group in groups)
        yield (
            "means ± standard deviation over seeds"
            if seeds > 1
            else "figures are of one seed, which says little of others"
        )
    if any(group.evaluations for group in groups):
        yield "scores: a run counts once, as the mean of its rounds; of one seed (1 x n) ± is over its rounds alone"
    compared = [found for group in groups if not group.is_ntp and (found := group.difference) is not None]
    if compared:
        examples = max(found.num_examples for found in compared)
        seeds = max(len(found.of_seeds) for found in compared)
        yield (
            f"minus NTP: paired over {counted(examples, 'held-out example')} and {counted(seeds, 'seed')}; {INTERVAL}"
        )
    for group in groups:
        if group.variant:
            yield f"{group.label}: not averaged with the other runs of this row, they differ in more than the seed"
    for group in groups:
        if group.done:
            yield f"runs of {group.label}: {', '.join(row.target.name for row in group.done)}"
