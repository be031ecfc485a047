"""Names of the splits that the files of a local data set belong to.

The rules are those of `datasets` (its "file names and splits" page): a word such as train, dev or test in the name of a
file or folder, set off by a mark or a digit, or a sharded file `data/NAME-00000-of-00003.parquet`. Unlike there, the
words behind the keyword belong to the name, so that `train_sft` and `train_gen` are two splits. Also `testset`,
`TestData`, `sftTest` and `heldout` name a split.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from sftmix.errors import InputError
from sftmix.terminal import one_line

TRAIN, ALL = "train", "all"
# `datasets.data_files.SPLIT_KEYWORDS`, which takes a second to import; a test compares the two.
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Words that `datasets` does not know: there, the folder `trainset.json, testset.json` is one split. Here it is two.
HELD_OUT = ("holdout", "heldout", "hold_out", "held_out", "hold-out", "held-out")
FAMILY = {
    **{
        word + end: family
        for family, words in KEYWORDS.items()
        for word in words
        for end in ("", "set", "split", "data")
    },
    **dict.fromkeys(HELD_OUT, "test"),
}
LONG_FORMS = ("training", "testing", "evaluation")  # also ordinary words: training_notes
MARKS = "-._ ()0-9"
CAPITAL = re.compile(r"(?<=[a-z])(?=(?:Train|Test|Valid|Val|Dev|Eval)(?![a-z]))")  # sftTrain.json, sftTestData.json
NAMED = re.compile(rf"(?:^|(?<=[{MARKS}]))({'|'.join(sorted(FAMILY, key=len, reverse=True))})(?=$|[{MARKS}])")
SHARD = re.compile(r"^(.+?)-\d{5}-of-\d{5}")
COUNTED = re.compile(r"(?:[-._ ]*(?:part|shard|chunk|file|batch|of)?[-._ ]*\d+)+$")  # numbers of the pieces of a split
SAVED_DATASET, SAVED_DICT = "state.json", "dataset_dict.json"  # what `save_to_disk` writes beside its Arrow files


def split_names(files: Sequence[Path], folder: Path) -> list[str]:
    """Return the name of the split that each file of a folder belongs to; empty for a file that names none."""
    names = [_name(file, file.relative_to(folder)) for file in files]
    if len(set(names)) == 1 and len(files) > 1:  # a folder that all files lie in, such as `test_project`, tells nothing
        common = next(parent for parent in files[0].parents if all(parent in file.parents for file in files))
        inner = [_name(file, file.relative_to(common)) for file in files]
        return inner if len(set(inner)) > 1 else names
    return names


def files_of_split(files: Sequence[Path], folder: Path, split: str | None, key: str = "data.path") -> list[Path]:
    """Return the files of a folder that belong to a split.

    Args:
        split: Name of a split, a folder or a file, or several joined by +; `all` for every file; None if none is set.

    Raises:
        InputError: The folder has no such split, or it has several and `split` is None.
    """
    names = split_names(files, folder)
    choose = f"{key.removesuffix('path')}split"
    if split is None:
        if not _are_several(names):
            return list(files)
        raise InputError(
            f"{key}={folder}: its files belong to {_listed(files, folder, names)}; choose one by {choose}=NAME of a "
            f"split, folder or file ({choose}=NAME+NAME reads several, {choose}={ALL} every file)"
        )
    chosen: set[Path] = set()
    for wanted in split.split("+"):
        found = _files_of(wanted.strip().lower(), files, folder, names)
        if not found:
            raise InputError(
                f"{choose}={split}: {folder} has no split {one_line(wanted)}, its files belong to "
                f"{_listed(files, folder, names)}"
            )
        chosen.update(found)
    return [file for file in files if file in chosen]


def _files_of(wanted: str, files: Sequence[Path], folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of one split: by its name, by the name of a file or folder, or by its keyword."""
    if wanted == ALL:
        return list(files)
    if exact := [file for file, name in zip(files, names, strict=True) if name and name == wanted]:
        return exact
    if called := [file for file in files if wanted in _components(file.relative_to(folder))]:
        return called
    family = _family(wanted)
    if family == TRAIN and not any(names):  # as in `datasets`: files that name no split are the split train
        return list(files)
    near = {name for name in names if name and _family(name) == family} if wanted in FAMILY else set()
    return [file for file, name in zip(files, names, strict=True) if name in near] if len(near) == 1 else []


