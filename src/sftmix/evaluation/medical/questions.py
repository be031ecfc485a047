"""Multiple-choice questions from the files that MedQA, MedMCQA and PubMedQA publish."""

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
    """A question with its options.

    Attributes:
        id: the publisher's, or of its content where they give none: no order of a file changes it.
        context: what is to be read first, or None.
        question: its text.
        options: in the order of their letters.
        answer: place of the right option, counted from 0.
    """

    id: str
    context: str | None
    question: str
    options: tuple[str, ...]
    answer: int


class Part(NamedTuple):
    """The test or the train part of a benchmark.

    Attributes:
        rows: each question once, in the order of the file.
        num_repeats: rows left out because their question stood before.
    """

    rows: list[Item]
    num_repeats: int


def read_medqa(records: Iterable[Row], num_options: int, *, may_repeat: bool = False) -> Part:
    """The questions of a MedQA file: options by letter as an object, or as a list of key and value.

    Args:
        records: of the file.
        num_options: that each question has.
        may_repeat: keep the first of a repeated question; else it is an error, as it would count twice in a score.

    Raises:
        InputError: a row lacks a field, or has another number of options, or an answer that is none of them.
    """

    def row_of(record: Row) -> Item:
        fields = record.fields
        given = fields["options"]
        by_letter = given if isinstance(given, dict) else {option["key"]: option["value"] for option in given}
        letters = tuple(LETTERS[:num_options])
        if sorted(by_letter) != list(letters):
            raise InputError(f"{record.where}: options {_listed(by_letter)}, expected {_listed(letters)}")
        answer = _place(fields["answer_idx"], letters, record.where, "answer_idx")
        options = tuple(_text(by_letter[letter]) for letter in letters)
        return Item(_content_id(fields["question"], options), None, _text(fields["question"]), options, answer)

    return _part(records, row_of, may_repeat)


def first_option(file: Path) -> int:
    """From what MedMCQA's `cop` counts: 1 in the publishers' JSON lines, 0 in the hub's Parquet (a class label)."""
    return 0 if file.name.lower().endswith(".parquet") else 1


def read_medmcqa(records: Iterable[Row], first: int, *, may_repeat: bool = False) -> Part:
    """The questions of a MedMCQA file.

    Args:
        records: of the file.
        first: from what the right option, `cop`, counts: see `first_option`.
        may_repeat: as in `read_medqa`.

    Raises:
        InputError: a row lacks a field, or has no right option.
    """
    places = range(first, first + 4)

    def row_of(record: Row) -> Item:
        fields = record.fields
        options = tuple(_text(fields[f"op{letter}"]) for letter in "abcd")
        answer = _place(fields["cop"], places, record.where, "cop")
        return Item(_text(fields["id"]), None, _text(fields["question"]), options, answer)

    return _part(records, row_of, may_repeat)


def read_pubmedqa(labelled: Mapping[str, Any], source: str, test: Path) -> tuple[list[Item], list[Item]]:
    """PubMedQA's test rows, and the other labelled ones, which may be shots.

    Both in the order of the labelled questions: the file of the test has all that are answered by yes first, so its
    beginning is no fair part of it.

    Args:
        labelled: questions by PubMed id, as `ori_pqal.json` has them.
        source: where they are from, for messages.
        test: `test_ground_truth.json`, the right answers of the test by PubMed id.

    Raises:
        InputError: they are of another form, or the two contradict each other.
    """
    truth = json_object(test)
    rows = {}
    for name, fields in labelled.items():
        where = f"{source}, {one_line(name)}"
        try:
            context = "\n".join(_text(part) for part in fields["CONTEXTS"])
            answer = _place(fields["final_decision"], DECISIONS, where, "final_decision")
            rows[name] = Item(name, context, _text(fields["QUESTION"]), DECISIONS, answer)
        except (KeyError, TypeError) as error:
            raise _not_as_published(where, error) from None
    for name, decision in truth.items():
        if name not in rows:
            raise InputError(f"{test}: {one_line(name)} is no question of {source}")
        if DECISIONS[rows[name].answer] != decision:
            raise InputError(f"{test}, {one_line(name)}: {one_line(decision)}, but {source} says otherwise")
    return [r for name, r in rows.items() if name in truth], [r for name, r in rows.items() if name not in truth]


def json_object(file: Path) -> dict[str, Any]:
    """The content of one of PubMedQA's files.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: {type(content).__name__}, expected an object with questions by PubMed id")
    return content


def pubmedqa_by_id(records: Iterable[Row]) -> dict[str, Any]:
    """The hub's rows of labelled questions in the form of `ori_pqal.json`.

    Raises:
        InputError: a row lacks a field, or its id stood before.
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
            raise InputError(f"{record.where}: question {one_line(name)} stands twice")
        found[name] = question
    return found


def rows_sha256(rows: Iterable[Item]) -> str:
    """One hash of questions in their order: the same from a file and from the hub."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def without_those_of(rows: Sequence[Item], test: Sequence[Item]) -> list[Item]:
    """The rows that are no question of the test, by their content."""
    taken = {_content_id(row.question, sorted(row.options)) for row in test}
    return [row for row in rows if _content_id(row.question, sorted(row.options)) not in taken]


def _part(records: Iterable[Row], row_of: Callable[[Row], Item], may_repeat: bool) -> Part:
    rows: dict[str, Item] = {}
    num_repeats = 0
    for record in records:
        try:
            row = row_of(record)
        except (KeyError, TypeError) as error:
            raise _not_as_published(record.where, error) from None
        if row.id not in rows:
            rows[row.id] = row
        elif may_repeat:
            num_repeats += 1
        else:
            raise InputError(f"{record.where}: question {one_line(row.id)} stands twice in the file")
    return Part(list(rows.values()), num_repeats)


def _content_id(question: str, options: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([question, *options]).encode()).hexdigest()[:12]


def _place(value: Any, places: Sequence[Any], where: str, field: str) -> int:
    if isinstance(value, bool) or value not in places:
        raise InputError(f"{where}: {field} is {one_line(value)}, expected one of {_listed(places)}")
    return places.index(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in the place of a text")
    return value


def _listed(values: Any) -> str:
    return ", ".join(one_line(value) for value in values)


def _not_as_published(where: str, error: Exception) -> InputError:
    lacking = f"no field {error}" if isinstance(error, KeyError) else str(error)
    return InputError(f"{where}: {lacking}, expected a question as it is published")
