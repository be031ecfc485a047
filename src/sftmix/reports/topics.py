"""What the most and the least confident examples of a run are about (section 3.2), and labels by hand or by a judge."""

import csv
import io
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from sftmix.analysis.proportions import Estimate, proportion
from sftmix.analysis.root_verbs import Root, root_of, spacy_roots
from sftmix.analysis.topics import (
    RULES,
    Term,
    Text,
    most_frequent,
    most_frequent_verbs,
    shares_by_rule,
    terms_of,
)
from sftmix.artifacts.files import write_bytes
from sftmix.errors import InputError
from sftmix.reports.figures.output import write_report
from sftmix.reports.figures.scores import ScoredRun, extremes
from sftmix.reports.page import Block, Cell, ReportPage
from sftmix.terminal import counted, one_line

LABELED = 50  # most, and least confident examples in the file for labels: those of section 3.2
SHOWN = 12
HEURISTIC = "first word of the first sentence by stated rules, without a parser; a question counts by its first word"
COLUMNS = ("example_id", "instruction", "response", "label")
SIDES = ("most confident", "least confident")


def topics(run: ScoredRun, k: int, spacy: str | None, root: Path) -> tuple[ReportPage, Path]:
    """Return the page of the topics of the most and least confident examples, and the folder of its files.

    The folder also has `labels.csv`, the 50 most and 50 least confident examples in random order for `label_shares`.

    Args:
        spacy: Name of a spaCy pipeline that finds the root verbs; None: the heuristic.

    Raises:
        InputError: If the texts of the examples are gone.
    """
    find = (lambda texts: list(map(root_of, texts))) if spacy is None else spacy_roots(spacy)
    chosen = extremes(run, k)
    sides = dict(zip(SIDES, (_texts(run, members, find) for members in chosen), strict=True))
    confident, unconfident = ([text.instruction for text in texts] for texts in sides.values())
    try:
        terms = terms_of(confident, unconfident, SHOWN)
    except ValueError:
        terms = ([], [])
    shares = {side: shares_by_rule(texts) for side, texts in sides.items()}
    page = ReportPage(
        "topics",
        [
            f"Topics of the {len(confident):,} most and {len(unconfident):,} least confident training "
            f"examples of {run.name}"
        ],
        [
            _frequencies("Root verbs", sides, most_frequent_verbs),
            _frequencies("Root verbs with their objects", sides, most_frequent),
            *(_terms(f"Terms of the {side}", part) for side, part in zip(SIDES, terms, strict=True) if part),
            _shares("Kinds by rule", shares),
        ],
        [
            f"root verbs: {HEURISTIC if spacy is None else f'spaCy pipeline {spacy}'}",
            "terms: words and pairs of words in at least 3 instructions, ranked by the difference of the mean TF-IDF "
            "weight; odds ratio of confident against unconfident instructions that have the term (1/2 added to each "
            "count), with a 95% interval that is not corrected for the choice among many terms",
            *(f"{rule.name}: {rule.states}" for rule in RULES),
            "rules count words, they do not judge: label the examples of labels.csv for a judgment",
        ],
    )
    cut = int(run.examples.is_cut[chosen.both].sum())
    if cut:
        page.notes.append(f"{cut:,} texts are cut after 300 characters: the prepared data of the run is gone")
    numbers = {
        "run": run.name,
        "k": len(confident),
        "root_verbs": "heuristic" if spacy is None else spacy,
        "verbs": {side: most_frequent_verbs([t.root for t in texts], SHOWN) for side, texts in sides.items()},
        "verbs_with_objects": {side: most_frequent([t.root for t in texts], SHOWN) for side, texts in sides.items()},
        "terms": dict(zip(SIDES, terms, strict=True)),
        "kinds": shares,
    }
    folder = write_report(root, f"topics-{run.name}", page, numbers)
    if not (folder / "labels.csv").exists():  # labels that were filled in stay
        write_bytes(folder / "labels.csv", _label_file(run).encode("utf-8", errors="replace"))
    return page, folder


