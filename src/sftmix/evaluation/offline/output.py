"""The tables that suite=offline prints: losses of each subset, calibration, answers, and the linearity gap."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sftmix.evaluation.offline.scores import ALL, Subset, measured
from sftmix.evaluation.results import Evaluation
from sftmix.reports.page import Block, Cell, ReportPage

if TYPE_CHECKING:
    from sftmix.evaluation.offline.token_statistics import Linearity, TokenStatistics

LOSSES = (
    "examples",
    "tokens",
    "held-out loss",
    "perplexity",
    "training examples",
    "training tokens",
    "training loss",
    "gap",
)
CALIBRATION = ("accuracy", "top probability", "ECE", "Brier", "entropy")
ANSWERS = ("answer tokens", "cut by length", "4-gram repetition", "distinct-1", "distinct-2")


def offline_page(
    found: Evaluation,
    held_out: "TokenStatistics",
    trained: "TokenStatistics",
    subsets: Mapping[str, Subset],
    between: "Linearity | None",
) -> ReportPage:
    """Return the tables of a run, with notes on how to read them."""
    block = Block("Losses in nats per response token", ("held-out examples",), LOSSES)
    trained_on = found.record["trained_half"]
    of_run = {} if trained_on is None else {f"{trained_on} by the run's split": subsets[ALL]}
    shown = {ALL: Subset(list(held_out.nll), subsets[ALL].trained)} | of_run
    for name, subset in (shown | {name: of for name, of in subsets.items() if name != ALL}).items():
        block.rows.append((Cell(name), *_loss_cells(held_out, trained, subset)))
    page = ReportPage("offline", [f"offline, {found.benchmark}"], [block])
    calibration = Block(
        "Calibration of the next response token: shares of 1, Brier 0 to 2, entropy in nats",
        ("held-out examples",),
        ("examples", "tokens", *CALIBRATION),
    )
    counts = _count(len(held_out.nll)), _count(sum(held_out.num_tokens.values()))
    calibration.rows.append((Cell(ALL), *counts, *(_number(found.scores[name]) for name in CALIBRATION)))
    page.blocks.append(calibration)
    if number := found.counts["answers"]:
        answers = Block("Answers: tokens of each, and shares of 1", ("to",), ("answers", *ANSWERS))
        cells = {name: _number(found.scores.get(name)) for name in ANSWERS}
        long = len(found.questions.get("4-gram repetition", {}))
        if long < number:
            note = f"over the {long:,} of {number:,} answers that have four words"
            cells["4-gram repetition"] = replace(cells["4-gram repetition"], note=note)
        answers.rows.append((Cell("held-out instructions"), _count(number), *cells.values()))
        page.blocks.append(answers)
    if between is not None:
        linearity = Block(
            "Between two hidden states: nats per mixed position",
            ("lambda",),
            ("pairs", "positions", "linearity gap", "entropy of the mixed label"),
        )
        counts = _count(found.counts["pairs"]), _count(between.num_positions)
        for lam, gap in between.gap.items():
            linearity.rows.append((Cell(f"{lam:g}"), *counts, _number(gap), _number(between.label_entropy[lam])))
        page.blocks.append(linearity)
    page.notes += _notes(found)
    return page


def _loss_cells(held_out: "TokenStatistics", trained: "TokenStatistics", subset: Subset) -> tuple[Cell, ...]:
    val, train = measured(held_out, subset.val), measured(trained, subset.trained)
    loss = held_out.loss(val) if val else None
    train_loss = trained.loss(train) if train else None
    return (
        Cell(f"{len(val):,}"),
        Cell(f"{sum(held_out.num_tokens[i] for i in val):,}"),
        _number(loss),
        _number(None if loss is None else math.exp(loss)),
        Cell(f"{len(train):,}"),
        Cell(f"{sum(trained.num_tokens[i] for i in train):,}"),
        _number(train_loss),
        _number(None if loss is None or train_loss is None else loss - train_loss, sign="+"),
    )


def _number(value: float | None, sign: str = "") -> Cell:
    return Cell() if value is None else Cell(f"{value:{sign}.4f}", value=value)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", value=number)


def _notes(found: Evaluation) -> list[str]:
    record, counts = found.record, found.counts
    notes = [f"the run itself measured a held-out loss of {record['held_out_loss_of_run']:.4f} over all it holds out"]
    if record["confidence"] is None:
        notes.append(
            "no confidence of these examples is known, so subsets, thirds and the linearity gap are left out: a run of "
            "recipe=sftmix beside this one scores them"
        )
    else:
        notes.append(f"confidence: {record['confidence']}; held-out and training examples each have their own ranks")
        if counts["without_confidence"]:
            notes.append(f"{counts['without_confidence']:,} held-out examples have no confidence and are in no subset")
    if record["trained_half"] is not None:
        notes.append(f"trained on the {record['trained_half']} subset only: the gap is over that subset")
    notes.append("gap: held-out minus training loss; a larger one is more overfitting")
    notes.append("a loss on held-out text does not say how well instructions are followed")
    notes.append("ECE: read it beside the accuracy, a model that is less sure is not a better one for that alone")
    return notes
