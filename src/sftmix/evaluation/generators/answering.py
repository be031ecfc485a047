"""The answers of a model to a suite's prompts: each answer is kept, and asked for once."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import fingerprint
from sftmix.artifacts.manifest import read_json
from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import Journal, open_journal
from sftmix.training.progress import progress_bar, teller

ROOM_FOR_ANSWER = 4  # of a model's positions one in so many is kept for the answer if a conversation is too long
# <|eot_id|>, <|im_start|> and their like; Mistral's and Llama 2's; Gemma's; the end token of many tokenizers
_SPECIAL = re.compile(r"<\|[^\s<>|]{1,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:eos|bos)>|</s>")


class Prompt(NamedTuple):
    """A question as a model sees it, and how it is to answer."""

    id: str
    turn: int  # Turn of the conversation, counted from 1
    round: int  # Round of the suite, counted from 1: other draws
    turns: tuple[Message, ...]  # The conversation so far; the last message is the user's
    temperature: float  # 0 is greedy
    max_new_tokens: int  # Length at which an answer is cut

    @property
    def key(self) -> str:
        """Name in a journal."""
        return f"{self.id}/turn {self.turn}/round {self.round}"


class Answer(NamedTuple):
    """An answer of a model."""

    text: str  # Without special tokens
    finish: str  # stop (the model ended the answer) or length (it was cut)
    num_tokens: int  # Number of generated tokens without the end token
    prompt_sha256: str  # Hash of the prompt's token ids, or of its text if a server tokenizes
    num_dropped_turns: int = 0  # Number of oldest turns left out, because the conversation did not fit the model
    served_model: str | None = None  # Model that a server names; None if the model in this process answered
    system_fingerprint: str | None = None  # Fingerprint that the server sent
    date: str | None = None  # Date on which a server answered


def seed_of(key: str) -> int:
    """Return a seed of 31 bits, which every engine takes. It depends on the key of a prompt's draws only."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1


class Generator(Protocol):
    """A model in this process or behind a server."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that an answer depends on beside the prompt, as JSON."""

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each prompt and its answer, as they are finished.

        Args:
            tell: Takes words on the progress of the answers.
        """


def answer_all(
    prompts: Sequence[Prompt], generator: Generator, folder: Path, *, title: str, show_progress: bool
) -> list[Answer]:
    """Return the answers in the order of the prompts; answers that the folder holds are not asked for again.

    Answers are in `answers-<8 hex>.jsonl`; `answers-<8 hex>.json` holds the settings of which the digits are the hash.
    A prompt of other content is another prompt, also under the same id.

    Raises:
        InputError: If another process writes the same answers, or a server has another model than the one that gave
            the answers in the folder.
    """
    name = f"answers-{fingerprint(generator.settings)}"
    keys = [_key(prompt) for prompt in prompts]
    with open_journal(folder / f"{name}.jsonl", _why_no_answer) as journal:
        if not (folder / f"{name}.json").is_file():
            write_json(folder / f"{name}.json", dict(generator.settings))
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in journal}
        if missing:
            asked = list(missing)
            with progress_bar(len(asked), title, "answer", hide=not show_progress) as bar:
                for place, answer in generator.generate(list(missing.values()), tell=teller(bar)):
                    _refuse_other(journal, answer)
                    record = {name: value for name, value in answer._asdict().items() if value is not None}
                    journal.append(asked[place], record)
                    bar.update()
        return [_read(journal, key) for key in keys]


def kept_answers(prompts: Sequence[Prompt], known: Mapping[str, Any], folder: Path) -> list[Answer | None]:
    """Return the answers to prompts that a folder holds, in the order of the prompts, or None. No model is needed.

    Args:
        known: The known part of a generator's settings. Answers of other settings are not taken.
    """
    keys = [_key(prompt) for prompt in prompts]
    found: dict[str, Answer] = {}
    for about in sorted(folder.glob("answers-*.json")):
        settings, file = read_json(about), about.with_suffix(".jsonl")
        if file.is_file() and all(name in settings and settings[name] == value for name, value in known.items()):
            with open_journal(file, _why_no_answer) as journal:
                found |= {key: _read(journal, key) for key in keys if key in journal}
    return [found.get(key) for key in keys]


def share_cut(answers: Sequence[Answer]) -> float:
    """Return the share of answers that were cut by length. A large share is the usual sign of a wrong chat template."""
    return sum(answer.finish == "length" for answer in answers) / len(answers) if answers else 0.0


def holds_special(answer: str) -> bool:
    """Return whether an answer holds the text of a chat's control token.

    This is the usual sign of a wrong template, or of a model that does not stop.
    """
    return _SPECIAL.search(answer) is not None


def _key(prompt: Prompt) -> str:
    turns = [[message.role, message.content] for message in prompt.turns]
    content = json.dumps([turns, float(prompt.temperature), prompt.max_new_tokens])
    return f"{prompt.key}/{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _refuse_other(journal: Journal, answer: Answer) -> None:
    """Refuse an answer of another served model than the kept ones: a server may keep its name for another model."""
    if answer.served_model is None:
        return
    first = next((one["served_model"] for one in journal.values() if one.get("served_model")), None)
    if first not in (None, answer.served_model):
        raise InputError(
            f"the server runs model {answer.served_model} now, but {journal.file} holds answers of {first}; "
            "have that model served again, or move that file away"
        )


def _read(journal: Journal, key: str) -> Answer:
    return Answer(**{name: value for name, value in journal[key].items() if name != "key"})


def _why_no_answer(record: Mapping[str, Any]) -> str | None:
    """Return why a line of a journal is not an answer, or None."""
    unknown = record.keys() - {"key", *Answer._fields}
    if unknown:
        return f"{min(unknown)} is not a field of an answer"
    for name in Answer._fields:
        value = record.get(name, Answer._field_defaults.get(name))
        is_optional = value is None and name in Answer._field_defaults
        kind = int if name in ("num_tokens", "num_dropped_turns") else str
        if not is_optional and type(value) is not kind:
            return f"{name} is not a {'text' if kind is str else 'whole number'}"
    return None
