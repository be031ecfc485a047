"""Ask a model both turns of each question in each round. The second prompt contains the first answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.data.example import Message
from sftmix.evaluation.generators.answering import Answer, Generator, Prompt, answer_all, kept_answers
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.mt_bench.questions import Question


class Conversation(NamedTuple):
    """The two answers to a question in a round, counted from 1."""

    question: Question
    round: int
    answers: tuple[Answer, Answer]

    @property
    def texts(self) -> tuple[str, str]:
        """The texts of the answers."""
        return self.answers[0].text, self.answers[1].text

    @property
    def judged_texts(self) -> tuple[str, str]:
        """The texts that the judge sees: the answers without their reasoning."""
        return answer_of(self.answers[0].text), answer_of(self.answers[1].text)


def converse(
    questions: Sequence[Question],
    generator: Generator,
    folder: Path,
    *,
    rounds: int,
    max_new_tokens: int,
    show_progress: bool,
) -> list[Conversation]:
    """Return the conversations of all rounds. Answers that the folder already has are not generated again."""

    def answer(prompts: list[Prompt], title: str) -> list[Answer]:
        return answer_all(prompts, generator, folder, title=title, show_progress=show_progress)

    found = _converse(questions, rounds, max_new_tokens, answer)
    return [one for one in found if isinstance(one, Conversation)]


def kept_conversations(
    questions: Sequence[Question], known: Mapping[str, object], folder: Path, *, rounds: int, max_new_tokens: int
) -> list[Conversation | tuple[Question, int]]:
    """Return the conversations that a folder has, and question and round of each missing one, in the same order.

    Args:
        known: Settings of the generator that are known without the model.
    """
    return _converse(questions, rounds, max_new_tokens, lambda prompts, _: kept_answers(prompts, known, folder))


def _converse(
    questions: Sequence[Question],
    rounds: int,
    max_new_tokens: int,
    answer: Callable[[list[Prompt], str], Sequence[Answer | None]],
) -> list[Conversation | tuple[Question, int]]:
    asked = [(question, round) for round in range(1, rounds + 1) for question in questions]
    first = answer([_prompt(*pair, [], max_new_tokens) for pair in asked], "turn 1")
    begun = {pair: turn for pair, turn in zip(asked, first, strict=True) if turn is not None}
    second = answer([_prompt(*pair, [turn.text], max_new_tokens) for pair, turn in begun.items()], "turn 2")
    whole = {pair: (begun[pair], turn) for pair, turn in zip(begun, second, strict=True) if turn is not None}
    return [Conversation(*pair, whole[pair]) if pair in whole else pair for pair in asked]


def _prompt(question: Question, round: int, answers: Sequence[str], max_new_tokens: int) -> Prompt:
    turns = []
    for text, answer in zip(question.turns, answers, strict=False):
        turns += [Message("user", text), Message("assistant", answer)]
    turns.append(Message("user", question.turns[len(answers)]))
    return Prompt(str(question.id), len(answers) + 1, round, tuple(turns), question.temperature, max_new_tokens)
