"""Rows from files and from the hub, one after the other, each with the place it came from."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from sftmix.data import census as reasons
from sftmix.data.error_hints import records_in
from sftmix.data.schemas import is_dialogue, shape_of
from sftmix.data.splits import SAVED_DATASET, files_of_split
from sftmix.errors import InputError
from sftmix.hub import not_given
from sftmix.terminal import counted, one_line

LOCAL_COPY = "data.path=..."
KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".parquet", ".arrow")
ZIPPED = tuple(f"{kind}.gz" for kind in KINDS if kind not in BINARY)
# What lies beside the rows of a data set: `datasets.data_files.FILES_TO_IGNORE`, and the state of a saved one.
METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", SAVED_DATASET)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MIB = 2**20
MAX_ROW_BYTES = 64 * MIB  # of a row in a file that no setting bounds, such as a list of scores
DELIMITERS = ",;\t|"
CHUNK_BYTES = 2**20
LONGEST_CUT = 16  # characters: a literal or an escape that is cut off is refused where it begins
BLANKS = " \t\r\n\v\f"
BLANK = re.compile(f"[{BLANKS}]*")
BATCH_BYTES, BATCH_ROWS = 2**22, 64  # of Parquet, the fewer of the two: a repeated text counts once in a group's bytes


class Row(NamedTuple):
    """One record of a source.

    Attributes:
        where: the place, for messages: file (or hub id) and row or line.
        number: the row in its source, counted from 1.
        fields: what the record holds.
        source: the file or hub id it came from.
        problem: what is wrong with a record that could not be read as its neighbours; empty where nothing is.
        reason: for a record with a problem, the reason why it is dropped.
    """

    where: str
    number: int
    fields: Any
    source: str = ""
    problem: str = ""
    reason: str = reasons.OTHER_LENGTH


def is_data_file(path: Path) -> bool:
    """Return whether a file is of a kind that is read, by its name."""
    return path.name.lower().endswith((*KINDS, *ZIPPED)) and not path.name.startswith(".")


def data_files(path: Path, key: str = "data.path", split: str | None = None) -> list[Path]:
    """Return the files that a path means: the file itself, or the data files of a folder and its subfolders, by name.

    Args:
        path: File or folder.
        key: The setting that gave the path, for messages.
        split: Split of a folder to read; a file is read whatever it is called.

    Raises:
        InputError: A file is missing, empty or of a kind that is not read; a folder has no data file, no such split,
            or several splits if `split` is None.
    """
    if path.is_dir():
        inside = _inside(path)
        files = [path / p for p in inside if _is_rows(path / p)]
        if not files:
            beside = f" (there is {inside[0]})" if inside else ""
            raise InputError(f"{key}={path}: no file in it{beside}, expected one of {', '.join(KINDS)}")
        files = files_of_split(files, path, split, key)
    else:
        files = [path]
    for file in files:
        check_file(file, key)
    return files


def _is_rows(file: Path) -> bool:
    """Return whether a file of a folder holds rows, not what `datasets` writes beside them or has replaced."""
    if not is_data_file(file) or file.name in METADATA:
        return False
    state = file.parent / SAVED_DATASET
    if file.suffix != ".arrow" or not state.is_file():
        return True
    try:
        return file.name in {entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{state}: damaged, expected what datasets.save_to_disk writes") from None


def other_files(path: Path) -> list[str]:
    """Return the files of a folder and its subfolders that hold no rows; none for a file."""
    return [_shown(p) for p in _inside(path) if not _is_rows(path / p)]


def other_splits(path: Path, split: str | None) -> list[str]:
    """Return the data files of a folder that belong to other splits than the one that is read; none for a file."""
    if split is None or not path.is_dir():
        return []
    read = set(data_files(path, split=split))
    return [_shown(p) for p in _inside(path) if _is_rows(path / p) and path / p not in read]


def stray_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The data files of a mixture's folder that are the copy of none of its sources."""
    copies = {copy for name in names for copy in _copies(name)}
    return [_shown(p) for p in _inside(folder) if is_data_file(p) and p.parts[0] not in copies]


