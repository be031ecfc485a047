"""The 80 instructions of Vicuna within AlpacaEval, and two models' answers to them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.outputs import read_outputs

NAME, NUM_INSTRUCTIONS = "vicuna", 80


class ModelAnswers(NamedTuple):
    """What a model answered.

    Attributes:
        name: the model's.
        outputs: its answer by instruction.
    """

    name: str
    outputs: Mapping[str, str]


class Comparison(NamedTuple):
    """An instruction and two models' answers to it."""

    instruction: str
    a: str
    b: str


def read_vicuna(file: Path) -> list[str]:
    """The instructions of Vicuna, in the order of AlpacaEval's file of the baseline's answers.

    Raises:
        InputError: it is no such file, or does not have the 80.
    """
    found = [output.instruction for output in read_outputs(file) if output.dataset == NAME]
    if len(found) != NUM_INSTRUCTIONS:
        raise InputError(
            f"{file}: {len(found)} instructions whose dataset is {NAME}, expected the {NUM_INSTRUCTIONS} of "
            "AlpacaEval's own file"
        )
    return found


def read_answers(file: Path, key: str) -> ModelAnswers:
    """The answers of a file in AlpacaEval's form, under the name of their generator or of the file.

    Args:
        file: where they are.
        key: the setting that named it, for messages.

    Raises:
        InputError: it is no such file, or answers an instruction twice.
    """
    try:
        outputs = read_outputs(file)
    except InputError as error:
        raise InputError(f"{key}={error}") from None
    names = {output.generator for output in outputs}
    name = names.pop() if len(names) == 1 else ""
    return ModelAnswers(name if name.strip() else file.stem, {output.instruction: output.output for output in outputs})


def pair_answers(instructions: Sequence[str], a: ModelAnswers, b: ModelAnswers) -> list[Comparison]:
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
    pairs = [Comparison(i, a.outputs[i], b.outputs[i]) for i in instructions]
    if all(pair.a == pair.b for pair in pairs):
        raise InputError(f"a and b: all {len(pairs)} answers of the two are the same, there is nothing to judge")
    return pairs


def _short(text: str, longest: int = 60) -> str:
    return json.dumps(text if len(text) <= longest else text[:longest] + "...")
