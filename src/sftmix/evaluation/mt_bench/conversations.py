"""A model's two answers to each question, once a round: the second turn sees the answer to the first."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.data.example import Message
from sftmix.evaluation.generators.answering import Answer, Generator, Prompt, answer_all, kept_answers
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.mt_bench.questions import Question


class Conversation(NamedTuple):
    """The two answers to a question in a round, which is counted from 1."""

    question: Question
    round: int
    answers: tuple[Answer, Answer]

    @property
    def texts(self) -> tuple[str, str]:
        """The texts of the answers."""
        return self.answers[0].text, self.answers[1].text

    @property
    def judged_texts(self) -> tuple[str, str]:
        """The texts that the judge sees: without the reasoning before an answer."""
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
    """Return the conversations of all rounds, by round and question; answers in the folder are not asked for again."""

    def answer(prompts: list[Prompt], title: str) -> list[Answer]:
        return answer_all(prompts, generator, folder, title=title, show_progress=show_progress)

    found = _converse(questions, rounds, max_new_tokens, answer)
    return [one for one in found if isinstance(one, Conversation)]


def kept_conversations(
    questions: Sequence[Question], known: Mapping[str, object], folder: Path, *, rounds: int, max_new_tokens: int
) -> list[Conversation | tuple[Question, int]]:
    """Return the conversations that a folder holds, as `converse` does; question and round of those that it lacks.

    Args:
        known: The known part of the generator's settings.
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
    begun = {pair: said for pair, said in zip(asked, first, strict=True) if said is not None}
    second = answer([_prompt(*pair, [said.text], max_new_tokens) for pair, said in begun.items()], "turn 2")
    whole = {pair: (begun[pair], said) for pair, said in zip(begun, second, strict=True) if said is not None}
    return [Conversation(*pair, whole[pair]) if pair in whole else pair for pair in asked]


def _prompt(question: Question, round: int, said: Sequence[str], max_new_tokens: int) -> Prompt:
    turns = []
    for text, answer in zip(question.turns, said, strict=False):
        turns += [Message("user", text), Message("assistant", answer)]
    turns.append(Message("user", question.turns[len(said)]))
    return Prompt(str(question.id), len(said) + 1, round, tuple(turns), question.temperature, max_new_tokens)
