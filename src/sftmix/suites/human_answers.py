"""Whose answers people judge: of a run, a Hugging Face folder or a hub id, which answers now, or those of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.evaluation.alpaca_eval.files import BASELINE, find_file
from sftmix.evaluation.conversation import Prompt, Turn
from sftmix.evaluation.human.vicuna import Answers, read_answers, read_vicuna
from sftmix.suites.subject import find_subject
from sftmix.suites.work import Work

TEMPERATURE = 0.0  # the paper does not say; people compare one answer of each


class Side(NamedTuple):
    """One of the two.

    Attributes:
        given: answers of a file, or None.
        work: the model that answers, or None.
    """

    given: Answers | None
    work: Work | None


def sides_of(work: Work) -> list[Side]:
    """Both, as `a=` and `b=` name them: a file of answers in AlpacaEval's form ends in .json, all else is a model.

    Raises:
        InputError: there is no such model, or a file cannot be read.
    """
    config, sides = work.config, []
    for key, named in (("a", config.a), ("b", config.b)):
        assert named is not None
        if Path(named).suffix == ".json":
            sides.append(Side(read_answers(Path(named), key), None))
        else:
            model = Work(config, find_subject(named, None, Path(config.root), key))
            model.check_answering()
            sides.append(Side(None, model))
    return sides


def asks_embedded(work: Work, sides: Sequence[Side]) -> bool:
    """Whether embedded instructions are judged: where they are wanted, or both models know nothing else."""
    return work.is_demo or all(side.work is not None and side.work.is_demo for side in sides)


def instructions_of(work: Work, sides: Sequence[Side]) -> list[str]:
    """The instructions that are judged; embedded ones are those that a file answers, where one is given.

    Raises:
        InputError: the file that has those of Vicuna is lacking or wrong.
    """
    if not asks_embedded(work, sides):
        instructions = read_vicuna(find_file(BASELINE, work.bench, work.cache))
    elif (given := next((side.given for side in sides if side.given is not None), None)) is not None:
        instructions = list(given.outputs)
    else:
        from sftmix.evaluation.alpaca_eval.embedded import embedded_baseline

        instructions = [output.instruction for output in embedded_baseline()]
    return instructions[: work.config.limit]


def answers_of(side: Side, instructions: Sequence[str], max_new_tokens: int) -> Answers:
    """What one of the two answers; a model answers what it has not answered before.

    Raises:
        InputError: the model cannot be read, or cannot answer.
    """
    if side.given is not None:
        return side.given
    assert side.work is not None
    from sftmix.evaluation.answers import answer_all

    prompts = [
        Prompt(str(number), 1, 1, (Turn("user", instruction),), TEMPERATURE, max_new_tokens)
        for number, instruction in enumerate(instructions)
    ]
    work = side.work
    answers = answer_all(
        prompts,
        work.generator,
        work.folder("human"),
        title=f"answers of {work.subject.name}",
        show_progress=work.config.progress_bar,
    )
    cut = sum(answer.finish == "length" for answer in answers)
    print(f"{work.subject.name}: {len(answers)} answers, {cut} cut by length", flush=True)
    return Answers(work.subject.name, {i: a.text for i, a in zip(instructions, answers, strict=True)})
