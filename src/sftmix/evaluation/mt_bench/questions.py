"""What is asked in MT-Bench, and the prompts that its judge is given."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# FastChat's: what is to be invented is drawn, what is right or wrong is not
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
NUM_TURNS = 2


class Question(NamedTuple):
    """One question.

    Attributes:
        id: its number, 81 to 160.
        category: one of eight; it sets the temperature of the answers, and whether the judge sees a right one.
        turns: what the user says, first and then.
        reference: a right answer to each turn, where the category wants one.
    """

    id: int
    category: str
    turns: tuple[str, str]
    reference: tuple[str, str] | None

    @property
    def temperature(self) -> float:
        """Of the draws of its answers; 0 is greedy."""
        return TEMPERATURES[self.category]


class JudgePrompt(NamedTuple):
    """A prompt for the judge.

    Attributes:
        name: as it is published: single-v1, single-math-v1-multi-turn.
        system: the first message.
        text: the second, with fields in braces.
    """

    name: str
    system: str
    text: str


class Bench(NamedTuple):
    """Questions, and how their answers are judged.

    Attributes:
        name: of the benchmark.
        questions: by number.
        templates: by name, the four for one answer at a time.
        files: the sha256 of the files they are from, by name.
    """

    name: str
    questions: Sequence[Question]
    templates: Mapping[str, JudgePrompt]
    files: Mapping[str, str]

    @property
    def template_sha256(self) -> str:
        """The hash of the judge's prompts: other words are another judge."""
        return hashlib.sha256(json.dumps(sorted(self.templates.values())).encode()).hexdigest()


def template_name(question: Question, turn: int) -> str:
    """Which prompt the judge is given for an answer of a turn, 1 or 2."""
    kind = "single-math-v1" if question.category in WITH_REFERENCE else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"
