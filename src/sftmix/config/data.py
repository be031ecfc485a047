"""The data set of the config, and how it becomes text."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftmix.config.fields import check_pinned, checked, inert, number, one_of, path_field
from sftmix.data.schemas import SCHEMAS
from sftmix.errors import ConfigError

# Fields that each kind of selection requires; by=scores also requires k or at_least.
SELECTIONS = {"longest": {"k"}, "scores": {"path"}, "ids": {"path"}, "random": {"k", "seed"}}


SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _are_files(value: Any) -> bool:
    """Return whether a value is one or several paths, or a mapping of names to paths."""
    paths = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return bool(paths) and all(isinstance(path, str) and path for path in paths)


@dataclass(kw_only=True)
class Demo:
    """Generator of the embedded data set (data=demo)."""

    num_examples: int = number(least=2, most=20000)  # Examples of the embedded data set
    seed: int = number(least=0)  # Seed of its generator
    low_fraction: float | None = number(
        above=0, below=1
    )  # Fraction of rows of the group `low`; null: none, but families with noise


@dataclass(kw_only=True)
class Source:
    """One of the data sets of a mixture."""

    hub_id: str
    revision: str | None  # Commit of the hub id; null: the newest, which is remembered under root
    split: str
    cap: int | None  # Read only the first rows
    published: int | None  # Number of rows that its page states
    holds: str | None  # Benchmark whose questions it contains, if an evaluation uses them

    def check(self, key: str) -> None:
        if self.revision is not None:
            check_pinned(key, self.hub_id, self.revision)
        if self.cap is not None and self.cap < 1:
            raise ConfigError(f"{key}.cap={self.cap}: expected at least 1")


@dataclass(kw_only=True)
class Mixture:
    """Several data sets in one (data=medalpaca)."""

    sources: dict[str, Source]  # (internal) By name
    leave_out: list[str]  # Names of sources to leave out
    total: int | None  # (internal) Number of examples that the paper states

    @property
    def taken(self) -> dict[str, Source]:
        """The sources that are not left out."""
        return {name: source for name, source in self.sources.items() if name not in self.leave_out}

    def check(self, key: str) -> None:
        for name in self.leave_out:
            if name not in self.sources:
                raise ConfigError(f"{key}.leave_out: no source {name}, there are {', '.join(self.sources)}")
        if not self.taken:
            raise ConfigError(f"{key}.leave_out: no source is left")


@dataclass(kw_only=True)
class Replacement:
    """Responses that replace those of the data set (data=alpaca_quality, Table 4)."""

    hub_id: str | None  # Hub id of the responses that replace others
    revision: str | None  # Commit of the hub id; null: the newest, which is remembered under root
    split: str | None  # Split of the hub data set, or of a local folder
    path: str | None = path_field()  # Local file or folder instead of the hub id
    fraction: float = number(above=0, most=1)  # Fraction of the instructions whose responses are replaced

    def check(self, key: str) -> None:
        if self.path is None and self.hub_id is None:
            raise ConfigError(f"{key}.path has no value: set it or {key}.hub_id")
        if self.path is None and self.revision is not None:
            check_pinned(key, self.hub_id, self.revision)


@dataclass(kw_only=True)
class Select:
    """Which examples to train on; choose data/select= (Table 7)."""

    by: str = one_of("longest", "scores", "ids", "random")  # How examples are chosen; set by data/select=
    k: int | None = number(least=2)  # Number of examples
    at_least: float | None  # Lowest score
    path: str | None = path_field()  # File of the scores or ids
    seed: int | None = number(least=0)  # Seed of a random choice
    block: int | None = number(least=0)  # Which of the disjoint sets of k examples in the random order, from 0; null: 0

    def check(self, key: str) -> None:
        given = {name for name in ("k", "at_least", "path", "seed", "block") if getattr(self, name) is not None}
        if self.by == "scores":
            if len(given & {"k", "at_least"}) != 1:
                raise ConfigError(f"{key}.by=scores: expected one of {key}.k and {key}.at_least")
            given -= {"k", "at_least"}
        if self.by == "random":
            given -= {"block"}
        for name in sorted(given - SELECTIONS[self.by]):
            raise ConfigError(f"{key}.{name}={getattr(self, name)}: selecting by {self.by} does not read it")
        for name in sorted(SELECTIONS[self.by] - given):
            raise ConfigError(f"{key}.{name} has no value: selecting by {self.by} needs it")


@dataclass(kw_only=True)
class Columns:
    """Names of columns, as in data.columns={instruction: question, output: answer}."""

    instruction: str | None  # Column of the source that holds `instruction`, if its name differs
    input: str | None  # Column of the source that holds `input`, if its name differs
    output: str | None  # Column of the source that holds `output`, if its name differs
    prompt: str | None  # Column of the source that holds `prompt`, if its name differs
    completion: str | None  # Column of the source that holds `completion`, if its name differs
    system: str | None  # Column of the source that holds `system`, if its name differs
    messages: str | None  # Column of the source that holds `messages`, if its name differs
    conversations: str | None  # Column of the source that holds `conversations`, if its name differs
    group: str | None  # Column of the source that holds `group`, if its name differs
    weight: str | None  # Column, or field of the turns, with weights of next-token prediction; null: none are read


@dataclass(kw_only=True)
class Data:
    """The data set, and how it becomes text."""

    name: str | None = checked(
        lambda n: re.fullmatch(r"[^/\0]*[^/\0.][^/\0]*", n) is not None, "a name without / for folders"
    )  # (internal) Name in folders and messages; null: that of the file or hub id
    hub_id: str | None  # Data set of the hub, OWNER/NAME
    revision: str | None  # Commit of the hub id; null: the newest, which is remembered under root
    split: str | None  # Split of the hub data set, or of a local folder; null: a folder has only one
    path: str | None = path_field()  # Local file or folder instead of the hub id
    demo: Demo | None
    mixture: Mixture | None
    replacement: Replacement | None
    schema: str | None = one_of(*SCHEMAS)  # Schema of the rows; null: found from the first rows
    columns: Columns
    groups: list[str] | None  # Keep only the examples of these groups
    select: Select | None
    num_workers: int | None = inert(number(least=1))  # Processes that tokenize; null: one for each core
    template: str = path_field()  # Name of a shipped template, tokenizer (its own), or a .jinja file
    max_seq_len: int = number(least=8)  # Longest example, prompt and response, in tokens
    overlong: str = one_of("drop", "truncate", "error")  # What happens to examples that are longer
    epochs: int = number(least=1)  # Passes over the training examples
    num_checkpoints: int = number(least=1)  # C: checkpoints of the reference that score
    val_fraction: float = number(least=0, below=1)  # Fraction of the source rows that is held out
    val_seed: int | None = number(least=0)  # Draws another held-out part of that size; null: the usual one
    val_path: Any = path_field(
        holds=_are_files, expected="a file, a list of files, or a mapping '{NAME: FILE}'"
    )  # Validation files of another origin: FILE, [FILE, FILE] or {NAME: FILE}; null: none
    limit: int | None = number(least=1)  # Read only the first rows
    published: int | None = inert(number(least=1))  # Examples that its page states, for mode=plan without the data
    max_row_mib: float = number(above=0)  # Largest row in MiB, uncompressed; larger rows are dropped

    @property
    def title(self) -> str:
        """Name in folders and messages: `name`, or that of the file or hub id."""
        if self.name is not None:
            return self.name
        return Path(str(self.hub_id)).name if self.path is None else _stem(self.path)

    @property
    def val_files(self) -> dict[str, str]:
        """The validation files of another origin by name, which is the stem of the file if no other is given."""
        if isinstance(self.val_path, dict):
            return {str(name): path for name, path in self.val_path.items()}
        return {_stem(path): path for path in self._val_paths}

    @property
    def _val_paths(self) -> list[str]:
        given = self.val_path
        return [] if given is None else [given] if isinstance(given, str) else list(given)

    def of_val_file(self, name: str) -> "Data":
        """Return the settings by which a validation file of another origin is read and encoded.

        Schema, names of columns, template and lengths are those of the training data. Groups and weights, which choose
        and weight the examples to train on, are not read, and nothing is held out, selected or cut off.
        """
        return replace(
            self,
            name=name,
            path=self.val_files[name],
            columns=replace(self.columns, group=None, weight=None),
            val_fraction=0.0,
            val_seed=None,
            hub_id=None,
            revision=None,
            split=None,
            demo=None,
            mixture=None,
            replacement=None,
            groups=None,
            select=None,
            limit=None,
            val_path=None,
        )

    @property
    def max_row_bytes(self) -> int:
        """Size of the largest row that is read, in bytes."""
        return max(1, int(self.max_row_mib * 2**20))

    def check(self, key: str) -> None:
        self._check_val_files(f"{key}.val_path")
        if self.val_seed is not None and self.val_fraction == 0:
            raise ConfigError(f"{key}.val_seed={self.val_seed}: nothing is held out, set {key}.val_fraction above 0")
        for name in ("path", "hub_id"):
            if self.demo is not None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{key}.{name}={getattr(self, name)}: data {self.name} is made here and reads nothing, choose "
                    f"data=alpaca or another"
                )
        if self.path is None and self.hub_id is None and self.demo is None and self.mixture is None:
            raise ConfigError(f"{key}.path has no value: expected {key}.path=FILE, a folder, or {key}.hub_id")
        if self.name is None and self.path is None and self.hub_id is None:
            raise ConfigError(f"{key}.name has no value: only a file, a folder or a hub id can name the data set")
        if self.path is None and self.hub_id is not None:
            if self.split is None:
                raise ConfigError(f"{key}.split has no value: a data set of the hub needs one")
            if self.revision is not None:
                check_pinned(key, self.hub_id, self.revision)
        if self.path is not None and self.hub_id is not None and self.name is None:
            # the source names the data; a data set with a name may have a local copy
            raise ConfigError(f"{key}.hub_id={self.hub_id}: with {key}.path it cannot take effect, give one of them")

    def _check_val_files(self, key: str) -> None:
        """Refuse names that cannot name metrics, and a name or a file that occurs twice."""
        files, remedy = self.val_files, f"'{key}={{NAME: FILE}}' names each file"
        is_mapping = isinstance(self.val_path, dict)
        names = list(files) if is_mapping else [_stem(path) for path in self._val_paths]
        for what, given in (("file", files.values() if is_mapping else self._val_paths), ("name", names)):
            if twice := [one for one, count in Counter(given).items() if count > 1]:
                raise ConfigError(f"{key}: the {what} {twice[0]} occurs twice, expected each once; {remedy}")
        for name in names:
            if not SET_NAME.fullmatch(name):
                expected = "a name of letters, digits, '.', '_' and '-'"
                raise ConfigError(f"{key}: {name!r} names a file, expected {expected}; {remedy}")


def _stem(path: str) -> str:
    """Return the name of a file without its ending."""
    return Path(re.sub(r"(?i)\.gz$", "", path)).stem