def _inside(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, relative to it, without hidden ones and `__name__` folders."""
    inside = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return [p for p in inside if p.name[0] != "." and not any(part.startswith((".", "__")) for part in p.parent.parts)]


def _shown(path: Path) -> str:
    """A file's name as text: what of it is no text, or no character that shows, is written out."""
    return one_line(path)


def _copies(name: str) -> tuple[str, ...]:
    """What the copy of a mixture's source may be called."""
    return name, *(f"{name}{kind}" for kind in (*KINDS, *ZIPPED))


def local_copy(folder: Path, name: str) -> Path:
    """The file or folder of one source of a mixture in a folder of local copies.

    Raises:
        InputError: it is not there, or there are two.
    """
    found = [copy for copy in _copies(name) if (folder / copy).exists()]
    if len(found) > 1:
        raise InputError(f"data.path={folder}: {' and '.join(found)} in it, expected one copy of source {name}")
    if found:
        return folder / found[0]
    raise InputError(
        f"data.path={folder}: no copy of source {name} in it ({name}.json, .jsonl, ...); put one there or leave it out "
        f"by data.mixture.leave_out"
    )


def check_file(path: Path, key: str = "data.path") -> None:
    """Refuse a file that is missing, empty or of a kind that is not read, in one line.

    Args:
        path: the file.
        key: the setting that named it, for messages.

    Raises:
        InputError: one of these.
    """
    if path.is_dir():
        raise InputError(f"{key}={path}: a folder, expected a file")
    if not path.is_file():
        raise InputError(f"{key}={path}: no such file or folder")
    if not is_data_file(path):
        raise InputError(
            f"{key}={path}: expected a file of {', '.join(KINDS)} (all but the last two also as .gz), or a folder"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty, expected rows")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path}: a pointer of Git LFS, expected the file itself; run git lfs pull in its clone")


def read_path(
    path: Path, split: str | None = None, max_row_bytes: int = MAX_ROW_BYTES, key: str = "data.path"
) -> Iterator[Row]:
    """Yield the rows of a file, or of the files of a folder that belong to a split.

    Args:
        path: File or folder.
        split: Split of a folder.
        max_row_bytes: As in `read_file`.
        key: The setting that gave the path, for messages.

    Raises:
        InputError: As `data_files` and `read_file`.
    """
    for file in data_files(path, key, split):
        name = _shown(file.relative_to(path) if path.is_dir() else Path(file.name))
        for row in read_file(file, max_row_bytes):
            yield row._replace(source=name)


def read_file(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """Yield the rows of JSON (an array, lines, or columns), of a CSV file with a header, of Parquet or Arrow.

    Whether JSON is an array or lines is seen from its first character, whatever the file is called. At most a row and
    a block of the file are in memory. A larger row is skipped block by block and yielded as a row with a problem.

    Args:
        path: The file.
        max_row_bytes: Size of the largest row that is read, uncompressed.

    Raises:
        InputError: The file is missing, empty, not UTF-8, cut off, or holds something else.
    """
    check_file(path)
    kind = read_as(path)
    readers = {"parquet": _read_parquet, "arrow": _read_arrow}
    empty = True
    for row in readers[kind](path, max_row_bytes) if kind in readers else _read_text(path, kind, max_row_bytes):
        empty = False
        yield row._replace(source=_shown(Path(path.name)))
    if empty:
        raise InputError(f"{path}: no rows, expected at least one")


def _too_large(where: str, number: int, limit: int) -> Row:
    """Return what is yielded instead of a row that is larger than the limit in bytes."""
    return Row(where, number, None, problem=f"more than {limit / MIB:.3g} MiB", reason=reasons.TOO_LARGE)


def read_as(path: Path) -> str:
    """Return what a file is read as, by its name: json, csv, tsv, parquet or arrow."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix.removeprefix(".")
    return "json" if kind == "jsonl" else kind


def is_table(source: str) -> bool:
    """Whether a file, by its name, begins with the names of its columns."""
    return read_as(Path(source)) in ("csv", "tsv")


def _read_text(path: Path, kind: str, limit: int) -> Iterator[Row]:
    first = _first_character(path)
    if not first:
        raise InputError(f"{path}: the file is empty, expected rows")
    with _opened(path) as handle:
        if kind in ("csv", "tsv"):
            yield from _csv(path, handle, "\t" if kind == "tsv" else DELIMITERS, limit)
        elif first == b"[":
            yield from _Array(path, handle, limit)
        else:
            yield from _lines(path, handle, limit)


def _first_character(path: Path) -> bytes:
    """The first byte of a file that is no blank, whatever the length of its lines; nothing where there is none."""
    with _opened(path) as handle:
        block = handle.read(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
        while block:
            if start := block.lstrip(BLANKS.encode()):
                return start[:1]
            block = handle.read(CHUNK_BYTES)
    return b""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file's bytes, unzipped; what goes wrong in reading them is told in one line."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
            yield handle
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: no whole .gz file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise InputError(_not_utf8(path)) from None


def _not_utf8(path: Path) -> str:
    """Return the line that says where a file is not UTF-8; no more than a block of it is in memory."""
    number, decoder, pending = 1, codecs.getincrementaldecoder("utf-8")(), b""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are different: of two alike, Python's own reader would lose one in silence."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice in an object")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _not_json(path: Path, line: int, error: Exception) -> InputError:
    if isinstance(error, json.JSONDecodeError):
        cause = f"{error.msg}, column {error.colno}"
    else:
        cause = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return InputError(f"{path}, line {line}: not JSON ({cause})")


def _bounded_lines(handle: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for a line of more than `limit` bytes, which is skipped block by block."""
    while line := handle.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(CHUNK_BYTES)
        yield None


def _lines(path: Path, handle: IO[bytes], limit: int) -> Iterator[Row]:
    """Yield the rows of JSON lines, or those of a file whose only value is a table written column by column."""
    number, only = 0, None
    for line_number, line in enumerate(_bounded_lines(handle, limit), start=1):
        text = "" if line is None else line.decode("utf-8-sig" if line_number == 1 else "utf-8").strip()
        if line is not None and not text:
            continue
        number, where = number + 1, f"{path}, line {line_number}"
        if line is None:
            row = _too_large(where, number, limit)
        else:
            try:
                row = Row(where, number, DECODER.decode(text))
            except (ValueError, RecursionError) as error:
                if number > 1 or not (value := _over_lines(path, limit)):
                    raise _not_json(path, line_number, error) from None
                yield from _rows_of_columns(path, value)
                return
        if number == 1:
            only = row
            continue
        if only is not None:
            yield only
            only = None
        yield row
    if only is not None:
        records = columns_to_records(only.fields)
        yield from [only] if records is None else _numbered(path, records)


def _over_lines(path: Path, limit: int) -> dict[str, Any]:
    """Return the object of several lines that a file consists of; an empty one if it holds anything else.

    Raises:
        InputError: The file goes on behind an object of several lines.
    """
    with _opened(path) as handle:
        text = handle.read(limit + 1).decode("utf-8-sig", errors="ignore").strip()
    try:
        value, end = DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or "\n" not in text[:end]:
        return {}
    if end < len(text):
        raise InputError(f"{path}: an object of several lines, expected an array of rows or a row a line")
    return value


def _rows_of_columns(path: Path, value: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a file that is one object of several lines.

    Raises:
        InputError: The object is not a table written column by column.
    """
    records = columns_to_records(value)
    if records is None:
        held = records_in(value)
        expected = "one JSON object, expected an array of rows or a row a line"
        raise InputError(f"{path}: {expected}" + (f". {held}" if held else ""))
    yield from _numbered(path, records)


def _numbered(path: Path, records: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, fields in enumerate(records, start=1):
        yield Row(f"{path}, row {number}", number, fields)


def columns_to_records(value: Any) -> list[dict[str, Any]] | None:
    """Return the rows of a table that is written column by column; None for any other value.

    `pandas.DataFrame.to_json()` writes an object of row labels for each column, its `orient="split"` the names of the
    columns beside the rows, and `datasets.Dataset.to_dict()` a list for each column.
    """
    if not isinstance(value, dict) or not value:
        return None
    names, columns = list(value), list(value.values())
    if set(names) == {"columns", "index", "data"} and all(isinstance(column, list) for column in columns):
        rows = value["data"]
        if all(isinstance(row, list) and len(row) == len(value["columns"]) for row in rows):
            return [dict(zip(map(str, value["columns"]), row, strict=True)) for row in rows]
        return None
    if all(isinstance(column, dict) for column in columns):
        labels = list(columns[0])
        is_table = all(list(column) == labels for column in columns)
        is_by_column = bool(shape_of(value)) or all(label.isdecimal() for label in labels)
        if not labels or not is_table or not is_by_column:
            return None
        columns = [list(column.values()) for column in columns]
    elif not all(isinstance(column, list) for column in columns):
        return None
    elif not shape_of(value) and any(isinstance(held, dict) for column in columns for held in column):
        return None  # records under a key
    if len({len(column) for column in columns}) > 1 or any(is_dialogue(column) for column in columns):
        return None
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class _Array:
    """The rows of a JSON array; at most one of them and a block of text are in memory."""

    # What ends a value or a string, or opens one: between rows, inside brackets, inside a string.
    OUTSIDE, BRACKETS, STRING = re.compile(r'["\[\]{},]'), re.compile(r'["\[\]{}]'), re.compile(r'"|\\+')

    def __init__(self, path: Path, handle: IO[bytes], limit: int) -> None:
        self.path, self.handle, self.limit = path, handle, limit
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line = "", 0, 1

    def __iter__(self) -> Iterator[Row]:
        if self._next_character() != "[":
            self._fail("expected [ before the first row")
        self.at += 1
        number = 0
        while number or self._next_character() != "]":
            self._next_character()
            is_whole, value = self._value()
            number += 1
            where = f"{self.path}, row {number}"
            yield Row(where, number, value) if is_whole else _too_large(where, number, self.limit)
            mark = self._next_character()
            if mark == "]":
                break
            if mark != ",":
                self._fail("expected , or ] after a row" if mark else "the file ends inside the array")
            self.at += 1
        self.at += 1
        if self._next_character():
            self._fail("text after the array")

    def _value(self) -> tuple[bool, Any]:
        """Read a value, or skip one that is larger than the limit: whether it was read, and the value."""
        block = CHUNK_BYTES
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                line = self.line + error.lineno - 1
                if not self._may_go_on(error):
                    raise _not_json(self.path, line, error) from None
                if len(self.text) - self.at > self.limit:
                    self._skip()
                    return False, None
                if not self._more(block):
                    raise _not_json(self.path, line, error) from None
            except (ValueError, RecursionError) as error:
                raise _not_json(self.path, self._line(), error) from None
            else:  # a number may go on at the end of what was read, behind a mark such as "e+" too
                length = end - self.at
                if end < len(self.text) - 2 or not self._more(block):
                    start, self.at = self.at, self.at + length
                    return num_bytes(self.text[start : self.at]) <= self.limit, value
            block = min(2 * block, max(self.limit, CHUNK_BYTES))

    def _skip(self) -> None:
        """Move behind a value block by block: to where its brackets and its string are closed."""
        depth, is_string = 0, False
        while True:
            marks = self.STRING if is_string else self.BRACKETS if depth else self.OUTSIDE
            found = marks.search(self.text, self.at)
            if found is None:
                self.at = len(self.text)
                if not self._more():
                    return
                continue
            mark = found[0]
            if mark[0] == "\\":  # a run of them; if their number is odd, the last one escapes the next character
                self.at = found.start() + len(mark) // 2 * 2
                if len(mark) % 2:
                    if self.at + 1 == len(self.text) and not self._more():
                        return
                    self.at += 2
                continue
            if not is_string and depth == 0 and mark in ",]}":
                self.at = found.start()
                return
            self.at = found.end()
            if mark == '"':
                is_string = not is_string
            else:
                depth += 1 if mark in "[{" else -1
            if depth == 0 and not is_string:
                return

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Return whether a value that cannot be read may only be cut off where the text that was read ends."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_CUT

    def _next_character(self) -> str:
        """Move to the next character that is not blank, and return it; empty at the end of the file."""
        while True:
            found = BLANK.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def _more(self, size: int | None = None) -> bool:
        """Read another block of some bytes; False at the end of the file."""
        block = self.handle.read(size or CHUNK_BYTES)
        self.line, self.text, self.at = self._line(), self.text[self.at :] + self.decoder.decode(block, not block), 0
        return bool(block)

    def _line(self) -> int:
        return self.line + self.text.count("\n", 0, self.at)

    def _fail(self, cause: str) -> None:
        raise InputError(f"{self.path}, line {self._line()}: not JSON ({cause})")


def num_bytes(text: str) -> int:
    """Return the number of bytes of a text in UTF-8; half a character counts as its escape sequence."""
    return len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))


class _RowTooLarge(Exception):
    """A record of a CSV file is larger than the limit; the reader is at the next one."""


class _RecordLines:
    """The lines of a CSV file for `csv.reader`, bounded for each record.

    Attributes:
        number: Lines that were read.
    """

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self.text, self.limit = text, limit
        self.number, self.pending = 0, ""
        self.begin()

    def begin(self) -> None:
        """Count from the beginning of a record."""
        self.size, self.is_quoted = 0, False

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line, self.pending = self.pending, ""
        if not line.endswith(("\r", "\n")):
            line += self.text.readline(self.limit + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.size += num_bytes(line.rstrip("\r\n"))
        self.is_quoted ^= line.count('"') % 2 == 1
        if self.size > self.limit:
            self._skip(line)
            raise _RowTooLarge
        return line

    def header(self) -> str:
        """Return the first line that is not empty, which is read again as the first record."""
        line = next(self, "")
        while line and not line.strip("\r\n"):
            line = next(self, "")
        self.pending, self.number = line, self.number - bool(line)
        self.begin()
        return line

    def _skip(self, line: str) -> None:
        """Move to the end of a record: to the end of a line outside of quotes."""
        while line and (self.is_quoted or line[-1] not in "\r\n"):
            before, line = line[-1], self.text.readline(CHUNK_BYTES)
            self.is_quoted ^= line.count('"') % 2 == 1
            self.number += before in "\r\n" and bool(line) and before + line[0] != "\r\n"
        if line[-1:] == "\r":  # the line end may be cut in two
            after = self.text.readline(1)
            self.pending = "" if after == "\n" else after


def _csv(path: Path, handle: IO[bytes], delimiters: str, limit: int) -> Iterator[Row]:
    """Yield the rows below a header, the first line that is not empty; its delimiter cuts it into most names."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    try:
        lines = _RecordLines(text, limit)
        try:
            first = lines.header()
        except _RowTooLarge:
            raise InputError(f"{path}: the first line has over {limit / MIB:.3g} MiB, expected a header") from None
        delimiter = max(delimiters, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
        records = _records(path, lines, delimiter)
        at, header = next(records, (1, []))
        if header is None:
            raise InputError(f"{path}, line {at}: the header has over {limit / MIB:.3g} MiB")
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f"{path}, line {at}: column {twice} stands twice")
        for number, (line, values) in enumerate(records, start=1):
            where = f"{path}, line {line}"
            if values is None:
                yield _too_large(where, number, limit)
                continue
            problem = f"{counted(len(values), 'field')} for {counted(len(header), 'column')}"
            fields = dict(zip(header, values, strict=False))
            yield Row(where, number, fields, problem=problem if len(values) != len(header) else "")
    finally:
        text.detach()  # the file is closed where it was opened


def _records(path: Path, lines: _RecordLines, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the records of a CSV file that are not empty, each with its first line; None for one that is too large."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        lines.begin()
        try:
            values = next(reader, None)
        except _RowTooLarge:
            yield line, None
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        except csv.Error as error:
            cause = "a quote that opens in this row is not closed" if "end of data" in str(error) else error
            raise InputError(f"{path}, line {line}: not CSV ({cause})") from None
        if values is None:
            return
        if values:
            yield line, values


def _read_parquet(path: Path, limit: int) -> Iterator[Row]:
    from pyarrow import parquet

    with _arrow_errors(path, "Parquet"), parquet.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names)
        number = 0
        for group in range(file.num_row_groups):
            held = file.metadata.row_group(group)
            if held.num_rows == 1 and held.total_byte_size > limit:  # not decompressed
                number += 1
                yield _too_large(f"{path}, row {number}", number, limit)
                continue
            for batch in file.iter_batches(_batch_rows(held), row_groups=[group]):
                yield from _rows_of_batch(path, batch, number, limit)
                number += batch.num_rows


def _read_arrow(path: Path, limit: int) -> Iterator[Row]:
    """Yield the rows of an Arrow file: a stream, as `datasets.save_to_disk` writes it, or a file with a footer."""
    from pyarrow import ipc, memory_map

    with _arrow_errors(path, "Arrow"), memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            table = ipc.open_file(file)
            batches: Iterable[Any] = map(table.get_batch, range(table.num_record_batches))
        else:
            file.seek(0)
            batches = table = ipc.open_stream(file)
        _check_columns(path, table.schema.names)
        number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                yield from _rows_of_batch(path, part, number, limit)
                number += part.num_rows


@contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    """Report what pyarrow cannot read in one line."""
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: could not be read as {kind} ({cause})") from None


def _check_columns(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise InputError(f"{path}: column {next(n for n in names if names.count(n) > 1)} stands twice")


def _rows_of_batch(where: object, batch: Any, number: int, limit: int) -> Iterator[Row]:
    """Yield the rows of an Arrow batch; one by one if some may be larger than the limit.

    Args:
        where: The source, for messages.
        batch: Some rows.
        number: Rows of the source before them.
        limit: Bytes of a row.
    """
    is_small = batch.nbytes <= limit
    rows = batch.to_pylist() if is_small else range(batch.num_rows)
    for k, row in enumerate(rows):
        at, number = f"{where}, row {number + 1}", number + 1
        if is_small:
            yield Row(at, number, row)
        elif (one := batch.slice(k, 1)).nbytes > limit:
            yield _too_large(at, number, limit)
        else:
            yield Row(at, number, one.to_pylist()[0])


def _batch_rows(group: Any) -> int:
    """Rows of a Parquet row group that are read at a time."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def read_hub(hub_id: str, revision: str | None, split: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """Yield the rows of a data set on the Hugging Face hub, at a pinned revision.

    Raises:
        InputError: The hub cannot be reached, or has no such data set, revision or split.
    """
    import datasets

    try:
        table = datasets.load_dataset(hub_id, revision=revision, split=split)
    except Exception as error:  # the hub's client raises a dozen types for "not to be had"
        raise not_given("dataset", f"{hub_id} (split {split})", error, LOCAL_COPY) from None
    number = 0
    for part in table.with_format("arrow").iter(BATCH_ROWS):
        for batch in part.to_batches():
            for row in _rows_of_batch(f"{hub_id} ({split})", batch, number, max_row_bytes):
                yield row._replace(source=hub_id)
            number += batch.num_rows
