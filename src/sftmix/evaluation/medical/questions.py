"""Read the published multiple-choice questions of MedQA, MedMCQA and PubMedQA."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.manifest import read_json
from sftmix.data.rows import Row
from sftmix.errors import InputError
from sftmix.terminal import one_line

LETTERS = "ABCDE"
DECISIONS = ("yes", "no", "maybe")  # PubMedQA's options A, B, C


class Item(NamedTuple):
    """A question with its options."""

    id: str  # Id of the publisher or, without one, a hash of the content. It does not depend on the order of the file
    context: str | None  # Text before the question, or None
    question: str
    options: tuple[str, ...]  # In the order of their letters
    answer: int  # Index of the right option


class Part(NamedTuple):
    """The test or train part of a benchmark: each question once, and the number of removed repeats."""

    rows: list[Item]
    num_repeats: int


def read_medqa(records: Iterable[Row], num_options: int, *, may_repeat: bool = False) -> Part:
    """Return the questions of a MedQA file. Options are an object by letter, or a list of keys and values.

    Args:
        may_repeat: Keep only the first of equal questions. Otherwise a repeated question is an error.

    Raises:
        InputError: If a row lacks a field, has another number of options, or an unknown answer.
    """

    def item_of(record: Row) -> Item:
        fields = record.fields
        given = fields["options"]
        by_letter = given if isinstance(given, dict) else {option["key"]: option["value"] for option in given}
        letters = tuple(LETTERS[:num_options])
        if sorted(by_letter) != list(letters):
            raise InputError(f"{record.where}: options {_listed(by_letter)}, expected {_listed(letters)}")
        answer = _index(fields["answer_idx"], letters, record.where, "answer_idx")
        options = tuple(_text(by_letter[letter]) for letter in letters)
        return Item(_content_id(fields["question"], options), None, _text(fields["question"]), options, answer)

    return _part(records, item_of, may_repeat)


def read_medmcqa(records: Iterable[Row], first: int, *, may_repeat: bool = False) -> Part:
    """Return the questions of a MedMCQA file.

    Args:
        first: Number of the first option in `cop`: 1 in the publisher's JSON lines, 0 in the Parquet files of the hub.

    Raises:
        InputError: If a row lacks a field, or has no right option.
    """

    def item_of(record: Row) -> Item:
        fields = record.fields
        options = tuple(_text(fields[f"op{letter}"]) for letter in "abcd")
        answer = _index(fields["cop"], range(first, first + 4), record.where, "cop")
        return Item(_text(fields["id"]), None, _text(fields["question"]), options, answer)

    return _part(records, item_of, may_repeat)


def read_pubmedqa(labelled: Mapping[str, Any], source: str, test: Path) -> tuple[list[Item], list[Item]]:
    """Return PubMedQA's test questions, and the other labelled questions, which may be shots.

    Both are in the order of the labelled questions, because the file of the test is sorted by answer.

    Args:
        labelled: Questions by PubMed id, as in `ori_pqal.json`.
        test: `test_ground_truth.json`, the right answers of the test by PubMed id.

    Raises:
        InputError: If a file has another form, or the two contradict each other.
    """
    truth = json_object(test)
    items = {}
    for name, fields in labelled.items():
        where = f"{source}, {one_line(name)}"
        try:
            context = "\n".join(_text(part) for part in fields["CONTEXTS"])
            answer = _index(fields["final_decision"], DECISIONS, where, "final_decision")
            items[name] = Item(name, context, _text(fields["QUESTION"]), DECISIONS, answer)
        except (KeyError, TypeError) as error:
            raise _not_as_published(where, error) from None
    for name, decision in truth.items():
        if name not in items:
            raise InputError(f"{test}: {one_line(name)} is not a question of {source}")
        if DECISIONS[items[name].answer] != decision:
            raise InputError(f"{test}, {one_line(name)}: {one_line(decision)} contradicts {source}")
    return [r for name, r in items.items() if name in truth], [r for name, r in items.items() if name not in truth]


def json_object(file: Path) -> dict[str, Any]:
    """Return the content of a file of PubMedQA; raise an InputError if it is not a JSON object."""
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: {type(content).__name__}, expected an object with questions by PubMed id")
    return content


def pubmedqa_by_id(records: Iterable[Row]) -> dict[str, Any]:
    """Return the hub's rows of labelled questions in the form of `ori_pqal.json`.

    Raises:
        InputError: If a row lacks a field, or its id is repeated.
    """
    found: dict[str, Any] = {}
    for record in records:
        try:
            fields = record.fields
            name = str(fields["pubid"])
            question = {
                "QUESTION": fields["question"],
                "CONTEXTS": fields["context"]["contexts"],
                "final_decision": fields["final_decision"],
            }
        except (KeyError, TypeError) as error:
            raise _not_as_published(record.where, error) from None
        if name in found:
            raise InputError(f"{record.where}: question {one_line(name)} is repeated")
        found[name] = question
    return found


def rows_sha256(items: Iterable[Item]) -> str:
    """Return a hash of questions in their order. A file and the hub give the same hash."""
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()


def without_those_of(items: Sequence[Item], test: Sequence[Item]) -> list[Item]:
    """Return the items whose content is not that of a test question."""
    taken = {_content_id(item.question, sorted(item.options)) for item in test}
    return [item for item in items if _content_id(item.question, sorted(item.options)) not in taken]


def _part(records: Iterable[Row], item_of: Callable[[Row], Item], may_repeat: bool) -> Part:
    items: dict[str, Item] = {}
    num_repeats = 0
    for record in records:
        try:
            item = item_of(record)
        except (KeyError, TypeError) as error:
            raise _not_as_published(record.where, error) from None
        if item.id not in items:
            items[item.id] = item
        elif may_repeat:
            num_repeats += 1
        else:
            raise InputError(f"{record.where}: question {one_line(item.id)} is repeated")
    return Part(list(items.values()), num_repeats)


def _content_id(question: str, options: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([question, *options]).encode()).hexdigest()[:12]


def _index(value: Any, values: Sequence[Any], where: str, field: str) -> int:
    if isinstance(value, bool) or value not in values:
        raise InputError(f"{where}: {field} is {one_line(value)}, expected one of {_listed(values)}")
    return values.index(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a text")
    return value


def _listed(values: Any) -> str:
    return ", ".join(one_line(value) for value in values)


def _not_as_published(where: str, error: Exception) -> InputError:
    lacking = f"no field {error}" if isinstance(error, KeyError) else str(error)
    return InputError(f"{where}: {lacking}, expected a question as published")
