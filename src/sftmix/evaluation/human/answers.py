"""The answers that people compare: of a run, a Hugging Face folder or a hub id, which answers now, or of a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.embedded import embedded_baseline
from sftmix.evaluation.alpaca_eval.outputs import read_outputs
from sftmix.evaluation.alpaca_eval.questions import BASELINE
from sftmix.evaluation.generators.answering import Prompt, answer_all
from sftmix.evaluation.human.annotator_page import Comparison
from sftmix.evaluation.published import locate
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import find_target

NAME, NUM_INSTRUCTIONS = "vicuna", 80
TEMPERATURE = 0.0  # the paper does not say; people compare one answer of each


class ModelAnswers(NamedTuple):
    """The name of a model, and its answer by instruction."""

    name: str
    outputs: Mapping[str, str]


class Side(NamedTuple):
    """One of the two models: the answers of a file, or the session of the model that answers."""

    given: ModelAnswers | None
    session: Session | None


def sides_of(session: Session) -> list[Side]:
    """Return both models that `a=` and `b=` name. A name in .json is a file of answers in AlpacaEval's form."""
    config, sides = session.config, []
    for key, named in (("a", config.a), ("b", config.b)):
        assert named is not None
        if Path(named).suffix == ".json":
            sides.append(Side(read_answers(Path(named), key), None))
        else:
            model = Session(config, find_target(named, None, Path(config.root), key))
            model.check_answering()
            sides.append(Side(None, model))
    return sides


def asks_embedded(session: Session, sides: Sequence[Side]) -> bool:
    """Return whether embedded instructions are judged: if requested, or if both models know nothing else."""
    return session.is_demo or all(side.session is not None and side.session.is_demo for side in sides)


def instructions_of(session: Session, sides: Sequence[Side]) -> list[str]:
    """Return the instructions that are judged; embedded ones are those that a file answers, if there is a file."""
    if not asks_embedded(session, sides):
        instructions = read_vicuna(locate(BASELINE, session.bench, session.cache))
    elif (given := next((side.given for side in sides if side.given is not None), None)) is not None:
        instructions = list(given.outputs)
    else:
        instructions = [output.instruction for output in embedded_baseline()]
    return instructions[: session.config.limit]


def answers_of(side: Side, instructions: Sequence[str], max_new_tokens: int) -> ModelAnswers:
    """Return the answers of one model, which answers what it has not answered before."""
    if side.given is not None:
        return side.given
    session = side.session
    assert session is not None
    prompts = [
        Prompt(str(number), 1, 1, (Message("user", instruction),), TEMPERATURE, max_new_tokens)
        for number, instruction in enumerate(instructions)
    ]
    name, show_progress = session.target.name, session.config.progress_bar
    folder = session.folder("human")
    answers = answer_all(prompts, session.generator, folder, title=f"answers of {name}", show_progress=show_progress)
    session.close()  # room for the other model
    cut = sum(answer.finish == "length" for answer in answers)
    print(f"{name}: {len(answers)} answers, {cut} cut by length", flush=True)
    return ModelAnswers(name, {i: a.text for i, a in zip(instructions, answers, strict=True)})


def read_vicuna(file: Path) -> list[str]:
    """Return the 80 instructions of Vicuna, in the order of AlpacaEval's file, or raise an InputError."""
    found = [output.instruction for output in read_outputs(file) if output.dataset == NAME]
    if len(found) != NUM_INSTRUCTIONS:
        raise InputError(
            f"{file}: {len(found)} instructions whose dataset is {NAME}, expected the {NUM_INSTRUCTIONS} of "
            "AlpacaEval's own file"
        )
    return found


def read_answers(file: Path, key: str) -> ModelAnswers:
    """Return the answers of a file in AlpacaEval's form, under the name of their generator or of the file.

    Raises:
        InputError: If the file has another form, or answers an instruction twice.
    """
    try:
        outputs = read_outputs(file)
    except InputError as error:
        raise InputError(f"{key}={error}") from None
    names = {output.generator for output in outputs}
    name = names.pop() if len(names) == 1 else ""
    return ModelAnswers(name if name.strip() else file.stem, {output.instruction: output.output for output in outputs})


def pair_answers(instructions: Sequence[str], a: ModelAnswers, b: ModelAnswers) -> list[Comparison]:
    """Return both answers to each instruction, in order.

    Raises:
        InputError: If an answer is missing, or the two models give the same answers.
    """
    for key, answers in (("a", a), ("b", b)):
        lacking = [i for i in instructions if i not in answers.outputs]
        if lacking:
            first = json.dumps(lacking[0] if len(lacking[0]) <= 60 else lacking[0][:60] + "...")
            raise InputError(
                f"{key}: {answers.name} does not answer {len(lacking)} of {len(instructions)} instructions, "
                f"the first is {first}"
            )
    pairs = [Comparison(i, a.outputs[i], b.outputs[i]) for i in instructions]
    if all(pair.a == pair.b for pair in pairs):
        raise InputError(f"a and b: all {len(pairs)} answers of the two are the same, there is nothing to judge")
    return pairs
