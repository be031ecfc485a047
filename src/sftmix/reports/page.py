"""Pages of tables with notes, written for the terminal or as Markdown, LaTeX or CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sftmix.errors import ConfigError
from sftmix.terminal import one_line

FORMATS = ("text", "markdown", "latex", "csv")
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: The printed text.
        is_best: Whether the cell is the best of those it is compared with.
        note: Text of its numbered note, or None.
        value: The value, for CSV.
        sd: Standard deviation of the value.
        n: Number of values whose mean the value is.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    text: str = ""
    is_best: bool = False
    note: str | None = None
    value: float | None = None
    sd: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Block:
    """A table of a page.

    Attributes:
        title: Title above the table.
        labels: Columns that name a row.
        columns: Columns of values.
        rows: Cells of both, in order.
    """

    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)


@dataclass
class Page:
    """Tables with the lines before and after them.

    Attributes:
        name: Name of the page, for CSV.
        head: Lines above the tables.
        blocks: The tables.
        notes: Lines below the tables; the numbered notes of cells follow.
    """

    name: str
    head: list[str]
    blocks: list[Block]
    notes: list[str] = field(default_factory=list)


def write_pages(pages: Sequence[Page], form: str, *, styled: bool = False) -> str:
    """Return pages as text.

    Args:
        pages: The pages in order.
        form: text, markdown, latex or csv.
        styled: Use the terminal's bold for form text; otherwise the best cells have a star.

    Raises:
        ConfigError: If there is no such form.
    """
    if form == "csv":
        return _csv(pages)
    forms: dict[str, Callable[[Page], str]] = {
        "text": lambda page: _text(page, styled),
        "markdown": _markdown_page,
        "latex": _latex,
    }
    if form not in forms:
        raise ConfigError(f"format={form}: expected one of {', '.join(FORMATS)}")
    return "\n\n".join(forms[form](page) for page in pages)


class _Notes:
    """The numbered notes of a page; equal notes have one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, cell: Cell) -> str:
        """Return the number of a cell's note in brackets after a space; an empty text if it has no note."""
        if cell.note is None:
            return ""
        if cell.note not in self.texts:
            self.texts.append(cell.note)
        return f" [{self.texts.index(cell.note) + 1}]"

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the number and text of each note."""
        return ((f"[{number}]", text) for number, text in enumerate(self.texts, start=1))


def _shown(block: Block) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows without the labels that repeat the row above."""
    before: tuple[str, ...] = ()
    for row in block.rows:
        labels = tuple(cell.text for cell in row[: len(block.labels)])
        same = 0
        while same < len(labels) - 1 and before[: same + 1] == labels[: same + 1]:
            same += 1
        before = labels
        yield (*(Cell() for _ in range(same)), *row[same:])


