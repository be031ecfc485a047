"""The published tables, suites and settings of the paper, read from `paper.yaml`.

`python -m sftmix.reports.tables.paper conf/ablation` writes claim and values into the files of the ablations (`make
headers`).
"""

import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import resources
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

WIDTH, INDENT = 106, " " * 10  # of comments in the files of ablations


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
    number: int
    title: str
    claim: str  # What the paper concludes
    model: tuple[str, ...]  # The paper's choices of `model`
    data: tuple[str, ...]  # The paper's choices of `data`
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    control: str | None = None  # Label of the row that other rows of its group are compared with; None: only NTP
    is_list: bool = False  # The ablation lists its runs. The command of one listed run is not shorter than that of all

    def __post_init__(self) -> None:
        if any(len(row.values) != len(self.columns) for row in self.rows):
            raise ValueError(
                f"paper.yaml: a row of table {self.name} has more or fewer values than the table has columns"
            )


@dataclass(frozen=True)
class Paper:
    """The paper's tables and settings."""

    source: str  # Where the paper is published
    version: str  # Version of the paper that the values come from
    hardware: str
    suites: dict[str, Suite]
    models: dict[str, str]  # The paper's names of the choices of `model`
    data: dict[str, str]  # The paper's names of the choices of `data`
    settings: dict[str, float]  # Values by the dotted key of the config
    val_fraction: float  # Fraction of held-out examples
    epochs: dict[str, int]  # Epochs by the choice of `data`
    tables: dict[str, PaperTable]  # Tables by the name of the ablation

    def suite_of(self, column: str) -> Suite:
        """Return the suite that has a column."""
        return next(suite for suite in self.suites.values() if column in suite.columns)


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


def header(published: PaperTable) -> str:
    """Return claim and values of a table as comment lines; `?` is a gap in our copy of the table."""
    paper = read_paper()
    suites = list(dict.fromkeys(map(paper.suite_of, published.columns)))
    by = "; ".join(f"{suite.with_judge}, mean of {suite.rounds} rounds" for suite in suites)
    rows = [(" ".join(filter(None, (row.group, row.label))), row.values) for row in published.rows]
    width = max(len(label) for label, _ in rows)
    lines = [
        *_entry("Claim", published.claim),
        *_entry("Paper", f"Table {published.number}, {paper.source} ({paper.version}); {by}"),
    ]
    lines.append(f"# {INDENT}{'':{width}}" + "".join(f"{column:>10}" for column in published.columns))
    for label, values in rows:
        cells = "".join(f"{'?' if value is None else f'{value:.{suites[0].decimals}f}':>10}" for value in values)
        lines.append(f"# {INDENT}{label:{width}}{cells}")
    return "\n".join(lines) + "\n"


def _entry(word: str, text: str) -> list[str]:
    first, *others = wrap(text, WIDTH)
    return [f"# {word:<10}{first}", *(f"# {INDENT}{line}" for line in others)]


def fill(text: str, published: PaperTable) -> str:
    """Replace claim and values in the text of a file: everything from `# Claim` to the entry after `# Paper`."""
    return re.sub(r"# Claim .*?(?=# (?:Cost|Note) )", lambda _: header(published), text, count=1, flags=re.DOTALL)


def main(folder: Path) -> None:
    """Write claim and values into the files of all ablations that are tables of the paper."""
    for name, published in read_paper().tables.items():
        file = folder / f"{name}.yaml"
        file.write_text(fill(file.read_text(), published))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
