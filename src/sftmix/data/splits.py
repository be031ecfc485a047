"""Find the split that each file of a local data set belongs to, by the rules of `datasets` ("file names and splits").

A keyword (train, dev, test, ...) between marks or digits in the name of a file or folder names a split, and so does a
sharded file `data/NAME-00000-of-00003.parquet`. Beyond these rules, the words after a keyword belong to the name of the
split (`train_sft` and `train_gen` are two splits), and `testset`, `TestData`, `sftTest` and `heldout` name a split.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from sftmix.errors import InputError
from sftmix.terminal import one_line

TRAIN, ALL = "train", "all"
# Copy of `datasets.data_files.SPLIT_KEYWORDS`, which takes a second to import. A test compares the two.
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# `datasets` does not know these endings and words: it reads `trainset.json` and `testset.json` as one split.
ENDINGS = ("", "set", "split", "data")
HELD_OUT = ("holdout", "heldout", "hold_out", "held_out", "hold-out", "held-out")
FAMILY = {word + end: family for family, words in KEYWORDS.items() for word in words for end in ENDINGS}
FAMILY |= dict.fromkeys(HELD_OUT, "test")
LONG_FORMS = ("training", "testing", "evaluation")  # also ordinary words, as in training_notes
MARKS = "-._ ()0-9"
CAPITAL = re.compile(r"(?<=[a-z])(?=(?:Train|Test|Valid|Val|Dev|Eval)(?![a-z]))")  # sftTrain.json, sftTestData.json
NAMED = re.compile(rf"(?:^|(?<=[{MARKS}]))({'|'.join(sorted(FAMILY, key=len, reverse=True))})(?=$|[{MARKS}])")
SHARD = re.compile(r"^(.+?)-\d{5}-of-\d{5}")
COUNTED = re.compile(r"(?:[-._ ]*(?:part|shard|chunk|file|batch|of)?[-._ ]*\d+)+$")  # numbers of the pieces of a split
SAVED_DATASET, SAVED_DICT = "state.json", "dataset_dict.json"  # what `save_to_disk` writes beside its Arrow files


def split_names(files: Sequence[Path], folder: Path) -> list[str]:
    """Return the name of the split that each file of a folder belongs to; empty for a file that names none."""
    names = [_name(file, file.relative_to(folder)) for file in files]
    if len(set(names)) == 1 and len(files) > 1:  # ignore a folder that holds all files, such as `test_project`
        common = next(parent for parent in files[0].parents if all(parent in file.parents for file in files))
        inner = [_name(file, file.relative_to(common)) for file in files]
        return inner if len(set(inner)) > 1 else names
    return names


def files_of_split(files: Sequence[Path], folder: Path, split: str | None, key: str = "data.path") -> list[Path]:
    """Return the files of a folder that belong to a split; raise an InputError if there are none, or several splits.

    Args:
        split: Name of a split, a folder or a file, or several joined by +; `all` for every file; None if none is set.
    """
    split_of = dict(zip(files, split_names(files, folder), strict=True))
    choose = f"{key.removesuffix('path')}split"
    if split is None:
        if not _are_several(set(split_of.values())):
            return list(files)
        raise InputError(
            f"{key}={folder}: its files belong to {_listed(split_of, folder)}; choose one by {choose}=NAME of a split, "
            f"folder or file ({choose}=NAME+NAME reads several, {choose}={ALL} every file)"
        )
    chosen: set[Path] = set()
    for name in split.split("+"):
        found = _files_of(name.strip().lower(), split_of, folder)
        if not found:
            raise InputError(
                f"{choose}={split}: {folder} has no split {one_line(name)}, its files belong to "
                f"{_listed(split_of, folder)}"
            )
        chosen.update(found)
    return [file for file in files if file in chosen]


def _files_of(requested: str, split_of: Mapping[Path, str], folder: Path) -> list[Path]:
    """Return the files of one split: by its name, by the name of a file or folder, or by its keyword."""
    family = _family(requested)
    named = [file for file, name in split_of.items() if name and name == requested]
    named = named or [file for file in split_of if requested in _components(file.relative_to(folder))]
    if requested == ALL or (not named and family == TRAIN and not any(split_of.values())):
        return list(split_of)  # as in `datasets`, files that name no split are the split train
    of_family = {name for name in split_of.values() if name and _family(name) == family and requested in FAMILY}
    return named or [file for file, name in split_of.items() if {name} == of_family]


def _are_several(names: set[str]) -> bool:
    """Return whether names belong to several splits; a test file beside a file that names no split counts as two.

    A name such as `training_notes`, a long form of a keyword and other words, may not be a split. It counts only beside
    names of another family.
    """
    phrases = {n for n in names if n not in FAMILY and (found := NAMED.match(n)) and found[1] in LONG_FORMS}
    sure = names - phrases - {""}
    families = {_family(name) or name for name in names - {""}}
    is_held_out = any(_family(name) not in (None, TRAIN) for name in sure)
    return len(sure) > 1 or len(families) > 1 or (is_held_out and len(names) > 1)


def _name(file: Path, relative: PurePath) -> str:
    """Return the split that a path names. A keyword counts before a longer name, a folder before a file."""
    if (file.parent.parent / SAVED_DICT).is_file():
        return file.parent.name.lower()
    folders = [_split_in(CAPITAL.sub("_", part).lower()) for part in relative.parts[:-1]]
    is_saved = (file.parent / SAVED_DATASET).is_file()  # its files are called data-00000-of-00001.arrow
    stem = "" if is_saved else _stem(CAPITAL.sub("_", relative.name))
    shard = SHARD.match(stem)
    own = _split_in(shard[1] if shard else stem)
    if not own and shard and file.parent.name == "data":
        own = shard[1]
    found = [name for name in (*folders, own) if name]
    return next((name for name in found if name in FAMILY), found[0] if found else "")


def _split_in(text: str) -> str:
    """Return the keyword in the name of a file or folder and the words after it, without numbers; empty if none."""
    found = NAMED.search(text)
    return found[1] + COUNTED.sub("", text[found.end() :].rstrip("()")).rstrip("-._ ()") if found else ""


def _stem(name: str) -> str:
    """Return the name of a file without the endings of its kind, in lower case."""
    return re.sub(r"\.(json|jsonl|csv|tsv|parquet|arrow)(\.gz)?$", "", name.lower())


def _components(path: PurePath) -> set[str]:
    """Return the folders of a file, its name, and its name without ending, shard and number."""
    stem = _stem(path.name)
    shard = SHARD.match(stem)
    return {*map(str.lower, path.parts), stem, COUNTED.sub("", stem), *([shard[1]] if shard else [])}


def _family(name: str) -> str | None:
    """Return train, validation or test for the name of a split; None for any other name."""
    found = NAMED.match(name)
    return FAMILY[found[1]] if found else None


def _listed(split_of: Mapping[Path, str], folder: Path) -> str:
    found = [one_line(name) for name in sorted(set(split_of.values()) - {""})]
    unnamed = [one_line(file.relative_to(folder)) for file, name in split_of.items() if not name]
    others = f"no split ({', '.join(unnamed[:3])}{', ...' if len(unnamed) > 3 else ''})" if unnamed else ""
    if not found:
        return f"{others}, which counts as {TRAIN}"
    splits = f"{'the split' if len(found) == 1 else 'the splits'} {', '.join(found)}"
    return f"{splits} and {others}" if others else splits
