"""What stands above a table: what the paper did, what ours is, and where it is not the same."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftmix.quoting import key_of
from sftmix.reports.dict_paths import MISSING, look_up
from sftmix.reports.tables.groups import Group
from sftmix.reports.tables.paper import Paper, PaperTable, Suite
from sftmix.sweep.store import Sweep


def papers_words(name: str, paper: Paper, published: PaperTable | None) -> list[str]:
    """What the paper did."""
    if published is None:
        return [f"Ablation {name}, beyond the paper: it has no such table"]
    suites = dict.fromkeys(paper.suite_of(column) for column in published.columns)
    judged = "; ".join(_suite_in_words(paper.suites[suite]) for suite in suites)
    models = ", ".join(paper.models[model] for model in published.model)
    data = ", ".join(paper.data[data] for data in published.data)
    return [
        f"Table {published.number}, {published.title} ({paper.source}, {paper.version})",
        f"claim: {published.claim}",
        f"paper: {models} on {data}; {judged}; {paper.hardware}",
    ]


def _suite_in_words(suite: Suite) -> str:
    judge = "" if suite.judge is None else f" by {suite.judge}"
    return f"{suite.title}{judge}, means of {suite.rounds} rounds"


def our_words(
    paper: Paper, published: PaperTable | None, sweeps: Sequence[Sweep], groups: Sequence[Group]
) -> list[str]:
    """What ours is, and where it is not what the paper did."""
    if not sweeps:
        return ["ours: not run"]
    lines = [f"ours: {' '.join(sweeps[0].settings) or 'the settings of the ablation'}"]
    if published is None:
        return lines
    configs = [config for group in groups for config in group.configs]
    if not configs:
        return [*lines, "ours: no run is complete yet"]
    other = list(_differences(paper, published, groups, configs))
    if not other:
        return [*lines, "ours: the paper's model, data and settings, as far as they are compared"]
    return [*lines, f"NOT THE PAPER'S: {'; '.join(other)}"]


def _differences(
    paper: Paper, published: PaperTable, groups: Sequence[Group], configs: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for key, choices, words in (("model", published.model, paper.models), ("data", published.data, paper.data)):
        found = {str(look_up(config, f"{key}.name")) for config in configs}
        if found - set(choices):
            yield f"{key} {', '.join(sorted(found))} (paper: {', '.join(words[choice] for choice in choices)})"
    varied = {key_of(override) for group in groups for override in group.overrides}
    wanted: dict[str, Any] = {**paper.settings, "data.val_fraction": paper.val_fraction, "data.limit": None}
    for key, value in wanted.items():
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
