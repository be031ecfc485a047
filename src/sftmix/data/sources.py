"""Rows from files and from the hub, one after the other, each with the place it came from."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from sftmix.data.hints import records_in
from sftmix.errors import InputError
from sftmix.hub import not_given
from sftmix.terminal import counted, one_line

LOCAL_COPY = "data.path=..."
KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
ZIPPED = tuple(f"{kind}.gz" for kind in KINDS if kind != ".parquet")
DELIMITERS = ",;\t|"
CHUNK_BYTES = 2**20
OBJECT_BYTES = 2**28  # of a file whose first line is no JSON, to see what it is instead
LONGEST_CUT = 16  # characters: a literal or an escape that is cut off is refused where it begins
BLANKS = " \t\r\n\v\f"
BATCH_BYTES, BATCH_ROWS = 2**22, 64  # of Parquet, the fewer of the two: a repeated text counts once in a group's bytes


class Row(NamedTuple):
    """One record of a source.

    Attributes:
        where: the place, for messages: file (or hub id) and row or line.
        number: the row in its source, counted from 1.
        fields: what the record holds.
        source: the file or hub id it came from.
        problem: what is wrong with a record that could not be read as its neighbours; empty where nothing is.
    """

    where: str
    number: int
    fields: Any
    source: str = ""
    problem: str = ""


def is_data_file(path: Path) -> bool:
    """Whether a file is of a kind that is read, by its name."""
    return path.name.lower().endswith((*KINDS, *ZIPPED)) and not path.name.startswith(".")


def data_files(path: Path, key: str = "data.path") -> list[Path]:
    """The files that a path means: itself, or those of a folder and the folders in it, by name.

    Args:
        path: file or folder.
        key: the setting that named it, for messages.

    Raises:
        InputError: no such file, or one that is empty or of a kind that is not read; a folder without one that is.
    """
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        files = [p for p in inside if is_data_file(p) and not any(part[0] == "." for part in p.relative_to(path).parts)]
        if not files:
            beside = f" (there is {inside[0].name})" if inside else ""
            raise InputError(f"{key}={path}: no file in it{beside}, expected one of {', '.join(KINDS)}")
    else:
        files = [path]
    for file in files:
        check_file(file, key)
    return files


def other_files(path: Path) -> list[str]:
    """The files of a folder, and of the folders in it, that are of no kind that is read; none for a file."""
    return [_shown(p) for p in _inside(path) if not is_data_file(p)]


def stray_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The data files of a mixture's folder that are the copy of none of its sources."""
    copies = {copy for name in names for copy in _copies(name)}
    return [_shown(p) for p in _inside(folder) if is_data_file(p) and p.parts[0] not in copies]


def _inside(folder: Path) -> list[Path]:
    """The files of a folder, and of the folders in it, from there on; none of those that are hidden."""
    inside = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return [p for p in inside if not any(part[0] == "." for part in p.parts)]


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
            f"{key}={path}: expected a file of {', '.join(KINDS)} (all but .parquet also as .gz), or a folder"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty, expected rows")


def read_path(path: Path) -> Iterator[Row]:
    """The rows of a file, or of all files of a folder.

    Raises:
        InputError: as `read_file`.
    """
    for file in data_files(path):
        name = _shown(file.relative_to(path) if path.is_dir() else Path(file.name))
        for row in read_file(file):
            yield row._replace(source=name)


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a JSON array, of JSON lines, of a CSV file with a header, or of a Parquet file.

    Whether JSON is an array or lines is seen from its first character, whatever the file is called. No more than a row
    and a block of the file is in memory at a time.

    Raises:
        InputError: the file is missing, empty, not UTF-8, cut off, or holds something else.
    """
    check_file(path)
    kind = read_as(path)
    empty = True
    for row in _read_parquet(path) if kind == "parquet" else _read_text(path, kind):
        empty = False
        yield row._replace(source=_shown(Path(path.name)))
    if empty:
        raise InputError(f"{path}: no rows, expected at least one")


def read_as(path: Path) -> str:
    """What a file is read as, by its name: json, csv, tsv or parquet."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix.removeprefix(".")
    return "json" if kind == "jsonl" else kind


def is_table(source: str) -> bool:
    """Whether a file, by its name, begins with the names of its columns."""
    return read_as(Path(source)) in ("csv", "tsv")


