"""Transformers without its notes and bars, where what they say is no news."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers(bars: bool = False) -> Iterator[None]:
    """Hold back notes below an error, and progress bars unless they are wanted."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, had_bars, hub_level = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        hub_logging.get_verbosity(),
    )
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if had_bars:
            logging.enable_progress_bar()
