"""Rows as all readers yield them, and files as all readers open them."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.data import census as reasons
from sftmix.errors import InputError

MIB = 2**20
MAX_ROW_BYTES = 64 * MIB  # limit for files that no setting bounds, such as a list of scores
CHUNK_BYTES = 2**20  # bytes that are read from a file at a time


class Row(NamedTuple):
    """One record of a source.

    Attributes:
        where: File (or hub id) and row or line, for messages.
        number: Index of the row in its source, counted from 1.
        source: File or hub id that the row came from.
        problem: Why the row cannot be read; empty if it can.
        reason: If the row cannot be read, the reason why it is dropped in the data report.
    """

    where: str
    number: int
    fields: Any
    source: str = ""
    problem: str = ""
    reason: str = reasons.OTHER_LENGTH


def too_large(where: str, number: int, limit: int) -> Row:
    """Return the row that is yielded instead of one that is larger than `limit` bytes."""
    return Row(where, number, None, problem=f"more than {limit / MIB:.3g} MiB", reason=reasons.TOO_LARGE)


def num_bytes(text: str) -> int:
    """Return the number of bytes of a text in UTF-8. A lone surrogate counts as its escape sequence."""
    return len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))


def check_columns(where: object, names: list[str]) -> None:
    """Raise an InputError if a table names a column twice."""
    if len(set(names)) < len(names):
        raise InputError(f"{where}: column {next(n for n in names if names.count(n) > 1)} appears twice")


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a file for reading bytes, unzip it if its name ends with .gz, and raise errors of reading as InputErrors."""
    try:
        with _open_bytes(path) as handle:
            yield handle
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a complete .gz file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(_not_utf8(path)) from None


def _open_bytes(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _not_utf8(path: Path) -> str:
    """Return the message that says where a file is not UTF-8. At most one block of the file is in memory."""
    number, decoder, pending = 1, codecs.getincrementaldecoder("utf-8")(), b""
    with _open_bytes(path) as handle:
        while True:
            block = handle.read(CHUNK_BYTES)
            try:
                decoder.decode(block, not block)
            except UnicodeDecodeError as error:
                line = number + (pending + block).count(b"\n", 0, error.start)
                return f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8, expected UTF-8 text"
            if not block:
                return f"{path}: not UTF-8, expected UTF-8 text"
            number, pending = number + block.count(b"\n"), decoder.getstate()[0]
