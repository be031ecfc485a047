"""The head of an ablation's file: what the paper claims and its values, filled from `paper.yaml`.

`python -m sftmix.reports.header conf/ablation` writes them anew (`make headers`).
"""

import re
import sys
from pathlib import Path
from textwrap import wrap

from sftmix.reports.tables.paper import PaperTable, read_paper

WIDTH, INDENT = 106, " " * 10


def header(published: PaperTable) -> str:
    """The comment lines of a table's claim and values; `?` is a cell that is unknown in our copy."""
    paper = read_paper()
    suites = {paper.suite_of(column): None for column in published.columns}
    by = "; ".join(_suite(name) for name in suites)
    rows = [(" ".join(filter(None, (row.group, row.label))), row.values) for row in published.rows]
    width = max(len(label) for label, _ in rows)
    decimals = paper.suites[next(iter(suites))].decimals
    lines = [
        *_entry("Claim", published.claim),
        *_entry("Paper", f"Table {published.number}, {paper.source} ({paper.version}); {by}"),
    ]
    lines.append(f"# {INDENT}{'':{width}}" + "".join(f"{column:>10}" for column in published.columns))
    for label, values in rows:
        cells = "".join(f"{'?' if value is None else f'{value:.{decimals}f}':>10}" for value in values)
        lines.append(f"# {INDENT}{label:{width}}{cells}")
    return "\n".join(lines) + "\n"


def _suite(name: str) -> str:
    suite = read_paper().suites[name]
    judge = "" if suite.judge is None else f" by {suite.judge}"
    return f"{suite.title}{judge}, mean of {suite.rounds} rounds"


def _entry(word: str, text: str) -> list[str]:
    first, *others = wrap(text, WIDTH)
    return [f"# {word:<10}{first}", *(f"# {INDENT}{line}" for line in others)]


def fill(text: str, published: PaperTable) -> str:
    """A file with its claim and values written anew: what stands from `# Claim` to the next entry after `# Paper`."""
    return re.sub(r"# Claim .*?(?=# (?:Cost|Note) )", lambda _: header(published), text, count=1, flags=re.DOTALL)


def main(folder: Path) -> None:
    """Write the heads of all files that are tables of the paper."""
    for name, published in read_paper().tables.items():
        file = folder / f"{name}.yaml"
        file.write_text(fill(file.read_text(), published))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
