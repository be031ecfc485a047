"""A table of the paper, or of an ablation beyond it, with the runs of sweeps beside it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftmix.errors import ConfigError
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.reports.diff import MISSING, look_up
from sftmix.reports.page import Page, write_pages
from sftmix.reports.tables.blocks import Line, blocks_of
from sftmix.reports.tables.differences import CORRECTED
from sftmix.reports.tables.groups import INTERVAL, Group, groups_of
from sftmix.reports.tables.paper import PaperTable, read_paper
from sftmix.sweep.store import StoredSweep, has_all, is_inert, same_as
from sftmix.terminal import counted

APPENDED = "beside the paper's rows"


def table(
    name: str,
    sweeps: Sequence[StoredSweep],
    form: str = "text",
    *,
    given: Sequence[str] = (),
    ablations: Sequence[str] = (),
    unreadable: Sequence[str] = (),
    composed_by: Sequence[str] = (),
    styled: bool = False,
) -> str:
    """Return a table of the paper, or of an ablation beyond it, from the runs of its sweeps.

    Args:
        sweeps: All sweeps; those with the name count.
        form: text, markdown, latex or csv.
        given: Settings of train.py: sweeps with other settings are left out.
        ablations: Names of ablations that are not a table of the paper.
        unreadable: Lines about sweeps and runs that are left out.
        composed_by: Arguments that say where configs are read, for the commands of missing runs.
        styled: Use the terminal's bold.

    Raises:
        ConfigError: If there is no such table or form.
        InputError: If a file of a run cannot be read.
    """
    paper = read_paper()
    known = [*paper.tables, *(other for other in ablations if other not in paper.tables)]
    named = [sweep for sweep in sweeps if sweep.name == name]
    if name not in known and not named:
        raise ConfigError(f"table={name}: no such table, expected one of {', '.join(known)}")
    required = [override for override in given if not is_inert(override)]
    published = paper.tables.get(name)
    together: dict[Any, list[StoredSweep]] = {}
    for sweep in named:
        if has_all(sweep.common, required):
            together.setdefault(sweep.page or tuple(map(same_as, sweep.settings)), []).append(sweep)
    pages = [
        _page(name, published, same, same[0].common, same[0].composed_by or composed_by) for same in together.values()
    ]
    names = [page.name for page in pages]
    for page, same in zip(pages, together.values(), strict=True):
        if names.count(page.name) > 1:  # the same settings, but other content under the same path
            first = next((run.target.name for sweep in same for run in sweep.runs if run.is_done), None)
            page.name = " ".join(filter(None, (page.name, first)))
            page.head.append(
                "other runs have the same settings but other content of the data or the model, on their own page"
            )
    if not pages:
        pages = [_page(name, published, [], given, composed_by)]
        others = sorted({" ".join(sweep.settings) or "its own settings" for sweep in named})
        if others:
            pages[0].notes.append(
                f"no sweep of {name} has {' '.join(required)}; there are sweeps with {'; '.join(others)}"
            )
    pages[-1].notes += [f"left out: {line}" for line in unreadable]
    return write_pages(pages, form, styled=styled)


def _page(
    name: str,
    published: PaperTable | None,
    sweeps: Sequence[StoredSweep],
    common: Sequence[str],
    composed_by: Sequence[str],
) -> Page:
    groups = groups_of(sweeps)
    command = ["python", train_script(), *composed_by, f"ablation={name}"]
    lines = list(_lines(published, groups, command, common))
    title = " ".join([name, *(sweeps[0].settings if sweeps else ())])
    page = Page(title, [*_paper_head(name, published), *_our_head(published, sweeps, groups)], [])
    if published is None and not groups:
        page.notes.append(f"not run: {shell_command([*command, *common])}")
        return page
    page.blocks, compared = blocks_of(published, groups, lines, page.notes)
    page.notes += _remarks(groups)
    if compared:
        page.notes += [*([] if any(INTERVAL in note for note in page.notes) else [INTERVAL]), CORRECTED]
    return page


def _lines(
    published: PaperTable | None, groups: Sequence[Group], command: Sequence[str], common: Sequence[str]
) -> Iterator[Line]:
    """Yield the paper's rows in order, each with our groups of the same settings, then our other groups."""
    taken: list[Group] = []
    for row in published.rows if published is not None else ():
        assert published is not None
        when = row.when
        same = [] if when is None else [g for g in groups if has_all((*g.common, *g.overrides), when)]
        taken += same
        makes = None if when is None else _command(command, () if published.is_list else when, common)
        for number, group in enumerate(same or [None]):
            more = [o for o in (*group.overrides, group.variant) if o and not has_all(when or (), [o])] if group else []
            label = " ".join([row.label, *more]) if len(same) > 1 else row.label
            yield Line(row.group, label, row if number == 0 else None, group, makes)
    for group in groups:
        if group not in taken:
            yield Line(APPENDED if published is not None else "", group.label, None, group)


