"""The published tables, suites and settings of the paper, read from `paper.yaml`."""

from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Suite:
    """An evaluation suite of the paper."""

    name: str
    title: str
    judge: str | None  # Name of the judge, or None if answers are right or wrong
    judges: tuple[str, ...]  # Names in evaluation files that mean this judge; * matches anything
    benchmarks: tuple[str, ...]  # Names of the question sets
    rounds: int  # Number of rounds whose mean the paper prints
    decimals: int  # Number of decimals that the paper prints
    columns: tuple[str, ...]

    @property
    def with_judge(self) -> str:
        """The title, and by whom answers are judged."""
        return self.title if self.judge is None else f"{self.title} by {self.judge}"

    def has_judge(self, name: str | None) -> bool:
        """Return whether a name means the paper's judge."""
        if self.judge is None or name is None:
            return name is self.judge
        return any(fnmatch(name.lower(), pattern) for pattern in self.judges)


@dataclass(frozen=True)
class PaperRow:
    """A row of a table."""

    label: str  # The paper's name of the row
    when: tuple[str, ...] | None  # Overrides of our runs of this row; None if the row is not run here
    values: tuple[float | None, ...]  # Values in the order of the columns; None for a gap in our copy of the table
    group: str = ""  # Rows of the same group are compared with each other; empty if all rows are


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper."""

    name: str  # Name of the ablation that runs the table
    number: int | None  # None if it is unknown
    title: str
    claim: str  # What the paper concludes
    model: tuple[str, ...]  # The paper's choices of `model`
    data: tuple[str, ...]  # The paper's choices of `data`
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    control: str | None = None  # Label of the row that other rows of its group are compared with; None: only NTP
    is_list: bool = False  # The ablation lists its runs. The command of one listed run is not shorter than that of all

    version: str | None = None  # Version of the paper that the values are from; None: `Paper.version`

    @property
    def name_in_paper(self) -> str:
        """What the paper calls the table."""
        return f"Table {self.number or '?'}"

    def __post_init__(self) -> None:
        if any(len(row.values) != len(self.columns) for row in self.rows):
            raise ValueError(f"paper.yaml: a row of table {self.name} has more or fewer values than columns")


@dataclass(frozen=True)
class Paper:
    """The paper's tables and settings."""

    source: str  # Where the paper is published
    version: str  # Version of the paper that the values are from, unless a table names another one
    hardware: str
    suites: dict[str, Suite]
    models: dict[str, str]  # The paper's names of the choices of `model`
    data: dict[str, str]  # The paper's names of the choices of `data`
    settings: dict[str, float]  # Values by the dotted key of the config
    val_fraction: float  # Fraction of held-out examples
    epochs: dict[str, int]  # Epochs by the choice of `data`
    tables: dict[str, PaperTable]  # Tables by the name of the ablation

    def version_of(self, table: PaperTable) -> str:
        """Return which version of the paper the values of a table are from."""
        return table.version or self.version

    def suite_of(self, column: str) -> Suite:
        """Return the suite that has a column."""
        return next(suite for suite in self.suites.values() if column in suite.columns)

    def suites_of(self, table: PaperTable) -> list[Suite]:
        """Return the suites that have the columns of a table."""
        return list(dict.fromkeys(map(self.suite_of, table.columns)))


@cache
def read_paper() -> Paper:
    """Return the content of `paper.yaml`."""
    text = resources.files("sftmix.reports.tables").joinpath("paper.yaml").read_text(encoding="utf-8")
    content = _with_tuples(yaml.safe_load(text))
    suites = {name: Suite(name, **entry) for name, entry in content.pop("suites").items()}
    tables = {
        name: PaperTable(name, **{**entry, "rows": tuple(PaperRow(**row) for row in entry["rows"])})
        for name, entry in content.pop("tables").items()
    }
    return Paper(suites=suites, tables=tables, **content)


def _with_tuples(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_tuples(value) for key, value in content.items()}
    return tuple(map(_with_tuples, content)) if isinstance(content, list) else content
