"""That calls are made again, told to people: a line now and then, and the bar of the calls goes on below it."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class Retries:
    """Counts the tries that brought nothing and are made again.

    Args:
        who: is called, for the lines.
    """

    def __init__(self, who: str) -> None:
        """None yet."""
        self._who, self._number, self._told_at = who, 0, float("-inf")

    def add(self, cause: str) -> None:
        """Count one, and tell it unless a line came shortly before; the first is always told."""
        self._number += 1
        now = time.monotonic()
        if now - self._told_at < SECONDS_BETWEEN_LINES:
            return
        self._told_at = now
        one_line = " ".join(cause.split())
        tqdm.write(f"{self._who}: calls are tried again ({self._number:,} so far): {one_line}", file=sys.stderr)
