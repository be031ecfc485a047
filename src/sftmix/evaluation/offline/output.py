"""The tables that suite=offline prints: losses of each subset, calibration, answers, and the linearity gap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sftmix.evaluation.offline.scores import ALL, RANDOM_LINEARITY, Subset, measured
from sftmix.evaluation.results import LOSS, Evaluation
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
CALIBRATION_TITLE = "Calibration of the next response token: shares of 1, Brier 0 to 2, entropy in nats"
ANSWERS = ("answer tokens", "cut by length", "4-gram repetition", "distinct-1", "distinct-2")

HOW_TO_READ = (
    "a loss on held-out text does not say how well instructions are followed",
    "ECE: read it beside the accuracy; a model is not better only because it is less sure",
)


def offline_page(
    found: Evaluation,
    held_out: "TokenStatistics",
    trained: "TokenStatistics",
    subsets: Mapping[str, Subset],
    between: "Linearity | None",
) -> ReportPage:
    """Return the tables of a run, with notes on how to read them."""
    block = Block("Losses in nats per response token", ("held-out examples",), LOSSES)
    trained_on = found.record["trained_subset"]
    of_run = {} if trained_on is None else {f"{trained_on} by the run's split": subsets[ALL]}
    shown = {ALL: Subset(list(held_out.nll), subsets[ALL].trained)} | of_run
    for name, subset in (shown | {name: of for name, of in subsets.items() if name != ALL}).items():
        block.rows.append((Cell(name), *_loss_cells(held_out, trained, subset)))
    page = ReportPage("offline", [f"offline, {found.benchmark}"], [block])
    calibration = Block(CALIBRATION_TITLE, ("held-out examples",), ("examples", "tokens", *CALIBRATION))
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
            "Between two hidden states: nats per mixed token",
            ("lambda",),
            ("pairs", "mixed tokens", "linearity gap", "entropy of the mixed label"),
        )
        counts = _count(found.counts["pairs"]), _count(between.total)
        for lam, gap in between.gap.items():
            linearity.rows.append((Cell(f"{lam:g}"), *counts, _number(gap), _number(between.label_entropy[lam])))
        page.blocks.append(linearity)
    page.notes += _notes(found)
    return page


def sets_page(evaluations: Sequence[Evaluation]) -> ReportPage:
    """Return the tables of further held-out sets, a row for each set, with notes on how to read them."""
    counted = ("questions", "tokens", "dropped", "shortened", "trained_on")
    names = ("examples", "tokens", "dropped", "shortened", "trained on", "held-out loss", "perplexity")
    losses = Block("Held-out sets: losses in nats per response token", ("set",), names)
    calibration = Block(CALIBRATION_TITLE, ("set",), CALIBRATION)
    linearity = Block("Between two hidden states: nats per mixed token", ("set",), ("pairs", RANDOM_LINEARITY))
    for e in evaluations:
        counts = [_count(e.counts[name]) if name in e.counts else Cell("not known") for name in counted]
        losses.rows.append((Cell(e.benchmark), *counts, _number(e.scores[LOSS]), _number(e.scores["perplexity"])))
        calibration.rows.append((Cell(e.benchmark), *(_number(e.scores[name]) for name in CALIBRATION)))
        gap = _number(e.scores.get(RANDOM_LINEARITY))
        linearity.rows.append((Cell(e.benchmark), _count(e.counts["pairs"]), gap))
    notes = [
        "dropped and shortened: the reasons are printed above; two models are compared on the examples that both see "
        "whole, or cut at the same length",
        "trained on: examples that are among the run's training examples; the loss on them is not held out",
        "random pairs: drawn by the seed and the contents of the set, so all models have the same pairs; this is "
        "another quantity than the linearity gap between confident and unconfident examples",
        *HOW_TO_READ,
    ]
    return ReportPage("offline", ["offline, held-out sets"], [losses, calibration, linearity], notes)


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
            "the confidence of these examples is not known, so subsets, thirds and the linearity gap are left out; a "
            "run of recipe=sftmix in the same root scores the examples"
        )
    else:
        notes.append(f"confidence: {record['confidence']}; held-out and training examples are ranked separately")
        if counts["without_confidence"]:
            notes.append(f"{counts['without_confidence']:,} held-out examples have no confidence and are in no subset")
    if record["trained_subset"] is not None:
        notes.append(f"trained on the {record['trained_subset']} subset only: the gap is over that subset")
    notes.append("gap: held-out minus training loss; a larger gap is more overfitting")
    return [*notes, *HOW_TO_READ]
