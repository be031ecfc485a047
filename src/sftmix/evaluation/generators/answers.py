"""The answers of a model to a suite's prompts: each is kept once it is there, and asked for once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import fingerprint
from sftmix.artifacts.manifest import read_json
from sftmix.errors import InputError
from sftmix.evaluation.generators.conversation import Answer, Prompt
from sftmix.evaluation.judge.journal import Journal, open_journal
from sftmix.training.progress import progress_bar, teller


class Generator(Protocol):
    """Who answers."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that an answer depends on beside the prompt, as JSON takes it."""

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """The place of each among the prompts, and its answer, as they are finished.

        Args:
            prompts: what is asked.
            tell: takes words on how far the answers under way are.
        """


def answer_all(
    prompts: Sequence[Prompt], generator: Generator, folder: Path, *, title: str, show_progress: bool
) -> list[Answer]:
    """The answers in the order of the prompts; those that a folder holds are not asked for again.

    They are in `answers-<8 hex>.jsonl`; `answers-<8 hex>.json` says which settings the digits stand for. A prompt of
    other content is another one, also under the same id.

    Args:
        prompts: what is asked.
        generator: who answers what is missing.
        folder: of the answers.
        title: of the progress bar.
        show_progress: whether there is one.

    Raises:
        InputError: another process writes the same answers, what is there are none, or a server has another model now
            than the one that gave them.
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
    """The answers that a folder holds to prompts, in their order, or None: nobody is asked, and no model is needed.

    Args:
        prompts: what would be asked.
        known: what is known of the settings of who would answer; answers of other ones are not taken.
        folder: of the answers.

    Raises:
        InputError: another process writes the answers, or what is there are none.
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
    """The share of answers that were cut by length; a large one is the usual sign of a wrong chat template."""
    return sum(answer.finish == "length" for answer in answers) / len(answers) if answers else 0.0


def _key(prompt: Prompt) -> str:
    content = [[list(turn) for turn in prompt.turns], float(prompt.temperature), prompt.max_new_tokens]
    return f"{prompt.key}/{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def _refuse_other(journal: Journal, answer: Answer) -> None:
    """Refuse an answer of another served model than those that are kept: a server's name for it may stay the same."""
    if answer.served_model is None:
        return
    first = next((one["served_model"] for one in journal if one.get("served_model")), None)
    if first not in (None, answer.served_model):
        raise InputError(
            f"the server runs model {answer.served_model} now, but {journal.file} holds answers of {first}; "
            "have that model served again, or move that file away"
        )


def _read(journal: Journal, key: str) -> Answer:
    return Answer(**{name: value for name, value in journal[key].items() if name != "key"})


_TYPES = {"text": str, "finish": str, "num_tokens": int, "prompt_sha256": str, "num_dropped_turns": int}


def _why_no_answer(record: Mapping[str, Any]) -> str | None:
    """Return why a line of a journal is not an answer, or None."""
    unknown = record.keys() - {"key", *Answer._fields}
    if unknown:
        return f"{min(unknown)} is not a field of an answer"
    for name in Answer._fields:
        value = record.get(name, Answer._field_defaults.get(name))
        is_optional = value is None and name in Answer._field_defaults
        if not is_optional and type(value) is not _TYPES.get(name, str):
            return f"{name} is not a {'text' if _TYPES.get(name, str) is str else 'whole number'}"
    return None
