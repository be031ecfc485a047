"""Find the data files of a path: a file, a folder with splits, or local copies of the sources of a mixture."""

import json
from collections.abc import Iterable
from pathlib import Path

from sftmix.data.splits import SAVED_DATASET, files_of_split
from sftmix.errors import InputError
from sftmix.terminal import one_line

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".parquet", ".arrow")
ZIPPED = tuple(f"{kind}.gz" for kind in KINDS if kind not in BINARY)
# Files beside the rows of a data set: `datasets.data_files.FILES_TO_IGNORE`, and the state of a saved data set.
METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", SAVED_DATASET)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def is_data_file(path: Path) -> bool:
    """Return whether a file is of a kind that can be read, by its name."""
    return path.name.lower().endswith((*KINDS, *ZIPPED)) and not path.name.startswith(".")


def kind_of_file(path: Path) -> str:
    """Return the format of a file, by its name: json, csv, tsv, parquet, or arrow."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix.removeprefix(".")
    return "json" if kind == "jsonl" else kind


def check_file(path: Path, key: str = "data.path") -> None:
    """Raise an InputError if a file is missing, empty, a pointer of Git LFS, or of a kind that is not read."""
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


def data_files(path: Path, key: str = "data.path", split: str | None = None) -> list[Path]:
    """Return the file itself, or the data files of a folder that belong to a split, sorted by name.

    Raises:
        InputError: As `check_file` and `files_of_split`, or if a folder has no data file.
    """
    if path.is_dir():
        names, others = _files_in(path)
        if not names:
            found = f" (there is {others[0]})" if others else ""
            raise InputError(f"{key}={path}: no file in it{found}, expected one of {', '.join(KINDS)}")
        files = files_of_split([path / name for name in names], path, split, key)
    else:
        files = [path]
    for file in files:
        check_file(file, key)
    return files


def other_files(path: Path) -> list[str]:
    """Return the files of a folder and its subfolders that hold no rows; an empty list for a file."""
    return [one_line(name) for name in _files_in(path)[1]]


def other_splits(path: Path, split: str | None) -> list[str]:
    """Return the data files of a folder that belong to other splits than the one that is read."""
    if split is None or not path.is_dir():
        return []
    read = data_files(path, split=split)
    return [one_line(name) for name in _files_in(path)[0] if path / name not in read]


def stray_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the data files in the folder of a mixture that are not in a copy of one of its sources."""
    copies = {copy for name in names for copy in _names_of_copies(name)}
    found = sorted(name for some in _files_in(folder) for name in some)
    return [one_line(name) for name in found if is_data_file(name) and name.parts[0] not in copies]


def local_copy(folder: Path, name: str) -> Path:
    """Return the local copy (a file or folder) of a source of a mixture; raise an InputError if not exactly one."""
    found = [copy for copy in _names_of_copies(name) if (folder / copy).exists()]
    if len(found) > 1:
        raise InputError(f"data.path={folder}: {' and '.join(found)} in it, expected one copy of source {name}")
    if not found:
        raise InputError(
            f"data.path={folder}: no copy of source {name} in it ({name}.json, .jsonl, ...); put one there or leave it "
            f"out by data.mixture.leave_out"
        )
    return folder / found[0]


def _holds_rows(file: Path) -> bool:
    """Return whether a file holds rows, and not metadata of `datasets` or the rows of an earlier `save_to_disk`."""
    if not is_data_file(file) or file.name in METADATA:
        return False
    state = file.parent / SAVED_DATASET
    if file.suffix != ".arrow" or not state.is_file():
        return True
    try:
        return file.name in {entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{state}: damaged, expected what datasets.save_to_disk writes") from None


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files with and without rows below a folder, but no hidden files and no files of `__name__` folders."""
    found = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    found = [p for p in found if p.name[0] != "." and not any(part.startswith((".", "__")) for part in p.parent.parts)]
    holds_rows = {p: _holds_rows(folder / p) for p in found}
    return [p for p in found if holds_rows[p]], [p for p in found if not holds_rows[p]]


def _names_of_copies(name: str) -> tuple[str, ...]:
    return name, *(f"{name}{kind}" for kind in (*KINDS, *ZIPPED))
