"""The data report: what happened to each row of the source and to each of its examples."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftmix.terminal import counted

# Reasons why a row or an example is dropped or shortened.
EMPTY_RESPONSE = "empty response"
EMPTY_PROMPT = "empty prompt"
DUPLICATE = "duplicate of an earlier example"
SAME_TOKENS = "duplicate of an earlier example: the template renders both to the same text"
NO_TURN = "dialogue without an answer to a user"
OTHER_SCHEMA = "row of another schema than the others"
NOT_TEXT = "not text where text is expected"
NOT_TURNS = "not a list of turns where one is expected"
LONE_SURROGATE = "text with half a character (a lone surrogate)"
UNKNOWN_ROLE = "unknown role"
NO_CONTENT = "turn without content or value"
NOT_A_TEXT_PART = "turn with a part that is not text"
NOT_A_MARK = "turn with a mark of what to learn that is neither 0 nor 1"
NOT_A_WEIGHT = "weight that is not a finite number of at least 0"
LEARNED_SPAN = "turn of which only some characters are to be learned (not supported)"
ALL_MARKED = "dialogue whose answers are all marked not to be learned"
TOO_LARGE = "row larger than data.max_row_mib"
OTHER_LENGTH = "more or fewer fields than columns (a text with the delimiter or a quote in it must be quoted)"
NO_REPLACEMENT = "no replacement response for its prompt"
OTHER_GROUP = "of a group that is not in data.groups"
NO_ROOM = "longer than max_seq_len"
NO_ROOM_FOR_PROMPT = "prompt fills max_seq_len"
REFUSED = "template refuses or alters it"
NOT_SELECTED = "not selected"
OLDEST_TURNS = "oldest turns of the history dropped"
TRUNCATED = "response truncated (without end token)"

# Notes: what is unusual and changes nothing.
ENDS_WITH_USER = "dialogue ends with the user (its last turn is not learned)"
ASSISTANT_FIRST = "dialogue begins with the assistant (that turn is not learned)"
NOT_ALTERNATING = "dialogue in which roles do not alternate"
EMPTY_TURN = "dialogue with an empty turn"
MARKED = "answer marked not to be learned (it is history only)"
SYSTEM_TWICE = "dialogue with a system turn and another text in the field system (the turn is used)"
UNREAD_FIELD = "dialogue whose turns have a field that is not read"
SECOND_SCHEMA = "row that also fits another schema, which is not read"
SAME_SOURCE_ID = "id that an earlier row has with other content (both are kept: examples are identified by content)"
HELD_OUT = "example of data.select.path that is held out, not trained on"
NOT_FOUND = "entry of data.select.path that names none of the remaining examples"

PLACES_KEPT = 1000  # in census.json, for each reason
PLACES_SHOWN = 3


def first_few(names: Sequence[str]) -> str:
    """Return the first names, joined for a message."""
    return ", ".join(names[:PLACES_SHOWN]) + (", ..." if len(names) > PLACES_SHOWN else "")


@dataclass
class Places:
    """A count, and the places of the first rows that it counts."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def append(self, place: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < PLACES_KEPT:
            self.first.append(place)

    def remove(self, place: str) -> None:
        """Count one less."""
        self.count -= 1
        if place in self.first:
            self.first.remove(place)


class Census:
    """Counts of kept, shortened and dropped examples, with the places of shortened, dropped and noted ones.

    A row without an example (a bad row, a dialogue without an answer) counts as one dropped example. A row is kept if
    all its examples are kept, dropped if none remains, and shortened otherwise. Notes are about what is unusual and
    changes nothing.
    """

    def __init__(self) -> None:
        self.rows = {"kept": 0, "shortened": 0, "dropped": 0}
        self.kept = 0
        self.shortened: dict[str, Places] = defaultdict(Places)
        self.dropped: dict[str, Places] = defaultdict(Places)
        self.noted: dict[str, Places] = defaultdict(Places)

    @property
    def num_dropped(self) -> int:
        """Number of examples and rows that were dropped."""
        return sum(places.count for places in self.dropped.values())

    @property
    def total(self) -> int:
        """Number of kept, shortened, and dropped examples."""
        return self.kept + sum(places.count for places in self.shortened.values()) + self.num_dropped

    def as_dict(self, num_places: int = PLACES_KEPT) -> dict[str, Any]:
        """Return the content of `census.json`: the count and the first places of each reason."""

        def entries(reasons: Mapping[str, Places]) -> dict[str, Any]:
            return {
                reason: {"count": places.count, "places": places.first[:num_places]}
                for reason, places in sorted(reasons.items())
                if places.count
            }

        return {
            "rows": {"total": sum(self.rows.values()), **self.rows},
            "total": self.total,
            "kept": self.kept,
            "shortened": entries(self.shortened),
            "dropped": entries(self.dropped),
            "noted": entries(self.noted),
        }

    def add(self, other: Mapping[str, Any]) -> None:
        """Add another report, as returned by `as_dict`."""
        self.kept += other["kept"]
        for fate in self.rows:
            self.rows[fate] += other["rows"][fate]
        for name in ("shortened", "dropped", "noted"):
            for reason, entry in other[name].items():
                places = getattr(self, name)[reason]
                places.count += entry["count"]
                places.first += entry["places"][: PLACES_KEPT - len(places.first)]

    def lost(self) -> str:
        """Return what was dropped, in one line for a message; empty if nothing was."""
        return "; ".join(f"{some.count} dropped: {reason} ({some.first[0]})" for reason, some in self.dropped.items())

    def table(self) -> str:
        """Return the report as lines for the terminal."""
        rows = ", ".join(f"{count:,} {fate}" for fate, count in self.rows.items() if count or fate == "kept")
        num_rows = sum(self.rows.values())
        lines = [
            f"  {counted(num_rows, 'row', 9)}: {rows}",
            f"  {counted(self.total, 'example', 9)}: {self.kept:,} kept",
        ]
        for word, reasons in (("shortened", self.shortened), ("dropped", self.dropped), ("noted", self.noted)):
            for reason, places in sorted(reasons.items()):
                if places.count:
                    lines.append(f"  {places.count:>9,} {word}: {reason} ({first_few(places.first)})")
        return "\n".join(lines)
