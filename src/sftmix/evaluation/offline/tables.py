"""What `suite=offline` prints: losses part by part, calibration, answers, and the cost of mixing by lambda."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sftmix.evaluation.offline.scores import ALL, Subset, those_in
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
    parts: Mapping[str, Subset],
    between: "Linearity | None",
) -> ReportPage:
    """The tables of a run, with what has to be known to read them."""
    record = found.record
    block = Block("Losses in nats per response token", ("held-out examples",), LOSSES)
    for name, part in {ALL: Subset(list(held_out.nll), parts[ALL].trained), **_others(parts, record)}.items():
        block.rows.append((Cell(name), *_loss_cells(held_out, trained, part)))
    page = ReportPage("offline", [f"offline, {found.benchmark}"], [block, _calibration(found, held_out)])
    if found.counts["answers"]:
        page.blocks.append(_answers(found))
    if between is not None:
        page.blocks.append(_linearity(found, between))
    page.notes += _notes(found)
    return page


def _calibration(found: Evaluation, held_out: "TokenStatistics") -> Block:
    """Accuracy first: no other figure can be read without it."""
    block = Block(
        "Calibration of the next response token: shares of 1, Brier 0 to 2, entropy in nats",
        ("held-out examples",),
        ("examples", "tokens", *CALIBRATION),
    )
    counts = (Cell(f"{n:,}", value=n) for n in (len(held_out.nll), sum(held_out.num_tokens.values())))
    block.rows.append((Cell(ALL), *counts, *(_figure(found.scores[name]) for name in CALIBRATION)))
    return block


def _answers(found: Evaluation) -> Block:
    """Means over answers; distinct-n is of all of them together."""
    block = Block("Answers: tokens of each, and shares of 1", ("to",), ("answers", *ANSWERS))
    number = found.counts["answers"]
    cells = {name: _figure(found.scores.get(name)) for name in ANSWERS}
    long = len(found.questions.get("4-gram repetition", {}))
    if long < number:
        note = f"over the {long:,} of {number:,} answers that have four words"
        cells["4-gram repetition"] = replace(cells["4-gram repetition"], note=note)
    block.rows.append((Cell("held-out instructions"), Cell(f"{number:,}", value=number), *cells.values()))
    return block


def _linearity(found: Evaluation, between: "Linearity") -> Block:
    block = Block(
        "Between two hidden states: nats per mixed position",
        ("lambda",),
        ("pairs", "positions", "linearity gap", "entropy of the mixed label"),
    )
    for lam, gap in between.gap.items():
        counts = (Cell(f"{n:,}", value=n) for n in (found.counts["pairs"], between.num_positions))
        block.rows.append((Cell(f"{lam:g}"), *counts, _figure(gap), _figure(between.label_entropy[lam])))
    return block


def _others(parts: Mapping[str, Subset], record: Mapping[str, object]) -> dict[str, Subset]:
    others = {name: part for name, part in parts.items() if name != ALL}
    half = record["trained_half"]
    return others if half is None else {f"{half} by the run's split": parts[ALL], **others}


def _loss_cells(held_out: "TokenStatistics", trained: "TokenStatistics", part: Subset) -> tuple[Cell, ...]:
    val, train = those_in(held_out, part.val), those_in(trained, part.trained)
    loss = held_out.loss(val) if val else None
    train_loss = trained.loss(train) if train else None
    return (
        Cell(f"{len(val):,}"),
        Cell(f"{sum(held_out.num_tokens[i] for i in val):,}"),
        _figure(loss),
        _figure(None if loss is None else math.exp(loss)),
        Cell(f"{len(train):,}"),
        Cell(f"{sum(trained.num_tokens[i] for i in train):,}"),
        _figure(train_loss),
        _figure(None if loss is None or train_loss is None else loss - train_loss, sign="+"),
    )


def _figure(value: float | None, sign: str = "") -> Cell:
    return Cell() if value is None else Cell(f"{value:{sign}.4f}", value=value)


def _notes(found: Evaluation) -> list[str]:
    record, counts = found.record, found.counts
    notes = [f"the run itself measured a held-out loss of {record['held_out_loss_of_run']:.4f} over all it holds out"]
    if record["confidence"] is None:
        notes.append(
            "no confidence of these examples is known, so halves, thirds and the linearity gap are left out: a run of "
            "recipe=sftmix beside this one scores them"
        )
    else:
        notes.append(f"confidence: {record['confidence']}; held-out and training examples each have their own ranks")
        if counts["without_confidence"]:
            notes.append(f"{counts['without_confidence']:,} held-out examples have no confidence and are in no part")
    if record["trained_half"] is not None:
        notes.append(f"trained on the {record['trained_half']} half alone: the gap is over that half")
    notes.append("gap: held-out minus training loss; a larger one is more overfitting")
    notes.append("a loss on held-out text does not say how well instructions are followed")
    notes.append("ECE: read it beside the accuracy, a model that is less sure is not a better one for that alone")
    return notes
