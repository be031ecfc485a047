"""A table of the runs of a test, as text and as cells."""

import csv
import io

from sftmix.reports.page import write_pages
from sftmix.reports.tables.table import table
from sftmix.sweep.store import find_sweeps


def written(made, name, form="text", **options):
    sweeps, unreadable = find_sweeps(made.root)
    styled = options.pop("styled", False)
    return write_pages(table(name, sweeps, unreadable=unreadable, **options), form, styled=styled)


def cells(made, name, **options):
    """Return the cells of the CSV form by (table, row, column)."""
    rows = csv.DictReader(io.StringIO(written(made, name, "csv", **options)))
    return {(row["table"].split(",")[0], row["row"], row["column"]): row for row in rows}
