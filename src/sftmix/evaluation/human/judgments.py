"""The judgments of people: the files that pages download, joined with the key of the pages."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.manifest import read_json
from sftmix.errors import InputError
from sftmix.evaluation.human.annotator_page import KEY_FILE

CHOICES = ("left", "tie", "right")


class Key(NamedTuple):
    """The key of the pages that were built together."""

    file: Path
    names: tuple[str, str]  # Names of models a and b
    items: Mapping[str, str]  # Instruction of each item
    record: Mapping[str, Any]  # Origin of the pages
    # By the page's hash, the annotator, and whose answer (a or b) is on the left of each item
    pages: Mapping[str, tuple[int, Mapping[str, str]]]


class Judgment(NamedTuple):
    """A choice of an annotator, counted from 1."""

    annotator: int
    item: str
    choice: str  # left, tie or right
    outcome: str  # Result of model a: win, tie or lose
    seconds: float  # Time that the choice took


def read_judgments(judged: Sequence[Path], root: Path) -> tuple[Key, list[Judgment]]:
    """Return the judgments of files that pages have downloaded, with the key of those pages.

    Args:
        judged: One file for each page.
        root: Folder of the folders of pages.

    Raises:
        InputError: If a file cannot be read, is of a page that was not built here or not with the others, is there
            twice, or a judgment in it is of another page's item or not a choice.
    """
    contents = {file: _read_downloaded(file) for file in dict.fromkeys(judged)}
    if len(contents) < len(judged):
        twice = next(file for file in contents if judged.count(file) > 1)
        raise InputError(f"suite.judgments: {twice} is there twice, expected each file once")
    of_page: dict[str, Path] = {}
    for file, content in contents.items():
        other = of_page.setdefault(content["page_sha256"], file)
        if other is not file:
            raise InputError(f"suite.judgments: {other} and {file} are of one page, expected the later one alone")
    keys = [_read_key(file) for file in sorted(root.glob(f"*/{KEY_FILE}"))]
    key = next((key for key in keys if of_page.keys() <= key.pages.keys()), None)
    if key is None:
        for sha256, file in of_page.items():
            if not any(sha256 in key.pages for key in keys):
                raise InputError(f"{file}: of page {sha256[:12]}, expected one of those that were built in {root}")
        raise InputError(f"suite.judgments: {', '.join(map(str, of_page.values()))} are of pages that were built apart")
    return key, [j for file, content in contents.items() for j in _join(file, content, key)]


def _read_key(file: Path) -> Key:
    try:
        content = read_json(file)
        pages = {sha: (int(page["annotator"]), dict(page["left"])) for sha, page in content["pages"].items()}
        return Key(file, (content["a"], content["b"]), dict(content["items"]), dict(content["record"]), pages)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: no key of pages can be read from it ({type(error).__name__}: {error})") from None


def _read_downloaded(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"suite.judgments: {file}: no such file")
    try:
        content = read_json(file)
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file}: no JSON can be read from it ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("page_sha256"), str):
        raise InputError(f"{file}: no page_sha256, expected a file that a page of suite=human has downloaded")
    if not isinstance(content.get("judgments"), list) or not content["judgments"]:
        raise InputError(f"{file}: holds no judgment, expected at least one")
    return content


def _join(file: Path, content: Mapping[str, Any], key: Key) -> list[Judgment]:
    annotator, left = key.pages[content["page_sha256"]]
    found: dict[str, Judgment] = {}
    for number, row in enumerate(content["judgments"], start=1):
        where = f"{file}, judgment {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: {row!r}, expected an object with id, choice and ms")
        item, choice, ms = row.get("id"), row.get("choice"), row.get("ms")
        if not isinstance(item, str) or item not in left:
            raise InputError(f"{where}: id {item!r}, expected one of the {len(left)} items of its page")
        if item in found:
            raise InputError(f"{where}: item {item} is judged before, expected one judgment of each")
        if choice not in CHOICES:
            raise InputError(f"{where}: choice {choice!r}, expected {', '.join(CHOICES)}")
        if isinstance(ms, bool) or not isinstance(ms, int | float) or not math.isfinite(ms) or ms < 0:
            raise InputError(f"{where}: ms {ms!r}, expected a number of milliseconds")
        outcome = "tie" if choice == "tie" else "win" if (choice == "left") == (left[item] == "a") else "lose"
        found[item] = Judgment(annotator, item, choice, outcome, ms / 1000)
    return list(found.values())
