"""Progress bars: lively on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm


def progress_bar(total: int | None, title: str, unit: str, hide: bool = False, delay: float = 0.0) -> "tqdm[None]":
    """A bar over units, shown once the work has taken `delay` seconds; their number may be unknown."""
    return tqdm(total=total, desc=title, unit=unit, mininterval=_seconds(), disable=hide, delay=delay)


def teller(bar: "tqdm[None]") -> Callable[[str], None]:
    """A function that puts words behind a bar while a unit takes long, as seldom as the bar itself is drawn."""
    told = time.monotonic()

    def tell(words: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _seconds():
            told = time.monotonic()
            bar.set_postfix_str(words)

    return tell


def _seconds() -> float:
    return 0.2 if sys.stderr.isatty() else 10.0
