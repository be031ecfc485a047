"""Text made fit to print: what of data a terminal would act on is written out, numbers have their nouns.

Nothing in it moves the cursor, changes colours or turns the reading direction.
"""

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


def one_line(text: object) -> str:
    """Something's text as `visible`, its line ends written out too."""
    return visible(str(text)).replace("\n", "\\n")


def counted(number: int, noun: str, width: int = 0) -> str:
    """A number, right in its width, with its noun, which has an s unless there is one of it."""
    return f"{number:>{width},} {noun}" + ("" if number == 1 else "s")
