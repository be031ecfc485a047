"""Answers in AlpacaEval's own form, and two models' answers to the same instructions side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import PRIVATE
from sftmix.terminal import counted


class Output(NamedTuple):
    """A model's answer, with the fields of AlpacaEval's files.

    Attributes:
        instruction: what was asked.
        output: the answer.
        generator: the model.
        dataset: where the instruction comes from.
    """

    instruction: str
    output: str
    generator: str
    dataset: str


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction.

    Attributes:
        index: its place among the baseline's, counted from 0.
        instruction: what was asked.
        output_1: the baseline's answer.
        output_2: the model's.
    """

    index: int
    instruction: str
    output_1: str
    output_2: str


def read_records(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list in a file.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{file}: is no JSON ({error})") from None
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{file}: expected a list of objects, one an instruction")
    return records


def text_of(record: dict[str, Any], key: str, file: Path, place: int) -> str:
    """A text of the record at a place of a file, counted from 0.

    Raises:
        InputError: it has none.
    """
    if not isinstance(record.get(key), str):
        raise InputError(f"{file}, record {place}: {key} is {record.get(key)!r}, expected a text")
    return record[key]


def read_outputs(file: Path) -> list[Output]:
    """The answers of a file in AlpacaEval's form.

    Raises:
        InputError: it cannot be read, lacks a text, or has an instruction twice.
    """
    found = []
    for place, record in enumerate(read_records(file)):
        instruction, output = (text_of(record, key, file, place) for key in ("instruction", "output"))
        generator, dataset = (str(record.get(key, "")) for key in ("generator", "dataset"))
        found.append(Output(instruction, output, generator, dataset))
    refuse_repeated([output.instruction for output in found], file)
    return found


def refuse_repeated(instructions: Sequence[str], file: Path) -> None:
    """Answers are joined by instruction, so that one that appears twice has no answer.

    Raises:
        InputError: an instruction appears twice.
    """
    first: dict[str, int] = {}
    for place, instruction in enumerate(instructions):
        if instruction in first:
            raise InputError(f"{file}: records {first[instruction]} and {place} have one instruction, expected others")
        first[instruction] = place


def write_outputs(file: Path, outputs: Sequence[Output]) -> None:
    """Write answers in AlpacaEval's form, which its own program reads."""
    write_json(file, [output._asdict() for output in outputs], PRIVATE)


def paired(baseline: Sequence[Output], outputs: Sequence[Output], file: Path) -> list[Pair]:
    """The two answers to each of the baseline's instructions, in the baseline's order.

    Args:
        baseline: its answers.
        outputs: the model's, in any order.
        file: where these are from, for messages.

    Raises:
        InputError: they are not answers to the same instructions.
    """
    answers = {output.instruction: output.output for output in outputs}
    place_of = {output.instruction: place for place, output in enumerate(baseline)}
    strange = next((o.instruction for o in outputs if o.instruction not in place_of), None)
    if strange is not None:
        raise InputError(f"{file}: answers {_begins(strange)}, which the baseline does not, expected its instructions")
    lacking = [output.instruction for output in baseline if output.instruction not in answers]
    if lacking:
        raise InputError(
            f"{file}: lacks {counted(len(lacking), 'answer')} of {len(baseline):,}, the first to {_begins(lacking[0])}"
        )
    return [Pair(i, b.instruction, b.output, answers[b.instruction]) for i, b in enumerate(baseline)]


def _begins(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else f"{text[:40]}...", ensure_ascii=False)
