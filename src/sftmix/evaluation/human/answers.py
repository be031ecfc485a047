"""Whose answers people judge: of a run, a Hugging Face folder or a hub id, which answers now, or those of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.evaluation.alpaca_eval.files import BASELINE, find_file
from sftmix.evaluation.generators.conversation import Prompt, Turn
from sftmix.evaluation.human.vicuna import ModelAnswers, read_answers, read_vicuna
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import find_target

TEMPERATURE = 0.0  # the paper does not say; people compare one answer of each


class Side(NamedTuple):
    """One of the two.

    Attributes:
        given: answers of a file, or None.
        session: the model that answers, or None.
    """

    given: ModelAnswers | None
    session: Session | None


def sides_of(session: Session) -> list[Side]:
    """Both, as `a=` and `b=` name them: a file of answers in AlpacaEval's form ends in .json, all else is a model.

    Raises:
        InputError: there is no such model, or a file cannot be read.
    """
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
    """Whether embedded instructions are judged: where they are wanted, or both models know nothing else."""
    return session.is_demo or all(side.session is not None and side.session.is_demo for side in sides)


def instructions_of(session: Session, sides: Sequence[Side]) -> list[str]:
    """The instructions that are judged; embedded ones are those that a file answers, where one is given.

    Raises:
        InputError: the file that has those of Vicuna is lacking or wrong.
    """
    if not asks_embedded(session, sides):
        instructions = read_vicuna(find_file(BASELINE, session.bench, session.cache))
    elif (given := next((side.given for side in sides if side.given is not None), None)) is not None:
        instructions = list(given.outputs)
    else:
        from sftmix.evaluation.alpaca_eval.embedded import embedded_baseline

        instructions = [output.instruction for output in embedded_baseline()]
    return instructions[: session.config.limit]


def answers_of(side: Side, instructions: Sequence[str], max_new_tokens: int) -> ModelAnswers:
    """What one of the two answers; a model answers what it has not answered before.

    Raises:
        InputError: the model cannot be read, or cannot answer.
    """
    if side.given is not None:
        return side.given
    assert side.session is not None
    from sftmix.evaluation.generators.answers import answer_all

    prompts = [
        Prompt(str(number), 1, 1, (Turn("user", instruction),), TEMPERATURE, max_new_tokens)
        for number, instruction in enumerate(instructions)
    ]
    session = side.session
    answers = answer_all(
        prompts,
        session.generator,
        session.folder("human"),
        title=f"answers of {session.target.name}",
        show_progress=session.config.progress_bar,
    )
    cut = sum(answer.finish == "length" for answer in answers)
    print(f"{session.target.name}: {len(answers)} answers, {cut} cut by length", flush=True)
    return ModelAnswers(session.target.name, {i: a.text for i, a in zip(instructions, answers, strict=True)})
