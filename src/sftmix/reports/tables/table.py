"""A table of the paper, or of an ablation beyond it, with the runs of sweeps beside it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftmix.errors import ConfigError
from sftmix.provenance.runs import read_config
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.reports.diff import MISSING, look_up
from sftmix.reports.page import ReportPage
from sftmix.reports.tables.blocks import Line, blocks_of
from sftmix.reports.tables.differences import CORRECTED
from sftmix.reports.tables.groups import INTERVAL, Group, groups_of
from sftmix.reports.tables.paper import PaperTable, read_paper
from sftmix.sweep.store import StoredSweep, has_all, is_inert, same_as
from sftmix.terminal import counted


def table(
    name: str,
    sweeps: Sequence[StoredSweep],
    *,
    given: Sequence[str] = (),
    ablations: Sequence[str] = (),
    unreadable: Sequence[str] = (),
    composed_by: Sequence[str] = (),
) -> list[ReportPage]:
    """Return a table of the paper, or of an ablation beyond it, from the runs of its sweeps: a page per setting.

    Args:
        sweeps: All sweeps. Sweeps with another name are ignored.
        given: Settings of train.py. Sweeps with other settings are left out.
        ablations: Names of further ablations, which the paper has no table of.
        unreadable: Lines about sweeps and runs that are left out.
        composed_by: Arguments that say where configs are read, for the commands of missing runs.

    Raises:
        ConfigError: If there is no such table.
        InputError: If a file of a run cannot be read.
    """
    tables = read_paper().tables
    known = dict.fromkeys((*tables, *ablations))
    named = [sweep for sweep in sweeps if sweep.name == name]
    if name not in known and not named:
        raise ConfigError(f"table={name}: no such table, expected one of {', '.join(known)}")
    required = [override for override in given if not is_inert(override)]
    published = tables.get(name)
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
    return pages


def _page(
    name: str,
    published: PaperTable | None,
    sweeps: Sequence[StoredSweep],
    common: Sequence[str],
    composed_by: Sequence[str],
) -> ReportPage:
    groups = groups_of(sweeps)
    command = ["python", train_script(), *composed_by, f"ablation={name}"]
    lines = list(_lines(published, groups, command, common))
    title = " ".join([name, *(sweeps[0].settings if sweeps else ())])
    page = ReportPage(title, list(_head(name, published, sweeps, groups)), [])
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
        makes = None
        if when is not None:  # overrides of a row replace common ones
            own = () if published.is_list else when
            keys = {"ablation", *map(key_of, own)}
            makes = shell_command([*command, *(o for o in common if key_of(o) not in keys), *own])
        for number, group in enumerate(same or [None]):
            more = [o for o in (*group.overrides, group.variant) if o and not has_all(when or (), [o])] if group else []
            label = " ".join([row.label, *more]) if len(same) > 1 else row.label
            yield Line(row.group, label, row if number == 0 else None, group, makes)
    for group in groups:
        if group not in taken:
            yield Line("" if published is None else "beside the paper's rows", group.label, None, group)


def _head(
    name: str, published: PaperTable | None, sweeps: Sequence[StoredSweep], groups: Sequence[Group]
) -> Iterator[str]:
    """Yield what the table shows, the settings of our runs, and in which settings our runs differ from the paper's."""
    if published is None:
        yield f"Ablation {name}, beyond the paper: it has no such table"
    else:
        paper = read_paper()
        suites = paper.suites_of(published)
        judged = "; ".join(f"{suite.with_judge}, means of {suite.rounds} rounds" for suite in suites)
        models = ", ".join(paper.models[model] for model in published.model)
        data = ", ".join(paper.data[data] for data in published.data)
        yield f"{published.name_in_paper}, {published.title} ({paper.source}, {paper.version_of(published)})"
        yield f"claim: {published.claim}"
        yield f"paper: {models} on {data}; {judged}; {paper.hardware}"
    if not sweeps:
        yield "ours: not run"
        return
    yield f"ours: {' '.join(sweeps[0].settings) or 'the settings of the ablation'}"
    if published is not None:
        configs = [read_config(run.target) for group in groups for run in group.done]
        if not configs:
            yield "ours: no run is complete yet"
        elif other := "; ".join(_unlike_paper(published, groups, configs)):
            yield f"NOT THE PAPER'S: {other}"
        else:
            yield "ours: the paper's model, data and settings, as far as they are compared"


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
    """Yield what a reader must know about the values."""
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
