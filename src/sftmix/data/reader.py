"""Turn source rows into examples: one example per answer of a dialogue, without duplicates, each row accounted for."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby, islice, pairwise
from pathlib import Path

import numpy as np

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.example import Example, content_id, dialogue_id, place
from sftmix.data.files import kind_of_file
from sftmix.data.row_errors import error_hint, list_names, mismatch
from sftmix.data.rows import Row
from sftmix.data.schemas import OPTIONAL, REQUIRED, detect_schema, read_dialogue, rename_columns, unread_parts
from sftmix.data.turns import BadRow, Dialogue, is_blank, is_encodable
from sftmix.errors import InputError

SOURCE_IDS = ("id", "prompt_id")
ADVICE = {
    reasons.OTHER_LENGTH: "a text with the delimiter or a quote in it must be quoted",
    reasons.TOO_LARGE: "set data.max_row_mib=N to read larger rows; if it is one object that holds all rows, write "
    "a row a line",
}
MOST_UNSORTED = 2**12  # hashes that a small HashSet keeps in a Python set before it sorts them in
FIRST_ROWS = 100  # rows of a source among which one must have a schema

Change = Callable[[Dialogue, str], tuple[Dialogue, str] | str]


class HashSet:
    """A set of 64-bit hashes in about 10 bytes each, where a Python set takes about 75. Hashes are never removed."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def __contains__(self, key: int) -> bool:
        """Return whether a hash was added, by its lowest 64 bits."""
        key %= 2**64
        if key in self._recent:
            return True
        at = int(self._sorted.searchsorted(np.uint64(key)))
        return at < len(self._sorted) and int(self._sorted[at]) == key

    def add(self, key: int) -> bool:
        """Add a hash; return whether it is new."""
        if key in self:
            return False
        self._recent.add(key % 2**64)
        if len(self._recent) >= max(MOST_UNSORTED, len(self._sorted) // 16):
            recent = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._sorted = np.insert(self._sorted, self._sorted.searchsorted(recent), recent)
            self._recent = set()
        return True

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)


