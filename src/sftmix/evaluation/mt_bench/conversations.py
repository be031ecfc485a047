"""A model's two answers to each question, once a round: the second turn sees what the model said in the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.evaluation.generators.conversation import Answer, Prompt, Turn
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.mt_bench.questions import Question

if TYPE_CHECKING:
    from sftmix.evaluation.generators.answers import Generator


class Conversation(NamedTuple):
    """The answers to a question in a round.

    Attributes:
        question: what was asked.
        round: counted from 1.
        answers: one a turn.
    """

    question: Question
    round: int
    answers: tuple[Answer, Answer]

    @property
    def texts(self) -> tuple[str, str]:
        """What the model said."""
        return self.answers[0].text, self.answers[1].text

    @property
    def judged_texts(self) -> tuple[str, str]:
        """What the judge sees of the answers: without the reasoning before an answer."""
        return answer_of(self.answers[0].text), answer_of(self.answers[1].text)


def converse(
    questions: Sequence[Question],
    generator: "Generator",
    folder: Path,
    *,
    rounds: int,
    max_new_tokens: int,
    show_progress: bool,
) -> list[Conversation]:
    """The conversations of all rounds, by round and question; answers that the folder holds are not asked for again.

    Args:
        questions: what is asked.
        generator: who answers.
        folder: keeps the answers.
        rounds: how often each question is asked.
        max_new_tokens: of an answer.
        show_progress: whether there are progress bars.

    Raises:
        InputError: another process writes the same answers.
    """
    from sftmix.evaluation.generators.answers import answer_all

    asked = _asked(questions, rounds)
    first = answer_all(
        [_prompt(question, round, [], max_new_tokens) for question, round in asked],
        generator,
        folder,
        title="turn 1",
        show_progress=show_progress,
    )
    second = answer_all(
        [_prompt(*pair, [answer.text], max_new_tokens) for pair, answer in zip(asked, first, strict=True)],
        generator,
        folder,
        title="turn 2",
        show_progress=show_progress,
    )
    return [Conversation(*pair, both) for pair, both in zip(asked, zip(first, second, strict=True), strict=True)]


def kept_conversations(
    questions: Sequence[Question], known: Mapping[str, Any], folder: Path, *, rounds: int, max_new_tokens: int
) -> list[Conversation | tuple[Question, int]]:
    """The conversations that a folder holds, as `converse` gives them; question and round where it holds none.

    Args:
        questions: what would be asked.
        known: what is known of the settings of who would answer.
        folder: keeps the answers.
        rounds: how often each question would be asked.
        max_new_tokens: of an answer.

    Raises:
        InputError: another process writes the answers.
    """
    from sftmix.evaluation.generators.answers import kept_answers

    asked = _asked(questions, rounds)
    first = kept_answers([_prompt(*pair, [], max_new_tokens) for pair in asked], known, folder)
    begun = {pair: answer for pair, answer in zip(asked, first, strict=True) if answer is not None}
    second = kept_answers(
        [_prompt(*pair, [answer.text], max_new_tokens) for pair, answer in begun.items()], known, folder
    )
    whole = {pair: (begun[pair], answer) for pair, answer in zip(begun, second, strict=True) if answer is not None}
    return [Conversation(*pair, whole[pair]) if pair in whole else pair for pair in asked]


def _asked(questions: Sequence[Question], rounds: int) -> list[tuple[Question, int]]:
    return [(question, round) for round in range(1, rounds + 1) for question in questions]


def _prompt(question: Question, round: int, said: Sequence[str], max_new_tokens: int) -> Prompt:
    turns = []
    for text, answer in zip(question.turns, said, strict=False):
        turns += [Turn("user", text), Turn("assistant", answer)]
    turns.append(Turn("user", question.turns[len(said)]))
    return Prompt(str(question.id), len(said) + 1, round, tuple(turns), question.temperature, max_new_tokens)
