"""Progress bars: lively on a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm


def progress_bar(total: int, title: str, unit: str, hide: bool = False) -> "tqdm[None]":
    """A bar over a known number of units."""
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, unit=unit, mininterval=seconds, disable=hide)
