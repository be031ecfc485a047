"""Make text safe to print: it cannot move the cursor, change colors, or reverse the reading direction."""

import unicodedata

# Categories of control and format characters, surrogates, private use characters, line and paragraph separators.
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: str) -> str:
    """Write every character that a terminal acts on, or does not show, as an escape sequence, except for line feeds."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in HIDDEN else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: object) -> str:
    """Return the text of an object as `visible` does, and write line feeds as escape sequences too."""
    return visible(str(text)).replace("\n", "\\n")


def counted(number: int, noun: str, width: int = 0) -> str:
    """Return a number, right-aligned in `width`, and its noun, in the plural unless the number is 1."""
    return f"{number:>{width},} {noun}" + ("" if number == 1 else "s")