def _are_several(names: Sequence[str]) -> bool:
    """Whether names are of more than one split; a test file beside files that name no split counts as two.

    A word such as training or testing before other words (`training_notes`) is a split only beside the other family.
    """
    different = set(names)
    sure = {name for name in different - {""} if not _may_be_a_phrase(name)}
    families = {_family(name) or name for name in different - {""}}
    is_held_out = any(_family(name) not in (None, TRAIN) for name in sure)
    return len(sure) > 1 or len(families) > 1 or (is_held_out and len(different) > 1)


def _may_be_a_phrase(name: str) -> bool:
    """Whether a name begins with the long form of a keyword and goes on, such as `training_notes`."""
    found = NAMED.match(name)
    return found is not None and found[1] in LONG_FORMS and name not in FAMILY


def _name(file: Path, relative: PurePath) -> str:
    """Return the split that a path names: by a word of its own before a longer name, by a folder before a file."""
    if (file.parent.parent / SAVED_DICT).is_file():
        return file.parent.name.lower()
    is_saved = (file.parent / SAVED_DATASET).is_file()  # its files are called data-00000-of-00001.arrow
    folders = [_split_in(CAPITAL.sub("_", part).lower()) for part in relative.parts[:-1]]
    stem = "" if is_saved else _stem(relative.with_name(CAPITAL.sub("_", relative.name)))
    shard = SHARD.match(stem)
    own = _split_in(shard[1] if shard else stem)
    if not own and shard and file.parent.name == "data":
        own = shard[1]
    found = [name for name in (*folders, own) if name]
    return next((name for name in found if name in FAMILY), found[0] if found else "")


def _split_in(text: str) -> str:
    """Return the name of a split in the name of a file or folder: its keyword and what follows, without numbers."""
    found = NAMED.search(text)
    if found is None:
        return ""
    rest = COUNTED.sub("", text[found.end() :].rstrip("()")).rstrip("-._ ()")
    return found[1] + rest


def _stem(path: PurePath) -> str:
    """Return the name of a file without the endings of its kind, in lower case."""
    return re.sub(r"\.(json|jsonl|csv|tsv|parquet|arrow)(\.gz)?$", "", path.name.lower())


def _components(path: PurePath) -> set[str]:
    """Return what a file can be called by: its folders, its name, and the name without ending, shard and number."""
    stem = _stem(path)
    shard = SHARD.match(stem)
    named = {path.name.lower(), stem, COUNTED.sub("", stem), *([shard[1]] if shard else [])}
    return named.union(part.lower() for part in path.parts[:-1])


def _family(name: str) -> str | None:
    """Return train, validation or test for the name of a split; None for any other name."""
    found = NAMED.match(name)
    return FAMILY[found[1]] if found else None


def _listed(files: Sequence[Path], folder: Path, names: Sequence[str]) -> str:
    found = [one_line(name) for name in sorted(set(names) - {""})]
    unnamed = [one_line(file.relative_to(folder)) for file, name in zip(files, names, strict=True) if not name]
    others = f"no split ({', '.join(unnamed[:3])}{', ...' if len(unnamed) > 3 else ''})" if unnamed else ""
    if not found:
        return f"{others}, which counts as {TRAIN}"
    splits = f"{'the split' if len(found) == 1 else 'the splits'} {', '.join(found)}"
    return f"{splits} and {others}" if others else splits
