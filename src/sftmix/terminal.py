"""Text of data made safe to print: nothing in it moves the cursor, changes colours or turns the reading direction."""

import unicodedata

# Control, format (bidirectional marks, zero-width characters), half characters, private use, line and paragraph marks.
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: str) -> str:
    """The text with every character that a terminal would act on, or not show, written as an escape sequence.

    Line ends stay; a carriage return before one is written out.
    """
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in HIDDEN else c.encode("unicode_escape").decode() for c in text
    )