class ExampleReader:
    """Turns rows into examples, in order. It remembers the rows that it has read.

    Args:
        census: Data report to which dropped rows and examples are added. The encoder adds those that are kept.
        schema: Schema of the rows. If None, each source has the schema of its first row that has one.
        columns: Column of the source for each schema name that is called otherwise in the source.
        groups: Groups of rows to keep; None keeps all.
        change: Changes the dialogue and the group of a row, or returns the reason why the row is dropped.

    Attributes:
        num_rows: Number of rows that were read, by schema.
    """

    def __init__(
        self,
        census: Census,
        *,
        schema: str | None = None,
        columns: Mapping[str, str] | None = None,
        groups: Iterable[str] | None = None,
        change: Change | None = None,
    ) -> None:
        self.census = census
        self.schema = schema
        self.columns = columns or {}
        self.groups = None if groups is None else set(groups)
        self.change = change
        self.num_rows: Counter[str] = Counter()
        self._schemas: dict[str, str] = {}
        self._columns: dict[str, set[str]] = {}
        self._groups: set[str] = set()
        self._weight_field = self.columns.get("weight")  # the column, or the field of the turns
        self._has_weights = False
        self._seen = HashSet()
        self._source_ids, self._first_contents = HashSet(), HashSet()

    def read(self, rows: Iterable[Row], limit: int | None = None) -> Iterator[list[Example]]:
        """Yield the examples of each row that has any.

        Args:
            limit: Number of rows to read; None reads all.

        Raises:
            InputError: If none of the first rows of a source has a schema, or if one has several.
        """
        for source, some in groupby(islice(rows, limit), key=lambda row: row.source):
            for row in chain([] if source in self._schemas else self._first_rows(some), some):
                if examples := self._examples(row):
                    yield examples

    def _first_rows(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows up to the first that has a schema, and remember the schema of the source."""
        read: list[Row] = []
        for row in islice(rows, FIRST_ROWS):
            read.append(row)
            fields = rename_columns(row.fields, self.columns, row.where)
            schema = None if row.problem else detect_schema(fields, self.schema, row.where)
            if schema is not None:
                self._schemas[row.source] = schema
                return read
        # The message is about the first record, or about the first row if there is no record.
        row = next((row for row in read if isinstance(row.fields, dict) and not row.problem), read[0])
        if row.problem:
            raise InputError(f"{row.where}: {row.problem}; {ADVICE[row.reason]}")
        for name, column in self.columns.items():
            if isinstance(row.fields, dict) and column not in row.fields:
                found = f"the fields are {list_names(row.fields)}"
                raise InputError(f"{row.where}: no column {column} (data.columns.{name}={column}); {found}")
        is_table = kind_of_file(Path(row.source)) in ("csv", "tsv")
        hint = error_hint(row.fields, self.columns, self.schema, is_table=is_table)
        raise InputError(f"{row.where}: {mismatch(row.fields, self.schema)}" + (f". {hint}" if hint else ""))

    @property
    def unread(self) -> set[str]:
        """Columns that are not read."""
        names = {column: name for name, column in self.columns.items()}
        return {
            column
            for source, columns in self._columns.items()
            for column in columns
            if names.get(column, column) not in {*OPTIONAL, *REQUIRED[self._schemas[source]], *self.columns}
        }

    def check_settings(self) -> None:
        """Raise an InputError if a renamed column or a requested group did not occur in the rows that were read."""
        columns = set[str]().union(*self._columns.values())
        for name, column in self.columns.items():
            if column not in columns and not (name == "weight" and self._has_weights):
                fields = list_names(sorted(columns))
                raise InputError(f"data.columns.{name}={column}: no row has a column {column}; the fields are {fields}")
        lacking = sorted((self.groups or set()) - self._groups)
        if not lacking or not self._groups:
            return
        if found := sorted(self._groups - {""}):
            raise InputError(f"data.groups: no row is of group {lacking[0]}; there are {list_names(found)}")
        column = self.columns.get("group", "group")
        raise InputError(
            f"data.groups: no row has a group in column {column}; 'data.columns={{group: NAME}}' names another"
        )

    def _examples(self, row: Row) -> list[Example]:
        where = place(row.source, row.number)
        try:
            if row.problem:
                raise BadRow(row.reason, row.problem)
            dialogue, group = self._dialogue(row)
            roles = [m.role for m in dialogue.messages]
            turns = range(dialogue.first_answer, len(roles))
            answers = [i for i in turns if roles[i] == "assistant" and "user" in roles[:i]]
            learned = [i for i in answers if i not in dialogue.unlearned and dialogue.weight != 0]
            if not learned:
                raise BadRow(reasons.ALL_MARKED if answers else reasons.NO_TURN)
        except BadRow as bad:
            if str(bad) == reasons.NOT_A_WEIGHT:
                asked = f"data.columns.weight={self._weight_field}"
                raise InputError(
                    f"{row.where}: the weight is {bad.detail}, expected a finite number of at least 0 ({asked})"
                ) from None
            self.census.rows["dropped"] += 1
            self.census.dropped[str(bad)].append(f"{where}: {bad.detail}" if bad.detail else where)
            return []
        for _ in range(len(answers) - len(learned)):
            self.census.noted[reasons.MARKED].append(where)
        self._note(row, dialogue, where)
        row_id = dialogue_id(dialogue.messages)
        kept, is_whole = [], True
        for i in learned:
            messages, response = dialogue.messages[:i], dialogue.messages[i].content
            example_id = content_id(messages, response)
            key = int(example_id, 16)
            if is_blank(response):
                reason = reasons.EMPTY_RESPONSE
            elif all(is_blank(m.content) for m in messages if m.role == "user"):
                reason = reasons.EMPTY_PROMPT
            elif not self._seen.add(key):
                reason = reasons.DUPLICATE
            else:
                turn_weight = dialogue.messages[i].weight
                weight = dialogue.weight * (1.0 if turn_weight is None else turn_weight)
                place_of_row = (row.source, row.number, group, row_id)
                kept.append(Example(example_id, messages, response, *place_of_row, weight=weight))
                continue
            is_whole = False
            self.census.dropped[reason].append(where)
        if not kept:
            self.census.rows["dropped"] += 1
        return kept if is_whole else [replace(example, is_whole=False) for example in kept]

    def _dialogue(self, row: Row) -> tuple[Dialogue, str]:
        fields, schema = rename_columns(row.fields, self.columns, row.where), self._schemas[row.source]
        if isinstance(row.fields, dict):
            self._columns.setdefault(row.source, set()).update(row.fields)
        dialogue = read_dialogue(fields, schema, self._weight_field)
        turn_weights = (m.weight for m in dialogue.messages)
        self._has_weights = self._has_weights or any(weight is not None for weight in turn_weights)
        self.num_rows[schema] += 1
        group = "" if fields.get("group") is None else str(fields["group"])
        group = group if is_encodable(group) else ""
        if self.change is not None:
            changed = self.change(dialogue, group)
            if isinstance(changed, str):
                raise BadRow(changed)
            dialogue, group = changed
        if self.groups is not None:
            self._groups.add(group)
            if group not in self.groups:
                raise BadRow(reasons.OTHER_GROUP)
        return dialogue, group

    def _note(self, row: Row, dialogue: Dialogue, where: str) -> None:
        """Note what is unusual about a dialogue and changes nothing."""
        roles = [m.role for m in dialogue.messages if m.role != "system"]
        if dialogue.lost_system:
            self.census.noted[reasons.SYSTEM_TWICE].append(where)
        if len(dialogue.messages) > 2:
            notes = {
                reasons.ENDS_WITH_USER: roles[-1] == "user",
                reasons.ASSISTANT_FIRST: roles[0] == "assistant",
                reasons.NOT_ALTERNATING: any(a == b for a, b in pairwise(roles)),
                reasons.EMPTY_TURN: any(is_blank(m.content) for m in dialogue.messages[:-1]),
            }
            for note, holds in notes.items():
                if holds:
                    self.census.noted[note].append(where)
        fields = rename_columns(row.fields, self.columns, row.where)
        for note in unread_parts(fields, self._schemas[row.source], self._weight_field):
            self.census.noted[note].append(where)
        ids = [row.fields.get(name) for name in SOURCE_IDS]
        ids = [int(i) if isinstance(i, float) and i.is_integer() else i for i in ids]  # of a column with gaps
        source_id = next((text for i in ids if isinstance(i, (str, int)) and (text := str(i).strip())), None)
        if source_id is not None:
            content = hash((row.source, source_id, dialogue.messages))
            if self._source_ids.add(hash((row.source, source_id))):
                self._first_contents.add(content)
            elif content not in self._first_contents:
                self.census.noted[reasons.SAME_SOURCE_ID].append(where)


def examples_from_rows(rows: Iterable[Row], census: Census, limit: int | None = None) -> list[Example]:
    """Return the examples of a small source in file order, or raise the errors of `ExampleReader.read`."""
    return [example for examples in ExampleReader(census).read(rows, limit) for example in examples]
