"""Pages of tables with notes, written for the terminal or as Markdown, LaTeX or CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

from sftmix.errors import ConfigError
from sftmix.terminal import one_line

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Cell:
    """A cell of a table. CSV shows the numbers too."""

    text: str = ""
    is_best: bool = False  # Whether the cell is the best of the cells that it is compared with
    note: str | None = None  # Text of the numbered note
    value: float | None = None  # Mean of `n` values
    sd: float | None = None  # Standard deviation of the values
    n: int | None = None
    low: float | None = None  # Lower end of the 95% interval
    high: float | None = None


@dataclass
class Block:
    """A table of a page: columns that name a row, columns of values, and the cells of both in each row."""

    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)


@dataclass
class ReportPage:
    """Tables with the lines before and after them; the numbered notes of cells follow. The name is for CSV."""

    name: str
    head: list[str]
    blocks: list[Block]
    notes: list[str] = field(default_factory=list)


def write_pages(pages: Sequence[ReportPage], form: str, *, styled: bool = False) -> str:
    """Return pages as text.

    Args:
        styled: Use the terminal's bold in the form `text`; otherwise, the best cells have a star.

    Raises:
        ConfigError: If the form is not text, markdown, latex or csv.
    """
    if form == "csv":
        return _csv(pages)
    text = partial(_text, styled=styled)
    forms: dict[str, Callable[[ReportPage], str]] = {"text": text, "markdown": _markdown_page, "latex": _latex}
    if form not in forms:
        raise ConfigError(f"format={form}: expected one of {', '.join(forms)}, csv")
    return "\n\n".join(map(forms[form], pages))


def _mark(cell: Cell, notes: dict[str, int]) -> str:
    """Return the number of a cell's note in brackets. Equal notes of a page have the same number."""
    return "" if cell.note is None else f" [{notes.setdefault(cell.note, len(notes) + 1)}]"


def _shown(block: Block) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows without the labels that repeat the row above."""
    before: tuple[str, ...] = ()
    for row in block.rows:
        labels = tuple(cell.text for cell in row[: len(block.labels)])
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, labels[:-1], strict=False)))
        before = labels
        yield (*(Cell() for _ in range(same)), *row[same:])


def _marked_up(
    block: Block, notes: dict[str, int], literal: Callable[[str], str], best: str
) -> Iterator[Iterator[str]]:
    """Yield the rows in Markdown or LaTeX; `best` is the pattern of the best cells."""
    for row in _shown(block):
        yield (
            (best % literal(cell.text) if cell.is_best else literal(cell.text)) + literal(_mark(cell, notes))
            for cell in row
        )


def _text(page: ReportPage, *, styled: bool) -> str:
    notes: dict[str, int] = {}
    lines = [one_line(line) for line in page.head]
    has_best = False
    for block in page.blocks:
        rows = [[(one_line(cell.text) + _mark(cell, notes), cell.is_best) for cell in row] for row in _shown(block)]
        has_best = has_best or any(best for row in rows for _, best in row)
        columns = []
        for k, name in enumerate([*block.labels, *block.columns]):
            texts, best = [name, *(row[k][0] for row in rows)], [False, *(row[k][1] for row in rows)]
            if any(best) and not styled:
                texts[1:] = [
                    text + ("*" if is_best else " ") for text, is_best in zip(texts[1:], best[1:], strict=True)
                ]
            width = max(map(len, texts))
            texts = [text.ljust(width) if k < len(block.labels) else text.rjust(width) for text in texts]
            columns.append([f"{BOLD}{t}{PLAIN}" if b and styled else t for t, b in zip(texts, best, strict=True)])
        lines += ["", block.title, *("  " + "  ".join(cells).rstrip() for cells in zip(*columns, strict=True))]
    lines += ["", *(one_line(note) for note in page.notes)]
    if has_best:
        lines.append(f"{'bold' if styled else '*'}: the best of a group")
    lines += [f"[{number}] {one_line(text)}" for text, number in notes.items()]
    return "\n".join(lines).rstrip()


def _markdown_page(page: ReportPage) -> str:
    notes: dict[str, int] = {}
    lines = [f"### {markdown(page.head[0])}", "", *(f"- {markdown(line)}" for line in page.head[1:])]
    for block in page.blocks:
        rule = ["---"] * len(block.labels) + ["---:"] * len(block.columns)
        rows = [map(markdown, (*block.labels, *block.columns)), rule, *_marked_up(block, notes, markdown, "**%s**")]
        lines += ["", f"**{markdown(block.title)}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", *(f"- {markdown(note)}" for note in page.notes)]
    lines += [f"- {markdown(f'[{number}] {text}')}" for text, number in notes.items()]
    return "\n".join(lines).rstrip()


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


def _latex(page: ReportPage) -> str:
    notes: dict[str, int] = {}
    lines = [f"% {one_line(line)}" for line in page.head]
    lines.append("% needs \\usepackage{textcomp} and \\usepackage[T1]{fontenc}")
    for block in page.blocks:
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(page.head[0])}: {tex(block.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(block.labels)}{'r' * len(block.columns)}}}",
            r"\hline",
            " & ".join(map(tex, (*block.labels, *block.columns))) + r" \\",
            r"\hline",
            *(" & ".join(row) + r" \\" for row in _marked_up(block, notes, tex, r"\textbf{%s}")),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    items = [*map(tex, page.notes), *(tex(f"[{number}] {text}") for text, number in notes.items())]
    if items:
        lines += ["", r"\begin{itemize}", *(rf"\item {{}}{line}" for line in items), r"\end{itemize}"]
    return "\n".join(lines)


CSV_COLUMNS = ("page", "table", "row", "column", "text", "value", "sd", "n", "low", "high", "best", "note")


def _csv(pages: Sequence[ReportPage]) -> str:
    """Return a row per cell, for other programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for name, block in ((page.name, block) for page in pages for block in page.blocks):
        for row in block.rows:
            label = " / ".join(one_line(cell.text) for cell in row[: len(block.labels)] if cell.text)
            for column, cell in zip(block.columns, row[len(block.labels) :], strict=True):
                numbers = [cell.value, cell.sd, cell.n, cell.low, cell.high]
                texts = [one_line(name), block.title, label, column, one_line(cell.text)]
                writer.writerow([*texts, *numbers, "yes" if cell.is_best else "", one_line(cell.note or "")])
    return out.getvalue().rstrip("\n")
