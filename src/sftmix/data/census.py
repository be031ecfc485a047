"""What became of each row and each example of a data set: nothing is lost in silence."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftmix.terminal import counted

EMPTY_RESPONSE = "empty response"
EMPTY_PROMPT = "empty prompt"
DUPLICATE = "duplicate of an earlier example"
SAME_TOKENS = "duplicate of an earlier example: the template shows both alike"
NO_TURN = "dialogue without an answer to a user"
UNKNOWN_SHAPE = "row of another shape than the others"
NOT_TEXT = "no text where text is due"
NOT_TURNS = "no list of turns where one is due"
HALF_CHARACTER = "holds half a character (a lone surrogate)"
UNKNOWN_ROLE = "role that is not known"
NO_CONTENT = "turn without content or value"
NOT_A_TEXT_PART = "turn with a part that is not text"
NOT_A_MARK = "turn whose mark of what to learn is neither 0 nor 1"
LEARNT_IN_PART = "turn of which only some characters are to be learned (not supported)"
ALL_MARKED = "dialogue whose answers are all marked not to be learned"
TOO_LARGE = "row larger than data.max_row_mib"
OTHER_LENGTH = "more or fewer fields than columns (a text with the delimiter or a quote in it wants quotes)"
NO_BETTER_RESPONSE = "no better response to take"
OTHER_GROUP = "of a group that is not wanted"
NO_ROOM = "longer than max_seq_len"
NO_ROOM_FOR_PROMPT = "prompt alone fills max_seq_len"
REFUSED = "template refuses or alters it"
NOT_SELECTED = "not selected"
OLDEST_TURNS = "oldest turns of the history dropped"
TRUNCATED = "response truncated (without end token)"

ENDS_WITH_USER = "dialogue ends with the user (its last turn is not learnt)"
ASSISTANT_FIRST = "dialogue begins with the assistant (that turn is not learnt)"
NOT_ALTERNATING = "dialogue in which roles do not alternate"
EMPTY_TURN = "dialogue with an empty turn"
MARKED = "answer marked not to be learned (it is history only)"
SYSTEM_TWICE = "dialogue with a system turn and another text in the field system (the turn is taken)"
UNREAD_FIELD = "dialogue whose turns have a field that is not read"
OTHER_SHAPE = "row that fits another shape too, which is not read"
SAME_SOURCE_ID = "id that an earlier row has with other content (both are kept: content is what counts)"
HELD_OUT = "example of data.select.path that is held out, not trained on"
NOT_THERE = "entry of data.select.path that names no example that is left"

PLACES_KEPT = 1000
PLACES_SHOWN = 3


def first_few(names: Sequence[str]) -> str:
    """The first of some names, for a line."""
    return ", ".join(names[:PLACES_SHOWN]) + (", ..." if len(names) > PLACES_SHOWN else "")


@dataclass
class Places:
    """How many, and where the first of them stand."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def append(self, place: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < PLACES_KEPT:
            self.first.append(place)

    def remove(self, place: str) -> None:
        """One less."""
        self.count -= 1
        if place in self.first:
            self.first.remove(place)

    def add(self, count: int, first: list[str]) -> None:
        """Those of another part, which come after these."""
        self.count += count
        self.first += first[: PLACES_KEPT - len(self.first)]


class Census:
    """Counts of kept, shortened and dropped examples, with the places of those that are not as they were.

    What is noted is unusual and changes nothing.

    A row that holds no example (a bad row, a dialogue without an answer) counts as one, so that
    total = kept + shortened + dropped. Rows are counted beside them: one is kept if all its examples are, dropped if
    none is left, else shortened.
    """

    def __init__(self) -> None:
        """An empty census."""
        self.rows = {"kept": 0, "shortened": 0, "dropped": 0}
        self.kept = 0
        self.shortened: dict[str, Places] = defaultdict(Places)
        self.dropped: dict[str, Places] = defaultdict(Places)
        self.noted: dict[str, Places] = defaultdict(Places)

    @property
    def num_rows(self) -> int:
        """Rows that were seen."""
        return sum(self.rows.values())

    @property
    def num_shortened(self) -> int:
        """Examples that were cut and kept."""
        return sum(places.count for places in self.shortened.values())

    @property
    def num_dropped(self) -> int:
        """Examples and rows that are left out."""
        return sum(places.count for places in self.dropped.values())

    @property
    def total(self) -> int:
        """Everything that was seen."""
        return self.kept + self.num_shortened + self.num_dropped

    def as_dict(self, num_places: int = PLACES_KEPT) -> dict[str, Any]:
        """The census as `census.json` holds it: of each reason the count and the first places."""

        def entries(reasons: Mapping[str, Places]) -> dict[str, Any]:
            return {
                reason: {"count": places.count, "places": places.first[:num_places]}
                for reason, places in sorted(reasons.items())
                if places.count
            }

        return {
            "rows": {"total": self.num_rows, **self.rows},
            "total": self.total,
            "kept": self.kept,
            "shortened": entries(self.shortened),
            "dropped": entries(self.dropped),
            "noted": entries(self.noted),
        }

    def add(self, other: Mapping[str, Any]) -> None:
        """Add another census, as `as_dict` gives it."""
        self.kept += other["kept"]
        for fate in self.rows:
            self.rows[fate] += other["rows"][fate]
        for name, mine in (("shortened", self.shortened), ("dropped", self.dropped), ("noted", self.noted)):
            for reason, entry in other[name].items():
                mine[reason].add(entry["count"], entry["places"])

    def lost(self) -> str:
        """What was dropped, in one line for a message; empty where nothing was."""
        return "; ".join(
            f"{places.count} dropped: {reason} ({places.first[0]})" for reason, places in self.dropped.items()
        )

    def table(self) -> str:
        """The census as lines for the terminal."""
        rows = ", ".join(f"{count:,} {fate}" for fate, count in self.rows.items() if count or fate == "kept")
        lines = [
            f"  {counted(self.num_rows, 'row', 9)}: {rows}",
            f"  {counted(self.total, 'example', 9)} in {'it' if self.num_rows == 1 else 'them'}",
            f"  {self.kept:>9,} kept",
        ]
        for word, reasons in (("shortened", self.shortened), ("dropped", self.dropped), ("noted", self.noted)):
            for reason, places in sorted(reasons.items()):
                if not places.count:
                    continue
                lines.append(f"  {places.count:>9,} {word}: {reason} ({first_few(places.first)})")
        return "\n".join(lines)
