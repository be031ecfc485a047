"""The 80 instructions of Vicuna within AlpacaEval, and two models' answers to them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.bench import Published

NAME, NUM_INSTRUCTIONS = "vicuna", 80
BASELINE = Published(
    "alpaca_eval/gpt4_1106_preview_outputs.json",
    "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/main/results/gpt4_1106_preview/model_outputs.json",
)


class Answers(NamedTuple):
    """What a model answered.

    Attributes:
        name: the model's.
        outputs: its answer by instruction.
    """

    name: str
    outputs: Mapping[str, str]


class Pair(NamedTuple):
    """An instruction and two models' answers to it."""

    instruction: str
    a: str
    b: str


def read_vicuna(file: Path) -> list[str]:
    """The instructions of Vicuna, in the order of AlpacaEval's file of the baseline's answers.

    Raises:
        InputError: it is no such file, or does not have the 80.
    """
    rows = _read_rows(file, str(file), ("instruction", "output", "dataset"))
    found = [row["instruction"] for row in rows if row["dataset"] == NAME]
    if len(found) != NUM_INSTRUCTIONS or len(set(found)) != NUM_INSTRUCTIONS:
        raise InputError(
            f"{file}: {len(set(found))} instructions whose dataset is {NAME}, expected the {NUM_INSTRUCTIONS} of "
            "AlpacaEval's own file"
        )
    return found


def read_answers(file: Path, key: str) -> Answers:
    """The answers of a file in AlpacaEval's form: a JSON list of `instruction`, `output` and, if given, `generator`.

    Args:
        file: where they are.
        key: the setting that named it, for messages.

    Raises:
        InputError: it is no such file, or answers an instruction twice.
    """
    rows = _read_rows(file, f"{key}={file}", ("instruction", "output"))
    outputs: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if row["instruction"] in outputs:
            raise InputError(f"{key}={file}, row {number}: the instruction is answered before, expected one answer")
        outputs[row["instruction"]] = row["output"]
    names = {row.get("generator") for row in rows}
    name = names.pop() if len(names) == 1 else None
    return Answers(name if isinstance(name, str) and name.strip() else file.stem, outputs)


def pair_answers(instructions: Sequence[str], a: Answers, b: Answers) -> list[Pair]:
    """Both answers to each instruction, in order.

    Raises:
        InputError: one is missing, or the two answer everything alike.
    """
    for key, answers in (("a", a), ("b", b)):
        lacking = [i for i in instructions if i not in answers.outputs]
        if lacking:
            raise InputError(
                f"{key}: {answers.name} does not answer {len(lacking)} of {len(instructions)} instructions, "
                f"the first is {_short(lacking[0])}"
            )
    pairs = [Pair(i, a.outputs[i], b.outputs[i]) for i in instructions]
    if all(pair.a == pair.b for pair in pairs):
        raise InputError(f"a and b: all {len(pairs)} answers of the two are the same, there is nothing to judge")
    return pairs


def _short(text: str, longest: int = 60) -> str:
    return json.dumps(text if len(text) <= longest else text[:longest] + "...")


def _read_rows(file: Path, where: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{where}: no JSON can be read from it ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{where}: expected a JSON list of answers in AlpacaEval's form")
    for number, row in enumerate(rows, start=1):
        lacking = [c for c in columns if not isinstance(row, dict) or not isinstance(row.get(c), str)]
        if lacking:
            raise InputError(f"{where}, row {number}: {', '.join(lacking)} is missing or no text")
    return rows
