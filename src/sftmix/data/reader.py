"""From rows to examples: dialogue expansion, duplicates, and the fate of every row."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, groupby, islice, pairwise
from typing import Any

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.error_hints import hint, named, unfit
from sftmix.data.example import Example, content_id, dialogue_id, place
from sftmix.data.hashes import Hashes
from sftmix.data.schemas import (
    NEEDED,
    READ,
    BadRow,
    Turns,
    is_blank,
    is_whole_text,
    renamed,
    shown_shape,
    turns_of,
    unread_of,
)
from sftmix.data.sources import Row, is_table
from sftmix.errors import InputError

SOURCE_IDS = ("id", "prompt_id")
ADVICE = {
    reasons.OTHER_LENGTH: "a text with the delimiter or a quote in it must be quoted",
    reasons.TOO_LARGE: "set data.max_row_mib=N to read larger rows; if it is one object that holds all rows, write "
    "a row a line",
}
LOOKED_AT = 100  # rows of a source, for one that shows a shape

# What else may happen to a row before it is expanded: its new response and group, or the reason why it is dropped.
Change = Callable[[Turns, str], tuple[Turns, str] | str]


class ExampleReader:
    """Turns rows into examples, in order, with what it has seen so far.

    Args:
        census: takes down what is dropped; `kept` is left to whoever gives the examples their last shape.
        shape: how rows are read; None: as the first row of each source that shows a shape.
        columns: the column of each known name that is called otherwise in the source.
        groups: keep rows of these groups alone.
        change: gives a row another response and group, or drops it.

    Attributes:
        shapes: rows that were read, by shape.
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
        self._shape_of: dict[str, str] = {}
        self._columns_of: dict[str, set[str]] = {}
        self._groups: set[str] = set()
        self._seen = Hashes()
        self._source_ids, self._first_contents = Hashes(), Hashes()

    def read(self, rows: Iterable[Row], limit: int | None = None) -> Iterator[list[Example]]:
        """The examples of each row that has any, whole rows together.

        Raises:
            InputError: none of the first rows of a source shows a shape, or one shows several.
        """
        for source, some in groupby(islice(rows, limit), key=lambda row: row.source):
            for row in chain([] if source in self._shape_of else self._first_rows(some), some):
                examples = self._row(row)
                if examples:
                    yield examples

    def _first_rows(self, rows: Iterable[Row]) -> list[Row]:
        """The rows up to the first that shows a shape, which is that of their source."""
        looked: list[Row] = []
        for row in islice(rows, LOOKED_AT):
            looked.append(row)
            shape = None if row.problem else shown_shape(self._renamed(row), self.shape, row.where)
            if shape is not None:
                self._shape_of[row.source] = shape
                return looked
        raise InputError(self._unfit(looked))

    def _unfit(self, looked: list[Row]) -> str:
        """The line for rows of which none shows a shape: of the first that is a record, else of the first."""
        row = next((row for row in looked if isinstance(row.fields, dict) and not row.problem), looked[0])
        if row.problem:
            return f"{row.where}: {row.problem}; {ADVICE[row.reason]}"
        for name, column in self.columns.items():
            if isinstance(row.fields, dict) and column not in row.fields:
                there = f"the fields are {named(row.fields)}"
                return f"{row.where}: no column {column} (data.columns.{name}={column}); {there}"
        meant = hint(row.fields, self.columns, self.shape, is_table=is_table(row.source))
        return f"{row.where}: {unfit(row.fields, self.shape)}" + (f". {meant}" if meant else "")

    @property
    def unread(self) -> set[str]:
        """Columns that nothing here reads."""
        names = {column: name for name, column in self.columns.items()}
        return {
            column
            for source, columns in self._columns_of.items()
            for column in columns
            if names.get(column, column) not in READ.union(NEEDED[self._shape_of[source]])
        }

    def check_settings(self) -> None:
        """Refuse a renamed column that no row has had, and a wanted group that no row is of.

        Raises:
            InputError: there is one.
        """
        there = set[str]().union(*self._columns_of.values())
        for name, column in self.columns.items():
            if column not in there:
                fields = named(sorted(there))
                raise InputError(f"data.columns.{name}={column}: no row has a column {column}; the fields are {fields}")
        lacking = sorted((self.groups or set()) - self._groups)
        there = self._groups - {""}
        if lacking and self._groups and not there:
            column = self.columns.get("group", "group")
            raise InputError(
                f"data.groups: no row has a group in column {column}; 'data.columns={{group: NAME}}' names another"
            )
        if lacking and there:
            raise InputError(f"data.groups: no row is of group {lacking[0]}; there are {named(sorted(there))}")

    def _row(self, row: Row) -> list[Example]:
        where = place(row.source, row.number)
        if row.problem:
            return self._lost(row.reason, f"{where}: {row.problem}")
        try:
            turns, group = self._turns(row)
        except BadRow as bad:
            return self._lost(str(bad), f"{where}: {bad.detail}" if bad.detail else where)
        answers = [i for i in range(turns.first_answer, len(turns.messages)) if self._is_answer(turns, i)]
        if not answers:
            return self._lost(reasons.NO_TURN, where)
        learned = [i for i in answers if i not in turns.unlearned]
        if not learned:
            return self._lost(reasons.ALL_MARKED, where)
        for _ in range(len(answers) - len(learned)):
            self.census.noted[reasons.MARKED].append(where)
        self._note(row, turns, where)
        dialogue = dialogue_id(turns.messages)
        kept, lost = [], ""
        for i in learned:
            messages, response = turns.messages[:i], turns.messages[i].content
            example_id = content_id(messages, response)
            key = int(example_id, 16)
            if is_blank(response):
                reason = reasons.EMPTY_RESPONSE
            elif all(is_blank(m.content) for m in messages if m.role == "user"):
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
        fields, shape = self._renamed(row), self._shape_of[row.source]
        if isinstance(row.fields, dict):
            self._columns_of.setdefault(row.source, set()).update(row.fields)
        turns = turns_of(fields, shape)
        turns = turns._replace(unread=unread_of(fields, shape))
        self.shapes[shape] += 1
        group = _group(fields)
        if self.change is not None:
            changed = self.change(turns, group)
            if isinstance(changed, str):
                raise BadRow(changed)
            turns, group = changed
        if self.groups is not None:
            self._groups.add(group)
            if group not in self.groups:
                raise BadRow(reasons.OTHER_GROUP)
        return turns, group

    def _renamed(self, row: Row) -> Any:
        """What a row holds, under the names that are known here."""
        return renamed(row.fields, self.columns, row.where) if isinstance(row.fields, dict) else row.fields

    @staticmethod
    def _is_answer(turns: Turns, i: int) -> bool:
        """Whether a turn is an answer: an assistant's, with a user's turn before it."""
        before = turns.messages[:i]
        return turns.messages[i].role == "assistant" and any(m.role == "user" for m in before)

    def _note(self, row: Row, turns: Turns, where: str) -> None:
        """Take down what is unusual about a dialogue and changes nothing."""
        roles = [m.role for m in turns.messages if m.role != "system"]
        if turns.lost_system:
            self.census.noted[reasons.SYSTEM_TWICE].append(where)
        if len(turns.messages) > 2:
            notes = {
                reasons.ENDS_WITH_USER: roles[-1] == "user",
                reasons.ASSISTANT_FIRST: roles[0] == "assistant",
                reasons.NOT_ALTERNATING: any(a == b for a, b in pairwise(roles)),
                reasons.EMPTY_TURN: any(is_blank(m.content) for m in turns.messages[:-1]),
            }
            for note, holds in notes.items():
                if holds:
                    self.census.noted[note].append(where)
        for note in turns.unread:
            self.census.noted[note].append(where)
        if not self._is_first_of_its_id(row, turns):
            self.census.noted[reasons.SAME_SOURCE_ID].append(where)

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
