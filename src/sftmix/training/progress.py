"""Progress bars: redrawn often on a terminal, seldom in a file."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm


def progress_bar(total: int | None, title: str, unit: str, hide: bool = False, delay: float = 0.0) -> "tqdm[None]":
    """Return a bar over units, whose number may be unknown. It is shown after `delay` seconds."""
    return tqdm(total=total, desc=title, unit=unit, mininterval=_interval(), disable=hide, delay=delay)


def teller(bar: "tqdm[None]") -> Callable[[str], None]:
    """Return a function that shows a text behind a bar, at most as often as the bar is drawn."""
    shown = time.monotonic()

    def tell(text: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _interval():
            shown = time.monotonic()
            bar.set_postfix_str(text)

    return tell


def _interval() -> float:
    """Return the seconds between two updates."""
    return 0.2 if sys.stderr.isatty() else 10.0
