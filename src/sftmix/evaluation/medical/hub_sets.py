"""Published questions through `datasets`: a data set of the hub at a commit, or a folder that `datasets` saved."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.data.rows import Row
from sftmix.errors import InputError, first_line
from sftmix.hub import looks_local, unavailable

LOCAL_COPY = "bench=FOLDER"
CONFIGS = {"qiaojin/PubMedQA": "pqa_labeled"}  # of data sets that have several and no default
FORMS = "OWNER/NAME, OWNER/NAME:CONFIG, either with @COMMIT behind it, or a folder that datasets saved"


class HubSet(NamedTuple):
    """The data set of a benchmark."""

    path: str  # owner/name, or a folder
    config: str | None  # Name of the configuration; None for the only one
    commit: str | None  # 40 hexadecimal digits; None for a folder, and before the data set is pinned
    is_folder: bool

    def __str__(self) -> str:
        """Return the data set as it is given in the config."""
        config = "" if self.config is None else f":{self.config}"
        return f"{self.path}{config}" + ("" if self.commit is None else f"@{self.commit}")


def hub_set(given: str, key: str) -> HubSet:
    """Return the data set that the setting `key` names in one of FORMS, or raise an InputError."""
    folder = Path(given)
    if folder.is_dir():
        return HubSet(str(folder), None, None, is_folder=True)
    name, at, commit = given.partition("@")
    path, _, config = name.partition(":")
    if looks_local(path):
        raise InputError(f"{key}={given}: no such folder, expected {FORMS}")
    if at and not re.fullmatch("[0-9a-f]{40}", commit):
        raise InputError(f"{key}={given}: {commit} is no commit of 40 hexadecimal digits")
    return HubSet(path, config or CONFIGS.get(path), commit or None, is_folder=False)


def open_table(source: HubSet, split: str) -> Any:
    """Return a split as a table of `datasets`, or raise an InputError if it cannot be read or does not exist."""
    import datasets

    if not source.is_folder:
        try:
            return datasets.load_dataset(source.path, source.config, revision=source.commit, split=split)
        except Exception as error:  # the hub's client raises a dozen types
            raise unavailable("dataset", f"{source} (split {split})", error, LOCAL_COPY) from None
    try:
        found = datasets.load_from_disk(source.path)
    except Exception as error:  # files are missing, cut off or of something else
        raise InputError(f"{source.path}: no folder that datasets saved ({first_line(error)})") from None
    if not isinstance(found, datasets.DatasetDict):
        raise InputError(f"{source.path}: one split without a name, expected a DatasetDict with {split}")
    if split not in found:
        raise InputError(f"{source.path}: no split {split} in it, it has {', '.join(found)}")
    return found[split]


def records_of(table: Any, source: HubSet, split: str) -> Iterator[Row]:
    """Yield the rows of a split's table with their positions."""
    for number, fields in enumerate(table, start=1):
        yield Row(f"{source} ({split}), row {number}", number, fields, str(source))


def is_label(table: Any, column: str) -> bool:
    """Return whether a column holds class labels, which count from 0."""
    import datasets

    return isinstance(table.features.get(column), datasets.ClassLabel)
