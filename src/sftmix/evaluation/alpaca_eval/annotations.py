"""A judge's preferences in AlpacaEval's own form: read, put in the questions' order, written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.outputs import Output, Pair, read_records, refuse_repeated, text_of
from sftmix.evaluation.alpaca_eval.preference import DRAW
from sftmix.evaluation.judge.journal import PRIVATE


class Annotation(NamedTuple):
    """Two answers, and which one a judge prefers.

    Attributes:
        pair: the answers; its index is -1 where the file does not say which of the questions it is.
        generators: of the baseline's answer and of the model's.
        preference: 1 (the baseline's) to 2 (the model's), or None where there is no verdict.
        annotator: what the judge is called.
        served_model: that judged, where the file says so.
    """

    pair: Pair
    generators: tuple[str, str]
    preference: float | None
    annotator: str
    served_model: str | None = None


def read_annotations(file: Path) -> list[Annotation]:
    """The preferences of a file in AlpacaEval's form, in its order.

    Raises:
        InputError: it cannot be read, has an instruction twice, a preference that is none, or several models or judges.
    """
    found = []
    for place, record in enumerate(read_records(file)):
        texts = [text_of(record, key, file, place) for key in ("instruction", "output_1", "output_2")]
        index = record.get("index", -1)
        if isinstance(index, bool) or not isinstance(index, int) or index < -1:
            raise InputError(f"{file}, record {place}: index is {index!r}, expected a whole number from 0")
        generators = str(record.get("generator_1", "")), str(record.get("generator_2", ""))
        preference = _preference(record.get("preference"), f"{file}, record {place}")
        served = record.get("served_model")
        found.append(
            Annotation(
                Pair(index, *texts),
                generators,
                preference,
                str(record.get("annotator", "")),
                None if served is None else str(served),
            )
        )
    refuse_repeated([annotation.pair.instruction for annotation in found], file)
    for what, names in (
        ("baselines", {a.generators[0] for a in found}),
        ("models", {a.generators[1] for a in found}),
        ("judges", {a.annotator for a in found}),
    ):
        if len(names) > 1:
            raise InputError(f"{file}: is of {len(names)} {what} ({', '.join(sorted(names))}), expected one")
    return found


def _preference(value: Any, where: str) -> float | None:
    """The official program writes 0 for a draw in old files, and -1 where a verdict could not be read."""
    if value is None or value == "":
        return None
    try:
        preference = float(value)
    except (TypeError, ValueError):
        preference = math.inf
    if math.isnan(preference) or preference == -1:
        return None
    if preference != 0 and not 1 <= preference <= 2:
        raise InputError(f"{where}: preference is {value!r}, expected 1 to 2 (or 0, a draw)")
    return DRAW if preference == 0 else preference


def in_order(
    annotations: Sequence[Annotation], baseline: Sequence[Output], file: Path, baseline_file: Path
) -> list[Annotation]:
    """The annotations with their questions' places among the baseline's, in that order.

    Raises:
        InputError: they are of other questions, or of other answers to them.
    """
    place_of = {output.instruction: place for place, output in enumerate(baseline)}
    found = []
    for annotation in annotations:
        place = place_of.get(annotation.pair.instruction)
        if place is None:
            raise InputError(f"{file}: has an instruction that {baseline_file} has not, expected its instructions")
        if annotation.pair.output_1 != baseline[place].output:
            raise InputError(f"{file}: output_1 of instruction {place} is not what {baseline_file} answers to it")
        found.append(annotation._replace(pair=replace(annotation.pair, index=place)))
    return sorted(found, key=lambda annotation: annotation.pair.index)


def refuse_other_answers(annotations: Sequence[Annotation], outputs: Sequence[Output], file: Path, of: Path) -> None:
    """See to it that the judged answers are those of a file.

    Raises:
        InputError: one is not.
    """
    answers = {output.instruction: output.output for output in outputs}
    for place, annotation in enumerate(annotations):
        if answers.get(annotation.pair.instruction) != annotation.pair.output_2:
            raise InputError(f"{file}, record {place}: output_2 is not what {of} answers to its instruction")


def write_annotations(file: Path, annotations: Sequence[Annotation], extras: Sequence[Mapping[str, Any]]) -> None:
    """Write preferences in AlpacaEval's form, which its own program reads, with what else is known of each."""
    write_json(
        file,
        [
            {
                "index": a.pair.index,
                "instruction": a.pair.instruction,
                "output_1": a.pair.output_1,
                "generator_1": a.generators[0],
                "output_2": a.pair.output_2,
                "generator_2": a.generators[1],
                "annotator": a.annotator,
                "preference": a.preference,
                **extra,
            }
            for a, extra in zip(annotations, extras, strict=True)
        ],
        PRIVATE,
    )
