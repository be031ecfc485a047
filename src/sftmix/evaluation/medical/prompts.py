"""BioMistral's few-shot prompt, finished before anything scores it: it depends on its question alone.

An instruction, then items one after the other, each a context if there is one, a question, lettered options and the
answer's letter behind an opening bracket. The last item ends with the bracket; the letter is what is scored. Shots are
drawn under a key of (benchmark, round, question), so neither a limit, nor the order of questions, nor the number of
processes changes a prompt.
"""

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.medical.questions import LETTERS, Item

INSTRUCTION = "The following are multiple choice questions (with answers) about medical knowledge."
BETWEEN = " \n "
ANSWER = "**Answer:**("


class MedicalPrompt(NamedTuple):
    """A finished prompt.

    Attributes:
        id: of the question.
        text: as the model sees it, up to the bracket before the letter.
        letters: the choices.
        answer: place of the right one, counted from 0.
        shots: ids of the questions that stand before.
        num_cut_shots: shots left out because the prompt would not fit, from the first.
        num_cut_words: words left out of the beginning of the context.
        fits: False where the question with its options alone is too long.
    """

    id: str
    text: str
    letters: tuple[str, ...]
    answer: int
    shots: tuple[str, ...]
    num_cut_shots: int = 0
    num_cut_words: int = 0
    fits: bool = True

    @property
    def sha256(self) -> str:
        """Of its text and choices."""
        return hashlib.sha256("\0".join((self.text, *self.letters)).encode()).hexdigest()


def draw_shots(benchmark: str, round: int, question: str, pool: Sequence[Item], num_shots: int) -> list[Item]:
    """The shots of a question in a round.

    Args:
        benchmark: its name.
        round: counted from 1.
        question: its id.
        pool: rows that may be shots, in the order of their ids.
        num_shots: how many.

    Raises:
        InputError: there are not that many.
    """
    if len(pool) < num_shots:
        raise InputError(f"suite.num_shots={num_shots}: {benchmark} has {len(pool)} rows that may be shots")
    return Random(f"{benchmark}/{round}/{question}").sample(pool, num_shots)


def prompt_text(row: Item, shots: Sequence[Item], as_chat: Callable[[str], str] | None = None) -> str:
    """A question behind its shots.

    Args:
        row: the question.
        shots: questions with their answers, in this order.
        as_chat: renders a user's message, up to where the answer begins; None: no chat template.
    """
    asked = BETWEEN.join([INSTRUCTION, *(_item(shot, LETTERS[shot.answer]) for shot in shots), _question(row)])
    return f"{asked}{BETWEEN}{ANSWER}" if as_chat is None else as_chat(asked) + ANSWER


def finished_prompt(
    row: Item,
    shots: Sequence[Item],
    *,
    num_tokens: Callable[[str], int],
    max_tokens: int,
    as_chat: Callable[[str], str] | None = None,
) -> MedicalPrompt:
    """The prompt of a question, cut to what a model can read: shots from the first, then the context, nothing else.

    Args:
        row: the question.
        shots: questions with their answers.
        num_tokens: of a prompt as the model reads it.
        max_tokens: that the model can read.
        as_chat: as in `prompt_text`.
    """

    def fits(text: str) -> bool:
        return num_tokens(text) <= max_tokens

    letters = tuple(LETTERS[: len(row.options)])
    for num_cut in range(len(shots) + 1):
        text = prompt_text(row, shots[num_cut:], as_chat)
        if fits(text):
            ids = tuple(shot.id for shot in shots[num_cut:])
            return MedicalPrompt(row.id, text, letters, row.answer, ids, num_cut)
    words = row.context.split() if row.context else []
    too_few, enough = 0, len(words)  # of words left out: the whole context does not fit
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if fits(_without(row, words[middle:], as_chat)) else (middle, enough)
    text = _without(row, words[enough:], as_chat)
    return MedicalPrompt(row.id, text, letters, row.answer, (), len(shots), enough, fits(text))


def _without(row: Item, words: Sequence[str], as_chat: Callable[[str], str] | None) -> str:
    """The prompt with these words of the context alone."""
    return prompt_text(row._replace(context=" ".join(words) or None), (), as_chat)


def _question(row: Item) -> str:
    options = (f"({letter}) {option}" for letter, option in zip(LETTERS, row.options, strict=False))
    context = [] if row.context is None else [row.context]
    return BETWEEN.join([*context, f"**Question:** {row.question}", *options])


def _item(row: Item, letter: str) -> str:
    return f"{_question(row)}{BETWEEN}{ANSWER}{letter}"
