"""What became of each example of a source: nothing is lost in silence."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

EMPTY_RESPONSE = "empty response"
DUPLICATE = "duplicate of an earlier example"
NO_TURN = "dialogue without an assistant turn"
BAD_ROW = "row of an unknown shape"
NO_ROOM = "longer than max_seq_len"
NO_ROOM_FOR_PROMPT = "prompt alone fills max_seq_len"
REFUSED = "template refuses or alters it"
OLDEST_TURNS = "oldest turns of the history dropped"
TRUNCATED = "response truncated (without end token)"

PLACES_KEPT = 1000
PLACES_SHOWN = 3


class Census:
    """Counts of kept, shortened and dropped examples, with the places of those that are not as they were.

    A row that holds no example (a bad row, a dialogue without an answer) counts as one, so that
    total = kept + shortened + dropped.
    """

    def __init__(self) -> None:
        """An empty census."""
        self.rows = 0
        self.kept = 0
        self.shortened: dict[str, list[str]] = defaultdict(list)
        self.dropped: dict[str, list[str]] = defaultdict(list)
        self.noted: dict[str, int] = defaultdict(int)

    @property
    def num_shortened(self) -> int:
        """Examples that were cut and kept."""
        return sum(len(places) for places in self.shortened.values())

    @property
    def num_dropped(self) -> int:
        """Examples and rows that are left out."""
        return sum(len(places) for places in self.dropped.values())

    @property
    def total(self) -> int:
        """Everything that was seen."""
        return self.kept + self.num_shortened + self.num_dropped

    def as_dict(self) -> dict[str, Any]:
        """The census as `census.json` holds it; of each reason the count and the first places."""

        def entry(places: list[str]) -> dict[str, Any]:
            return {"count": len(places), "places": places[:PLACES_KEPT]}

        return {
            "rows": self.rows,
            "total": self.total,
            "kept": self.kept,
            "shortened": {reason: entry(places) for reason, places in sorted(self.shortened.items())},
            "dropped": {reason: entry(places) for reason, places in sorted(self.dropped.items())},
            "noted": dict(sorted(self.noted.items())),
        }

    def state(self) -> dict[str, Any]:
        """Everything that it holds, in plain containers."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "shortened": dict(self.shortened),
            "dropped": dict(self.dropped),
            "noted": dict(self.noted),
        }

    def add(self, state: Mapping[str, Any]) -> None:
        """Add what another census holds."""
        self.rows += state["rows"]
        self.kept += state["kept"]
        for mine, others in ((self.shortened, state["shortened"]), (self.dropped, state["dropped"])):
            for reason, places in others.items():
                mine[reason] += places
        for what, count in state["noted"].items():
            self.noted[what] += count

    def table(self) -> str:
        """The census as lines for the terminal."""
        lines = [f"  {self.total:>9,} examples in {self.rows:,} rows", f"  {self.kept:>9,} kept"]
        for word, reasons in (("shortened", self.shortened), ("dropped", self.dropped)):
            for reason, places in sorted(reasons.items()):
                shown = ", ".join(places[:PLACES_SHOWN]) + (", ..." if len(places) > PLACES_SHOWN else "")
                lines.append(f"  {len(places):>9,} {word}: {reason} ({shown})")
        lines += [f"  {count:>9,} of them: {what}" for what, count in sorted(self.noted.items())]
        return "\n".join(lines)
