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
    """Where a benchmark's rows are.

    Attributes:
        path: owner/name, or a folder.
        config: which of its configurations; None: its only one.
        commit: 40 hexadecimal digits; None for a folder, and where nobody has pinned it yet.
        is_folder: whether it is a folder of this machine.
    """

    path: str
    config: str | None
    commit: str | None
    is_folder: bool

    def __str__(self) -> str:
        """As it is given."""
        config = "" if self.config is None else f":{self.config}"
        return f"{self.path}{config}" + ("" if self.commit is None else f"@{self.commit}")


def hub_set(given: str, key: str) -> HubSet:
    """What a setting means.

    Args:
        given: one of FORMS.
        key: the setting, for messages.

    Raises:
        InputError: it is none of them.
    """
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
    """A split as a table of `datasets`.

    Raises:
        InputError: it cannot be had, or has no such split.
    """
    import datasets

    if not source.is_folder:
        try:
            return datasets.load_dataset(source.path, source.config, revision=source.commit, split=split)
        except Exception as error:  # the hub's client raises a dozen types for "not to be had"
            raise unavailable("dataset", f"{source} (split {split})", error, LOCAL_COPY) from None
    try:
        found = datasets.load_from_disk(source.path)
    except Exception as error:  # of files that are lacking, cut off or of something else
        raise InputError(f"{source.path}: no folder that datasets saved ({first_line(error)})") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{source.path}: no split {split} in it, it has {', '.join(found)}")
        return found[split]
    raise InputError(f"{source.path}: one split without a name, expected a DatasetDict with {split}")


def records_of(table: Any, source: HubSet, split: str) -> Iterator[Row]:
    """The rows of a split's table, each with its place."""
    for number, fields in enumerate(table, start=1):
        yield Row(f"{source} ({split}), row {number}", number, fields, str(source))


def is_label(table: Any, column: str) -> bool:
    """Whether a column holds class labels, which count from 0."""
    import datasets

    return isinstance(table.features.get(column), datasets.ClassLabel)