def _text(page: Page, styled: bool) -> str:
    notes = _Notes()
    lines = [one_line(line) for line in page.head]
    has_best = False
    for block in page.blocks:
        rows = [[(one_line(cell.text) + notes.mark(cell), cell.is_best) for cell in row] for row in _shown(block)]
        has_best = has_best or any(best for row in rows for _, best in row)
        if not styled:
            starred = [any(row[k][1] for row in rows) for k in range(len(block.labels) + len(block.columns))]
            rows = [
                [
                    (f"{t}{'*' if best else ' ' if star else ''}", best)
                    for (t, best), star in zip(r, starred, strict=True)
                ]
                for r in rows
            ]
        header = [*block.labels, *block.columns]
        widths = [
            max(len(texts[k]) for texts in (header, *([t for t, _ in row] for row in rows))) for k in range(len(header))
        ]

        def line(cells: Sequence[tuple[str, bool]], widths: list[int] = widths, left: int = len(block.labels)) -> str:
            padded = [
                (text.ljust(width) if k < left else text.rjust(width), best)
                for k, ((text, best), width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  " + "  ".join(f"{BOLD}{t}{PLAIN}" if best and styled else t for t, best in padded).rstrip()

        lines += ["", block.title, line([(name, False) for name in header])]
        lines += [line(row) for row in rows]
    lines += ["", *(one_line(note) for note in page.notes)]
    if has_best:
        lines.append(f"{'bold' if styled else '*'}: the best of a group")
    lines += [f"{number} {one_line(text)}" for number, text in notes.lines()]
    return "\n".join(lines).rstrip()


def _markdown_page(page: Page) -> str:
    notes = _Notes()
    lines = [f"### {markdown(page.head[0])}", "", *(f"- {markdown(line)}" for line in page.head[1:])]
    for block in page.blocks:
        header = [*block.labels, *block.columns]
        rule = ["---"] * len(block.labels) + ["---:"] * len(block.columns)
        lines += ["", f"**{markdown(block.title)}**", "", _md_row(map(markdown, header)), _md_row(rule)]
        for row in _shown(block):
            cells = ((markdown(cell.text), cell.is_best, markdown(notes.mark(cell))) for cell in row)
            lines.append(_md_row((f"**{text}**" if best else text) + mark for text, best, mark in cells))
    lines += ["", *(f"- {markdown(note)}" for note in page.notes)]
    lines += [f"- {markdown(number)} {markdown(text)}" for number, text in notes.lines()]
    return "\n".join(lines).rstrip()


def _md_row(cells: object) -> str:
    return f"| {' | '.join(cells)} |"  # type: ignore[arg-type]


def markdown(text: str) -> str:
    """Return a text so that Markdown shows it literally."""
    return re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", one_line(text))


TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "[": "{[}",
    "]": "{]}",
    "`": r"\textasciigrave{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def tex(text: str) -> str:
    """Return a text so that LaTeX prints it literally. Characters beyond ASCII except ± become their code."""
    return "".join(TEX.get(c, c if c.isascii() else f"U+{ord(c):04X}") for c in one_line(text))


def _latex(page: Page) -> str:
    notes = _Notes()
    lines = [f"% {one_line(line)}" for line in page.head]
    lines.append("% needs \\usepackage{textcomp} and \\usepackage[T1]{fontenc}")
    for block in page.blocks:
        header = [*block.labels, *block.columns]
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(page.head[0])}: {tex(block.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(block.labels)}{'r' * len(block.columns)}}}",
            r"\hline",
            " & ".join(map(tex, header)) + r" \\",
            r"\hline",
        ]
        for row in _shown(block):
            cells = ((tex(cell.text), cell.is_best, tex(notes.mark(cell))) for cell in row)
            lines.append(" & ".join((rf"\textbf{{{t}}}" if best else t) + mark for t, best, mark in cells) + r" \\")
        lines += [r"\hline", r"\end{tabular}", r"\end{table}"]
    items = [tex(note) for note in page.notes] + [f"{tex(number)} {tex(text)}" for number, text in notes.lines()]
    if items:
        lines += ["", r"\begin{itemize}", *(rf"\item {{}}{line}" for line in items), r"\end{itemize}"]
    return "\n".join(lines)


CSV_COLUMNS = ("page", "table", "row", "column", "text", "value", "sd", "n", "low", "high", "best", "note")


def _csv(pages: Sequence[Page]) -> str:
    """Return one line per cell, for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for page in pages:
        for block in page.blocks:
            for row in block.rows:
                label = " / ".join(one_line(cell.text) for cell in row[: len(block.labels)] if cell.text)
                for column, cell in zip(block.columns, row[len(block.labels) :], strict=True):
                    numbers = [cell.value, cell.sd, cell.n, cell.low, cell.high]
                    texts = [one_line(page.name), block.title, label, column, one_line(cell.text)]
                    best = "yes" if cell.is_best else ""
                    writer.writerow(
                        [*texts, *("" if x is None else x for x in numbers), best, one_line(cell.note or "")]
                    )
    return out.getvalue().rstrip("\n")