def _read_text(path: Path, kind: str) -> Iterator[Row]:
    first = _first_character(path)
    if not first:
        raise InputError(f"{path}: the file is empty, expected rows")
    with _opened(path) as handle:
        if kind in ("csv", "tsv"):
            yield from _csv(path, handle, "\t" if kind == "tsv" else DELIMITERS)
        elif first == b"[":
            yield from _Array(path, handle)
        else:
            yield from _lines(path, handle)


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
    """The line that says where a file is not UTF-8."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                return f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8, expected UTF-8 text"
    return f"{path}: not UTF-8, expected UTF-8 text"


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


def _lines(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(lines, start=1):
        text = line.decode("utf-8-sig" if line_number == 1 else "utf-8").strip()
        if text:
            number += 1
            try:
                fields = DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                if number == 1 and (found := _over_lines(path)):
                    raise InputError(f"{path}: {found}") from None
                raise _not_json(path, line_number, error) from None
            yield Row(f"{path}, line {line_number}", number, fields)


def _over_lines(path: Path) -> str:
    """What a file is that begins with an object of several lines; empty for any other."""
    with _opened(path) as handle:
        text = handle.read(OBJECT_BYTES).decode("utf-8-sig", errors="ignore").strip()
    try:
        value, end = DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(value, dict) or "\n" not in text[:end]:
        return ""
    if end < len(text):
        return "an object of several lines, expected an array of rows or a row a line"
    held = records_in(value)
    return "one JSON object, expected an array of rows or a row a line" + (f". {held}" if held else "")


class _Array:
    """The rows of a JSON array, without holding more than one of them and a block of text."""

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self.path, self.handle = path, handle
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.block = "", 0, 1, CHUNK_BYTES

    def __iter__(self) -> Iterator[Row]:
        if self._next_character() != "[":
            self._fail("expected [ before the first row")
        self.at += 1
        number = 0
        while number or self._next_character() != "]":
            value = self._value()
            number += 1
            yield Row(f"{self.path}, row {number}", number, value)
            mark = self._next_character()
            if mark == "]":
                break
            if mark != ",":
                self._fail("expected , or ] after a row" if mark else "the file ends inside the array")
            self.at += 1
        self.at += 1
        if self._next_character():
            self._fail("something stands after the array")

    def _value(self) -> Any:
        self.block = CHUNK_BYTES
        self._next_character()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                line = self.line + error.lineno - 1
                if not self._may_go_on(error) or not self._more():
                    raise _not_json(self.path, line, error) from None
            except (ValueError, RecursionError) as error:
                raise _not_json(self.path, self._line(), error) from None
            else:  # a number may go on at the end of what was read, behind a mark such as "e+" too
                length = end - self.at
                if end < len(self.text) - 2 or not self._more():
                    self.at += length
                    return value

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether a value that cannot be read may only be cut off where the text that was read ends."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_CUT

    def _next_character(self) -> str:
        """The next character that is no blank, or nothing at the end; the position is moved to it."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in BLANKS:
                self.at += 1
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def _more(self) -> bool:
        """Read another block, twice as long as the one before if a row is longer than that; False at the end."""
        block = self.handle.read(self.block)
        self.line, self.text, self.at = self._line(), self.text[self.at :] + self.decoder.decode(block, not block), 0
        self.block *= 2
        return bool(block)

    def _line(self) -> int:
        return self.line + self.text.count("\n", 0, self.at)

    def _fail(self, cause: str) -> None:
        raise InputError(f"{self.path}, line {self._line()}: not JSON ({cause})")


def _csv(path: Path, handle: IO[bytes], delimiters: str) -> Iterator[Row]:
    """The rows below a header, the first line that is not empty; its delimiter cuts it into most names."""
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    try:
        head = [text.readline()]
        while head[-1] and not head[-1].strip("\r\n"):
            head.append(text.readline())
        delimiter = max(delimiters, key=lambda d: len(next(csv.reader(head[-1:], delimiter=d), [])))
        records = _records(path, csv.reader(chain(head, text), delimiter=delimiter, strict=True))
        at, header = next(records, (1, []))
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f"{path}, line {at}: column {twice} stands twice")
        for number, (line, values) in enumerate(records, start=1):
            problem = f"{counted(len(values), 'field')} for {counted(len(header), 'column')}"
            fields = dict(zip(header, values, strict=False))
            yield Row(f"{path}, line {line}", number, fields, problem=problem if len(values) != len(header) else "")
    finally:
        text.detach()  # the file is closed where it was opened


def _records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not empty, each with the line that it begins in."""
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            cause = "a quote that opens in this row is not closed" if "end of data" in str(error) else error
            raise InputError(f"{path}, line {line}: not CSV ({cause})") from None
        if values is None:
            return
        if values:
            yield line, values


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{path}: column {next(n for n in names if names.count(n) > 1)} stands twice")
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_batch_rows(file.metadata.row_group(group)), row_groups=[group]):
                    for fields in batch.to_pylist():
                        number += 1
                        yield Row(f"{path}, row {number}", number, fields)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: could not be read as Parquet ({str(error).splitlines()[0]})") from None


def _batch_rows(group: Any) -> int:
    """Rows of a Parquet row group that are read at a time."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def read_hub(hub_id: str, revision: str | None, split: str) -> Iterator[Row]:
    """The rows of a data set on the Hugging Face hub, at a pinned revision.

    Raises:
        InputError: the hub cannot be reached, or has no such data set, revision or split.
    """
    import datasets

    try:
        table = datasets.load_dataset(hub_id, revision=revision, split=split)
    except Exception as error:  # the hub's client raises a dozen types for "not to be had"
        raise not_given("dataset", f"{hub_id} (split {split})", error, LOCAL_COPY) from None
    for number, fields in enumerate(table, start=1):
        yield Row(f"{hub_id} ({split}), row {number}", number, fields, hub_id)
