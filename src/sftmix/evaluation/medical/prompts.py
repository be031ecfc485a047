"""Build BioMistral's few-shot prompts. A prompt depends only on its question, its benchmark and the round.

A prompt is an instruction and a list of items: an optional context, a question, lettered options, and the letter of the
answer after an opening bracket. The last item ends with the bracket, and the next letter is scored. Shots are drawn by
(benchmark, round, question), so neither a limit, nor the order, nor the number of processes changes a prompt.
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
    """A finished prompt."""

    id: str
    text: str  # Text up to and including the bracket before the letter
    letters: tuple[str, ...]  # Letters of the options
    answer: int  # Index of the right option
    shots: tuple[str, ...]  # Ids of the shots
    num_cut_shots: int = 0  # Number of first shots that were left out because the prompt was too long
    num_cut_words: int = 0  # Number of first words of the context that were left out
    fits: bool = True  # Whether the question with its options fits the model

    @property
    def sha256(self) -> str:
        """Hash of the text and the letters."""
        return hashlib.sha256("\0".join((self.text, *self.letters)).encode()).hexdigest()


def draw_shots(benchmark: str, round: int, question: str, pool: Sequence[Item], num_shots: int) -> list[Item]:
    """Draw the shots of a question in a round.

    Args:
        pool: Items that may be shots, in the order of their ids.

    Raises:
        InputError: If the pool has fewer items than shots.
    """
    if len(pool) < num_shots:
        raise InputError(f"suite.num_shots={num_shots}: {benchmark} has {len(pool)} rows that may be shots")
    return Random(f"{benchmark}/{round}/{question}").sample(pool, num_shots)


def prompt_text(item: Item, shots: Sequence[Item], as_chat: Callable[[str], str] | None = None) -> str:
    """Return the shots and the question as text. `as_chat` renders them as a message of the user."""
    solved = (f"{_question(shot)}{BETWEEN}{ANSWER}{LETTERS[shot.answer]}" for shot in shots)
    asked = BETWEEN.join([INSTRUCTION, *solved, _question(item)])
    return f"{asked}{BETWEEN}{ANSWER}" if as_chat is None else as_chat(asked) + ANSWER


def finished_prompt(
    item: Item,
    shots: Sequence[Item],
    *,
    num_tokens: Callable[[str], int],
    max_tokens: int,
    as_chat: Callable[[str], str] | None = None,
) -> MedicalPrompt:
    """Return the prompt of a question. If it is too long, leave out first shots, then the beginning of the context.

    Args:
        num_tokens: Number of tokens of a prompt as the model reads it.
        max_tokens: Number of tokens that the model can read.
    """

    def fits(text: str) -> bool:
        return num_tokens(text) <= max_tokens

    def without_words(number: int) -> str:
        return prompt_text(item._replace(context=" ".join(words[number:]) or None), (), as_chat)

    letters = tuple(LETTERS[: len(item.options)])
    for num_cut in range(len(shots) + 1):
        text = prompt_text(item, shots[num_cut:], as_chat)
        if fits(text):
            ids = tuple(shot.id for shot in shots[num_cut:])
            return MedicalPrompt(item.id, text, letters, item.answer, ids, num_cut)
    words = item.context.split() if item.context else []
    too_few, enough = (
        0,
        len(words),
    )  # bounds of the number of words to leave out
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if fits(without_words(middle)) else (middle, enough)
    text = without_words(enough)
    return MedicalPrompt(item.id, text, letters, item.answer, (), len(shots), enough, fits(text))


def _question(item: Item) -> str:
    options = (f"({letter}) {option}" for letter, option in zip(LETTERS, item.options, strict=False))
    context = [] if item.context is None else [item.context]
    return BETWEEN.join([*context, f"**Question:** {item.question}", *options])
