"""Write claim and values of the paper's tables into the files of the ablations: `make headers`."""

import re
from textwrap import wrap

from paths import CONF
from sftmix.reports.tables.paper import PaperTable, read_paper

WIDTH, INDENT = 118, " " * 10


def header(published: PaperTable) -> str:
    """Return claim and values of a table as comment lines; `?` is a gap in our copy of the table."""
    paper = read_paper()
    suites = paper.suites_of(published)
    by = "; ".join(f"{suite.with_judge}, mean of {suite.rounds} rounds" for suite in suites)
    rows = [(" ".join(filter(None, (row.group, row.label))), row.values) for row in published.rows]
    width = max(len(label) for label, _ in rows)
    lines = wrap(published.claim, WIDTH, initial_indent=f"# {'Claim':<10}", subsequent_indent=f"# {INDENT}")
    source = f"{published.name_in_paper}, {paper.source} ({paper.version_of(published)}); {by}"
    lines += wrap(source, WIDTH, initial_indent=f"# {'Paper':<10}", subsequent_indent=f"# {INDENT}")
    lines.append(f"# {INDENT}{'':{width}}" + "".join(f"{column:>10}" for column in published.columns))
    for label, values in rows:
        cells = "".join(f"{'?' if value is None else f'{value:.{suites[0].decimals}f}':>10}" for value in values)
        lines.append(f"# {INDENT}{label:{width}}{cells}")
    return "\n".join(lines) + "\n"


def fill(text: str, published: PaperTable) -> str:
    """Replace claim and values in the text of a file: everything from `# Claim` to the entry after `# Paper`."""
    return re.sub(r"# Claim .*?(?=# (?:Cost|Note) )", lambda _: header(published), text, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    for name, table in read_paper().tables.items():
        file = CONF / "ablation" / f"{name}.yaml"
        file.write_text(fill(file.read_text(), table))