def _command(command: Sequence[str], own: Sequence[str], common: Sequence[str]) -> str:
    """Return the command with the overrides of a row, which replace common ones."""
    keys = {"ablation", *map(key_of, own)}
    return shell_command([*command, *(override for override in common if key_of(override) not in keys), *own])


def _paper_head(name: str, published: PaperTable | None) -> list[str]:
    if published is None:
        return [f"Ablation {name}, beyond the paper: it has no such table"]
    paper = read_paper()
    suites = dict.fromkeys(map(paper.suite_of, published.columns))
    judged = "; ".join(f"{suite.with_judge}, means of {suite.rounds} rounds" for suite in suites)
    models = ", ".join(paper.models[model] for model in published.model)
    data = ", ".join(paper.data[data] for data in published.data)
    return [
        f"Table {published.number}, {published.title} ({paper.source}, {paper.version})",
        f"claim: {published.claim}",
        f"paper: {models} on {data}; {judged}; {paper.hardware}",
    ]


def _our_head(published: PaperTable | None, sweeps: Sequence[StoredSweep], groups: Sequence[Group]) -> list[str]:
    """Return the settings of our runs, and where they differ from the paper's, as lines."""
    if not sweeps:
        return ["ours: not run"]
    lines = [f"ours: {' '.join(sweeps[0].settings) or 'the settings of the ablation'}"]
    if published is None:
        return lines
    configs = [config for group in groups for config in group.configs]
    if not configs:
        return [*lines, "ours: no run is complete yet"]
    other = list(_unlike_paper(published, groups, configs))
    if not other:
        return [*lines, "ours: the paper's model, data and settings, as far as they are compared"]
    return [*lines, f"NOT THE PAPER'S: {'; '.join(other)}"]


def _unlike_paper(
    published: PaperTable, groups: Sequence[Group], configs: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    paper = read_paper()
    for key, choices, words in (("model", published.model, paper.models), ("data", published.data, paper.data)):
        found = {str(look_up(config, f"{key}.name")) for config in configs}
        if found - set(choices):
            yield f"{key} {', '.join(sorted(found))} (paper: {', '.join(words[choice] for choice in choices)})"
    varied = {key_of(override) for group in groups for override in group.overrides}
    expected: dict[str, Any] = {**paper.settings, "data.val_fraction": paper.val_fraction, "data.limit": None}
    for key, value in expected.items():
        values = {look_up(config, key) for config in configs} - {MISSING}
        if key not in varied and any(v != value and not (v is None and ".mixup." in key) for v in values):
            mine = ", ".join(sorted(_in_words(v) for v in values if v is not None or ".mixup." not in key))
            yield f"{key} {mine} (paper: {_in_words(value)})"
    for data, epochs in paper.epochs.items():
        own = {look_up(config, "data.epochs") for config in configs if look_up(config, "data.name") == data}
        if own - {epochs}:
            yield f"data.epochs {', '.join(map(str, own))} on {data} (paper: {epochs})"


def _in_words(value: Any) -> str:
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _remarks(groups: Sequence[Group]) -> Iterator[str]:
    """Yield what a reader has to know about the values."""
    if any(group.done for group in groups):
        seeds = max(len(group.done) for group in groups)
        one = "values are of one seed, which says little about other seeds"
        yield "means ± standard deviation over seeds" if seeds > 1 else one
    if any(group.evaluations for group in groups):
        yield "scores: a run counts once, as the mean of its rounds; of one seed (1 x n) ± is over its rounds only"
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
            yield f"runs of {group.label}: {', '.join(run.target.name for run in group.done)}"
