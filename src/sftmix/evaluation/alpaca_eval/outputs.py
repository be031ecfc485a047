"""Read and write answers and preferences in AlpacaEval's form, and join them by instruction."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.files import write_json
from sftmix.data.rows import Row
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import PRIVATE
from sftmix.evaluation.published import read_records
from sftmix.terminal import counted

DRAW = 1.5  # preference: 1 if the baseline's answer is better, 2 if the model's is


class Output(NamedTuple):
    """A model's answer, with the fields of AlpacaEval's files; `dataset` is the origin of the instruction."""

    instruction: str
    output: str
    generator: str
    dataset: str


@dataclass(frozen=True)
class Pair:
    """The answers of the baseline (1) and of a model (2) to an instruction. The index counts the baseline's from 0."""

    index: int
    instruction: str
    output_1: str
    output_2: str


def text_of(row: Row, key: str) -> str:
    """Return a text of a row; raise an InputError if the row has none under this key."""
    if not isinstance(row.fields.get(key), str):
        raise InputError(f"{row.where}: {key} is {row.fields.get(key)!r}, expected a text")
    return str(row.fields[key])


def read_outputs(file: Path) -> list[Output]:
    """Return the answers of a file in AlpacaEval's form.

    Raises:
        InputError: If the file cannot be read, lacks a text, or has an instruction twice.
    """
    found = []
    for row in read_records(file):
        instruction, output = (text_of(row, key) for key in ("instruction", "output"))
        generator, dataset = (str(row.fields.get(key, "")) for key in ("generator", "dataset"))
        found.append(Output(instruction, output, generator, dataset))
    refuse_repeated([output.instruction for output in found], file)
    return found


def refuse_repeated(instructions: Sequence[str], file: Path) -> None:
    """Raise an InputError if an instruction appears twice: answers are joined by instruction."""
    first: dict[str, int] = {}
    for number, instruction in enumerate(instructions, start=1):
        if instruction in first:
            raise InputError(
                f"{file}: rows {first[instruction]} and {number} have the same instruction, expected each once"
            )
        first[instruction] = number


def write_outputs(file: Path, outputs: Sequence[Output]) -> None:
    """Write answers in AlpacaEval's form, which its own program reads."""
    write_json(file, [output._asdict() for output in outputs], PRIVATE)


def paired(baseline: Sequence[Output], outputs: Sequence[Output], file: Path) -> list[Pair]:
    """Return the two answers to each of the baseline's instructions, in the baseline's order.

    Args:
        outputs: The model's answers, in any order.

    Raises:
        InputError: If the two files do not answer the same instructions.
    """
    answers = {output.instruction: output.output for output in outputs}
    asked = {output.instruction for output in baseline}
    strange = next((o.instruction for o in outputs if o.instruction not in asked), None)
    if strange is not None:
        raise InputError(f"{file}: answers {_begins(strange)}, expected only instructions that the baseline answers")
    lacking = [output.instruction for output in baseline if output.instruction not in answers]
    if lacking:
        raise InputError(
            f"{file}: lacks {counted(len(lacking), 'answer')} of {len(baseline):,}, the first to {_begins(lacking[0])}"
        )
    return [Pair(i, b.instruction, b.output, answers[b.instruction]) for i, b in enumerate(baseline)]


def _begins(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else f"{text[:40]}...", ensure_ascii=False)


class Annotation(NamedTuple):
    """A judge's preference between two answers."""

    pair: Pair  # The answers. The index is -1 if the file does not give it.
    generators: tuple[str, str]  # Models of the baseline's answer and of the other one
    preference: float | None  # From 1 (the baseline's answer) to 2 (the model's), or None if there is no verdict
    annotator: str  # Name of the judge
    served_model: str | None = None  # Model that judged, if the file names it


def read_annotations(file: Path) -> list[Annotation]:
    """Return the preferences of a file in AlpacaEval's form, in its order.

    Raises:
        InputError: If the file cannot be read, repeats an instruction, has a preference outside 1 to 2, or has
            several models or judges.
    """
    found = []
    for row in read_records(file):
        texts = [text_of(row, key) for key in ("instruction", "output_1", "output_2")]
        index, served = row.fields.get("index", -1), row.fields.get("served_model")
        if isinstance(index, bool) or not isinstance(index, int) or index < -1:
            raise InputError(f"{row.where}: index is {index!r}, expected a whole number from 0")
        generators = str(row.fields.get("generator_1", "")), str(row.fields.get("generator_2", ""))
        preference = _preference(row.fields.get("preference"), row.where)
        annotator = str(row.fields.get("annotator", ""))
        served_model = None if served is None else str(served)
        found.append(Annotation(Pair(index, *texts), generators, preference, annotator, served_model))
    refuse_repeated([annotation.pair.instruction for annotation in found], file)
    for what, names in (
        ("baselines", {a.generators[0] for a in found}),
        ("models", {a.generators[1] for a in found}),
        ("judges", {a.annotator for a in found}),
    ):
        if len(names) > 1:
            raise InputError(f"{file}: has {len(names)} {what} ({', '.join(sorted(names))}), expected one")
    return found


def _preference(value: Any, where: str) -> float | None:
    """Read a preference. AlpacaEval writes 0 for a draw in old files, and -1 if a verdict could not be read."""
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
    """Return the annotations with their indices among the baseline's answers, in that order.

    Raises:
        InputError: If the annotations have other questions than the baseline, or other answers of the baseline.
    """
    index_of = {output.instruction: index for index, output in enumerate(baseline)}
    found = []
    for annotation in annotations:
        index = index_of.get(annotation.pair.instruction)
        if index is None:
            raise InputError(f"{file}: has an instruction that is not in {baseline_file}, expected the same ones")
        if annotation.pair.output_1 != baseline[index].output:
            raise InputError(f"{file}: output_1 of instruction {index} is not the answer in {baseline_file}")
        found.append(annotation._replace(pair=replace(annotation.pair, index=index)))
    return sorted(found, key=lambda annotation: annotation.pair.index)


def refuse_other_answers(annotations: Sequence[Annotation], outputs: Sequence[Output], file: Path, of: Path) -> None:
    """Raise an InputError if a judged answer is not the one in the file `of`."""
    answers = {output.instruction: output.output for output in outputs}
    for number, annotation in enumerate(annotations, start=1):
        if answers.get(annotation.pair.instruction) != annotation.pair.output_2:
            raise InputError(f"{file}, row {number}: output_2 is not the answer in {of}")


def write_annotations(file: Path, annotations: Sequence[Annotation], extras: Sequence[Mapping[str, Any]]) -> None:
    """Write preferences in AlpacaEval's form, which its own program reads, with further fields of each."""
    rows = [
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
    ]
    write_json(file, rows, PRIVATE)
