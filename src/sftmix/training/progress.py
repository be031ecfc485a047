"""Progress bars: lively on a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm


def progress_bar(total: int | None, title: str, unit: str, hide: bool = False, delay: float = 0.0) -> "tqdm[None]":
    """A bar over units, shown once the work has taken `delay` seconds; their number may be unknown."""
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, unit=unit, mininterval=seconds, disable=hide, delay=delay)
