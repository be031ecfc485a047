"""From rows to examples: dialogue expansion, duplicates, and the fate of every row."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.example import Example, content_id, place
from sftmix.data.hashes import Hashes
from sftmix.data.shapes import NEEDED, READ, BadRow, Turns, choose_shape, is_whole_text, renamed, turns_of, unread_of
from sftmix.data.sources import Row
from sftmix.errors import InputError

SOURCE_IDS = ("id", "prompt_id")

# What else may happen to a row before it is expanded: its new response and group, or the reason why it is dropped.
Change = Callable[[Turns, str], tuple[Turns, str] | str]


class ExampleReader:
    """Turns rows into examples, in order, with what it has seen so far.

    Args:
        census: takes down what is dropped; `kept` is left to whoever gives the examples their last shape.
        shape: how rows are read; None: as the first row of each source shows.
        columns: the column of each known name that is called otherwise in the source.
        groups: keep rows of these groups alone.
        change: gives a row another response and group, or drops it.

    Attributes:
        shapes: rows of each shape that was found.
        unread: columns of the first rows that nothing here reads.
    """

    def __init__(
        self,
        census: Census,
        *,
        shape: str | None = None,
        columns: Mapping[str, str] | None = None,
        groups: Iterable[str] | None = None,
        change: Change | None = None,
    ) -> None:
        """Nothing is seen yet."""
        self.census = census
        self.shape = shape
        self.columns = columns or {}
        self.groups = None if groups is None else set(groups)
        self.change = change
        self.shapes: Counter[str] = Counter()
        self.unread: set[str] = set()
        self._shape_of: dict[str, str] = {}
        self._missing = dict(self.columns)
        self._seen = Hashes()
        self._source_ids, self._first_contents = Hashes(), Hashes()

    def read(self, rows: Iterable[Row], limit: int | None = None) -> Iterator[list[Example]]:
        """The examples of each row that has any, whole rows together.

        Raises:
            InputError: the first row of a source has no response field, or is no record at all.
        """
        for row in islice(rows, limit):
            examples = self._row(row)
            if examples:
                yield examples

    def check_columns(self) -> None:
        """Refuse a renamed column that no row has had.

        Raises:
            InputError: there is one.
        """
        for name, column in self._missing.items():
            raise InputError(f"data.columns.{name}={column}: no row has such a column")

    def _row(self, row: Row) -> list[Example]:
        where = place(row.source, row.number)
        try:
            turns, group = self._turns(row)
        except BadRow as bad:
            return self._lost(str(bad), where)
        answers = [i for i in range(turns.first_answer, len(turns.messages)) if self._is_answer(turns, i)]
        if not answers:
            return self._lost(reasons.NO_TURN, where)
        self._note(row, turns)
        dialogue = content_id(turns.messages)
        kept, lost = [], ""
        for i in answers:
            messages, response = turns.messages[:i], turns.messages[i].content
            example_id = content_id(messages, response)
            key = int(example_id, 16)
            if not response.strip():
                reason = reasons.EMPTY_RESPONSE
            elif not any(m.content.strip() for m in messages if m.role == "user"):
                reason = reasons.EMPTY_PROMPT
            elif not self._seen.add(key):
                reason = reasons.DUPLICATE
            else:
                kept.append(Example(example_id, messages, response, row.source, row.number, group, dialogue))
                continue
            lost = lost or reason
            self.census.dropped[reason].append(where)
        if not kept:
            self.census.rows["dropped"] += 1
        if not lost:
            return kept
        return [
            Example(e.id, e.messages, e.response, e.source, e.row, e.group, e.dialogue, is_whole=False) for e in kept
        ]

    def _lost(self, reason: str, where: str) -> list[Example]:
        self.census.rows["dropped"] += 1
        self.census.dropped[reason].append(where)
        return []

    def _turns(self, row: Row) -> tuple[Turns, str]:
        """The dialogue of a row, and its group."""
        if row.problem:
            raise BadRow(reasons.OTHER_LENGTH)
        if self._missing and isinstance(row.fields, dict):
            self._missing = {n: column for n, column in self._missing.items() if column not in row.fields}
        fields = renamed(row.fields, self.columns, row.where) if isinstance(row.fields, dict) else row.fields
        shape = self._shape_of.get(row.source)
        if shape is None:
            shape = self._shape_of[row.source] = choose_shape(fields, self.shape, row.where)
            self.unread |= {str(name) for name in fields} - READ - set(NEEDED[shape])
        turns = turns_of(fields, shape)
        turns = turns._replace(unread=unread_of(fields, shape))
        self.shapes[shape] += 1
        group = _group(fields)
        if self.change is not None:
            changed = self.change(turns, group)
            if isinstance(changed, str):
                raise BadRow(changed)
            turns, group = changed
        if self.groups is not None and group not in self.groups:
            raise BadRow(reasons.OTHER_GROUP)
        return turns, group

    @staticmethod
    def _is_answer(turns: Turns, i: int) -> bool:
        """Whether a turn is learnt: an assistant's with a user's before it."""
        before = turns.messages[:i]
        return turns.messages[i].role == "assistant" and any(m.role == "user" for m in before)

    def _note(self, row: Row, turns: Turns) -> None:
        """Take down what is unusual about a dialogue and changes nothing."""
        roles = [m.role for m in turns.messages if m.role != "system"]
        if turns.lost_system:
            self.census.noted[reasons.SYSTEM_TWICE] += 1
        if len(turns.messages) > 2:
            notes = {
                reasons.ENDS_WITH_USER: roles[-1] == "user",
                reasons.ASSISTANT_FIRST: roles[0] == "assistant",
                reasons.NOT_ALTERNATING: any(a == b for a, b in pairwise(roles)),
                reasons.EMPTY_TURN: any(not m.content.strip() for m in turns.messages[:-1]),
            }
            for note, holds in notes.items():
                if holds:
                    self.census.noted[note] += 1
        for note in turns.unread:
            self.census.noted[note] += 1
        if not self._is_first_of_its_id(row, turns):
            self.census.noted[reasons.SAME_SOURCE_ID] += 1

    def _is_first_of_its_id(self, row: Row, turns: Turns) -> bool:
        """Whether no earlier row of the source has the row's id with other content."""
        source_id = next((text for name in SOURCE_IDS if (text := _id_text(row.fields.get(name)))), None)
        if source_id is None:
            return True
        content = hash((row.source, source_id, turns.messages))
        if self._source_ids.add(hash((row.source, source_id))):
            self._first_contents.add(content)
        return content in self._first_contents


def _id_text(value: Any) -> str:
    """An id as text, a number that was read as a float (a column with gaps) as a whole one; empty where it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, (str, int)) else ""


def _group(fields: Mapping[str, Any]) -> str:
    value = fields.get("group")
    group = "" if value is None else str(value)
    return group if is_whole_text(group) else ""


def examples_from_rows(rows: Iterable[Row], census: Census, limit: int | None = None) -> list[Example]:
    """The examples of a small source, all in memory, in file order.

    Raises:
        InputError: as `ExampleReader.read`.
    """
    return [example for examples in ExampleReader(census).read(rows, limit) for example in examples]