def label_shares(run: ScoredRun, file: Path, root: Path) -> tuple[ReportPage, Path]:
    """Return the shares of labels by subset, the more and the less confident half, and the folder of its files.

    Args:
        file: CSV with the columns `example_id` and `label`, such as `labels.csv` with labels filled in.

    Raises:
        InputError: If the file has no such columns, no label, or an example twice or from elsewhere.
    """
    labels = _read_labels(file)
    index = {example_id: k for k, example_id in enumerate(run.examples.ids)}
    unknown = [example_id for example_id in labels if example_id not in index]
    if unknown:
        first = f"first {one_line(unknown[0])}"
        raise InputError(f"labels={file}: {len(unknown)} of {len(labels)} ids are not of {run.name}, {first}")
    given = {example_id: label for example_id, label in labels.items() if label}
    if not given:
        raise InputError(f"labels={file}: the column label is empty in all {counted(len(labels), 'row')}")
    order = extremes(run, len(index))
    half = dict.fromkeys(order.confident.tolist(), SIDES[0]) | dict.fromkeys(order.unconfident.tolist(), SIDES[1])
    of_side = {side: [given[i] for i in given if half.get(index[i]) == side] for side in SIDES}
    shares = {
        side: {label: proportion(found.count(label), len(found)) for label in sorted(set(given.values()))}
        for side, found in of_side.items()
    }
    page = ReportPage(
        "labels",
        [
            f"Labels of {counted(len(given), 'example')} of {run.name}: {len(of_side[SIDES[0]])} of the more, "
            f"{len(of_side[SIDES[1]])} of the less confident half"
        ],
        [_shares("Shares of the labels", shares)],
        [f"{len(labels) - len(given)} rows without a label"] if len(given) < len(labels) else [],
    )
    numbers = {"run": run.name, "labels": len(given), "shares": shares}
    return page, write_report(root, f"labels-{run.name}", page, numbers)


def _texts(run: ScoredRun, chosen: Iterable[int], find: Callable[[Iterable[str]], list[Root]]) -> list[Text]:
    found = [(run.examples.instruction[i], run.examples.response[i]) for i in chosen]
    texts = [(instruction, response) for instruction, response in found if instruction is not None]
    if not texts:
        raise InputError(f"{run.folder}: the texts of its examples are gone: no prepared data, no examples.parquet")
    roots = find([instruction for instruction, _ in texts])
    return [Text(text, response or "", root) for (text, response), root in zip(texts, roots, strict=True)]


def _frequencies(
    title: str, sides: Mapping[str, Sequence[Text]], count: Callable[[Sequence[Root], int], list[tuple[str, int]]]
) -> Block:
    block = Block(title, (), tuple(column for side in sides for column in (side, "share")))
    found = [
        [(Cell(name), Cell(f"{number / len(texts):.1%}")) for name, number in count([t.root for t in texts], SHOWN)]
        for texts in sides.values()
    ]
    for left, right in zip_longest(*found, fillvalue=(Cell(), Cell())):
        block.rows.append((*left, *right))
    return block


def _terms(title: str, terms: Sequence[Term]) -> Block:
    block = Block(title, ("term",), ("confident", "unconfident", "odds ratio", "95% interval"))
    for term in terms:
        interval = f"[{term.odds.low:.2g}, {term.odds.high:.2g}]"
        cells = f"{term.confident:,}", f"{term.unconfident:,}", f"{term.odds.value:.2g}", interval
        block.rows.append((Cell(term.term), *map(Cell, cells)))
    return block


def _shares(title: str, shares: Mapping[str, Mapping[str, Estimate]]) -> Block:
    block = Block(title, ("kind",), tuple(column for side in shares for column in (side, "95% interval")))
    for kind in next(iter(shares.values())):
        cells: list[Cell] = []
        for found in shares.values():
            share = found[kind]
            if not share.n:
                cells += [Cell("none labelled"), Cell()]
                continue
            interval = f"[{share.low:.1%}, {share.high:.1%}]"
            cells += [Cell(f"{share.value:.1%}", value=share.value, low=share.low, high=share.high), Cell(interval)]
        block.rows.append((Cell(kind), *cells))
    return block


def _label_file(run: ScoredRun) -> str:
    """Return the CSV for labels: nothing in it, nor its order, shows the subset."""
    members = [int(i) for i in extremes(run, LABELED).both if run.examples.instruction[i] is not None]
    random.Random(0).shuffle(members)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for i in members:
        writer.writerow([run.examples.ids[i], run.examples.instruction[i], run.examples.response[i], ""])
    return out.getvalue()


def _read_labels(file: Path) -> dict[str, str]:
    usual = csv.field_size_limit(2**31 - 1)  # by default, texts of 131,072 characters are refused
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            rows: list[dict[str, Any]] = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"labels={file}: cannot be read, expected a CSV file in UTF-8 ({error})") from None
    finally:
        csv.field_size_limit(usual)
    if not rows or not {"example_id", "label"} <= set(rows[0]):
        found = ", ".join(map(str, rows[0])) if rows else "no row"
        raise InputError(f"labels={file}: expected the columns example_id and label, found {found}")
    ids = [row["example_id"] or "" for row in rows]
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"labels={file}: example {values[counts > 1][0]} is in several rows, expected one")
    return {example_id: (row["label"] or "").strip() for example_id, row in zip(ids, rows, strict=True)}
