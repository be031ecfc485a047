"""What the paper published, read from `paper.yaml`: its tables, how it evaluated, its settings."""

from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Suite:
    """How the paper evaluated.

    Attributes:
        title: what people call the suite.
        judge: whose scores they are, or None where answers are simply right or wrong.
        judges: names, as evaluation files have them, that mean this judge; * stands for anything.
        benchmarks: names of the question sets.
        rounds: over which the paper's values are means.
        decimals: that the paper prints.
        columns: of the tables, in order.
    """

    title: str
    judge: str | None
    judges: tuple[str, ...]
    benchmarks: tuple[str, ...]
    rounds: int
    decimals: int
    columns: tuple[str, ...]

    def has_judge(self, name: str | None) -> bool:
        """Whether this is the paper's judge."""
        if self.judge is None or name is None:
            return name is self.judge
        return any(fnmatch(name.lower(), pattern) for pattern in self.judges)


@dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Attributes:
        group: the rows it is compared with; empty where that is all of them.
        label: what the paper calls it.
        when: overrides that the same row of a sweep has; None for what was published and is not run here.
        values: in the order of the columns; None where our copy of the table has a gap.
    """

    group: str
    label: str
    when: tuple[str, ...] | None
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        name: of the ablation that runs it.
        number: of the table.
        title: what it is about.
        claim: what the paper concludes.
        model: choices of `model` that are the paper's.
        data: choices of `data` that are the paper's.
        columns: in order.
        rows: in order.
        control: label of the row that the others of its group are compared with; None where that is NTP alone.
        is_list: the ablation lists its rows: one of them alone has no command that is shorter than all of them.
    """

    name: str
    number: int
    title: str
    claim: str
    model: tuple[str, ...]
    data: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    control: str | None
    is_list: bool


@dataclass(frozen=True)
class Paper:
    """The paper's tables and settings.

    Attributes:
        source: where it is published.
        version: which version the values are of.
        hardware: what it was run on.
        suites: by name.
        models: what the paper calls the choices of `model`.
        data: what the paper calls the choices of `data`.
        settings: values by the dotted name of the configuration.
        val_fraction: what is held out.
        epochs: by the choice of `data`.
        tables: by the name of the ablation.
    """

    source: str
    version: str
    hardware: str
    suites: dict[str, Suite]
    models: dict[str, str]
    data: dict[str, str]
    settings: dict[str, float]
    val_fraction: float
    epochs: dict[str, int]
    tables: dict[str, PaperTable]

    def suite_of(self, column: str) -> str:
        """The name of the suite that has a column."""
        return next(name for name, suite in self.suites.items() if column in suite.columns)


@cache
def read_paper() -> Paper:
    """The paper, as `paper.yaml` has it."""
    content = yaml.safe_load(
        resources.files("sftmix.reports.tables").joinpath("paper.yaml").read_text(encoding="utf-8")
    )
    tables = {name: _table(name, entry) for name, entry in content.pop("tables").items()}
    suites = {name: _suite(entry) for name, entry in content.pop("suites").items()}
    return Paper(suites=suites, tables=tables, **content)


def _suite(entry: dict[str, Any]) -> Suite:
    lists: dict[str, Any] = {key: tuple(entry[key]) for key in ("judges", "benchmarks", "columns")}
    return Suite(**{**entry, **lists})


def _table(name: str, entry: dict[str, Any]) -> PaperTable:
    rows = tuple(
        PaperRow(row.get("group", ""), row["label"], row["when"] and tuple(row["when"]), tuple(row["values"]))
        for row in entry["rows"]
    )
    lists = {key: tuple(entry[key]) for key in ("model", "data", "columns")}
    if any(len(row.values) != len(lists["columns"]) for row in rows):
        raise ValueError(f"paper.yaml: a row of table {name} has more or fewer values than the table has columns")
    return PaperTable(
        name=name,
        number=entry["number"],
        title=entry["title"],
        claim=entry["claim"],
        rows=rows,
        control=entry.get("control"),
        is_list=entry.get("listed", False),
        **lists,
    )
