"""Read published questions by `datasets`: from the hub at a commit, or from a folder that `datasets` saved."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.data.rows import Row
from sftmix.errors import InputError, first_line
from sftmix.hub import looks_local, unavailable

LOCAL_COPY = "bench=FOLDER"
CONFIGS = {"qiaojin/PubMedQA": "pqa_labeled"}  # of data sets with several configurations and no default
FORMS = "OWNER/NAME, OWNER/NAME:CONFIG, both optionally with @COMMIT, or a folder that datasets saved"


class HubSet(NamedTuple):
    """The data set of a benchmark."""

    path: str  # owner/name, or a folder
    config: str | None  # Name of the configuration; None for the only one
    commit: str | None  # 40 hexadecimal digits; None for a folder, and before the data set is pinned
    is_folder: bool

    def __str__(self) -> str:
        """Return the data set as the config names it."""
        config = "" if self.config is None else f":{self.config}"
        return f"{self.path}{config}" + ("" if self.commit is None else f"@{self.commit}")


def hub_set(given: str, key: str) -> HubSet:
    """Return the data set that a setting names; raise an InputError if the value has none of FORMS."""
    folder = Path(given)
    if folder.is_dir():
        return HubSet(str(folder), None, None, is_folder=True)
    name, at, commit = given.partition("@")
    path, _, config = name.partition(":")
    if looks_local(path):
        raise InputError(f"{key}={given}: no such folder, expected {FORMS}")
    if at and not re.fullmatch("[0-9a-f]{40}", commit):
        raise InputError(f"{key}={given}: {commit} is not a commit of 40 hexadecimal digits")
    return HubSet(path, config or CONFIGS.get(path), commit or None, is_folder=False)


def open_table(source: HubSet, split: str) -> Any:
    """Return a split as a table of `datasets`; raise an InputError if it does not exist or cannot be read."""
    import datasets

    if not source.is_folder:
        try:
            return datasets.load_dataset(source.path, source.config, revision=source.commit, split=split)
        except Exception as error:  # the client of the hub raises errors of many types
            raise unavailable("dataset", f"{source} (split {split})", error, LOCAL_COPY) from None
    try:
        found = datasets.load_from_disk(source.path)
    except Exception as error:  # files are missing, incomplete or of another kind
        raise InputError(f"{source.path}: not a folder that datasets saved ({first_line(error)})") from None
    if not isinstance(found, datasets.DatasetDict):
        raise InputError(f"{source.path}: a single split without a name, expected a DatasetDict with the split {split}")
    if split not in found:
        raise InputError(f"{source.path}: has no split {split}, expected one of {', '.join(found)}")
    return found[split]


def records_of(table: Any, source: HubSet, split: str) -> Iterator[Row]:
    """Yield the rows of a split with their positions for messages."""
    for number, fields in enumerate(table, start=1):
        yield Row(f"{source} ({split}), row {number}", number, fields, str(source))


def is_label(table: Any, column: str) -> bool:
    """Return whether a column has class labels, which are counted from 0."""
    import datasets

    return isinstance(table.features.get(column), datasets.ClassLabel)
