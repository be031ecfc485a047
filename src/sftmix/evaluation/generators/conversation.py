"""What a model is asked, and what it answers."""

from typing import NamedTuple

ROOM_FOR_ANSWER = 4  # of a model's positions one in so many is kept, where a conversation is too long


class Turn(NamedTuple):
    """One message.

    Attributes:
        role: system, user or assistant.
        content: its text; never a template's special token.
    """

    role: str
    content: str


class Prompt(NamedTuple):
    """A question as a model sees it, and how it is to answer.

    Attributes:
        id: of the question.
        turn: of the conversation, counted from 1.
        round: of the suite, counted from 1: other draws.
        turns: the conversation so far; the last is the user's.
        temperature: 0 is greedy.
        max_new_tokens: at which an answer is cut.
    """

    id: str
    turn: int
    round: int
    turns: tuple[Turn, ...]
    temperature: float
    max_new_tokens: int

    @property
    def key(self) -> str:
        """Names it in a journal."""
        return f"{self.id}/turn {self.turn}/round {self.round}"


class Answer(NamedTuple):
    """What a model answered.

    Attributes:
        text: without special tokens.
        finish: stop (the model ended it) or length (it was cut).
        num_tokens: generated, the end token left out.
        prompt_sha256: of the prompt's token ids (of its text, where a server tokenizes).
        num_dropped_turns: oldest turns left out, because the conversation did not fit the model.
        served_model: what a server said that it ran; None: the model here answered.
        system_fingerprint: of that server, where it has one.
        date: on which a server answered.
    """

    text: str
    finish: str
    num_tokens: int
    prompt_sha256: str
    num_dropped_turns: int = 0
    served_model: str | None = None
    system_fingerprint: str | None = None
    date: str | None = None
