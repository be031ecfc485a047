"""Read the judgments of people from downloaded files, and join them with the key of the pages."""

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
    # By the hash of the page: annotator, and the model (a or b) whose answer is on the left, by item
    pages: Mapping[str, tuple[int, Mapping[str, str]]]


class Judgment(NamedTuple):
    """A choice of an annotator, counted from 1."""

    annotator: int
    item: str
    choice: str  # left, tie or right
    outcome: str  # Result of model a: win, tie or lose
    seconds: float  # Time that the choice took


def read_judgments(judged: Sequence[Path], root: Path) -> tuple[Key, list[Judgment]]:
    """Return the judgments of downloaded files, and the key of their pages.

    Args:
        judged: One file for each page.
        root: Folder of the folders of pages.

    Raises:
        InputError: If a file cannot be read or is given twice, if its page is unknown or was built separately from the
            other pages, or if a judgment has an unknown item or choice.
    """
    contents = {file: _read_downloaded(file) for file in dict.fromkeys(judged)}
    if len(contents) < len(judged):
        twice = next(file for file in contents if judged.count(file) > 1)
        raise InputError(f"suite.judgments: {twice} is given twice, expected each file once")
    of_page: dict[str, Path] = {}
    for file, content in contents.items():
        other = of_page.setdefault(content["page_sha256"], file)
        if other is not file:
            raise InputError(f"suite.judgments: {other} and {file} come from one page, expected only the later file")
    keys = [_read_key(file) for file in sorted(root.glob(f"*/{KEY_FILE}"))]
    key = next((key for key in keys if of_page.keys() <= key.pages.keys()), None)
    if key is None:
        for sha256, file in of_page.items():
            if not any(sha256 in key.pages for key in keys):
                raise InputError(f"{file}: comes from page {sha256[:12]}, expected a page that was built in {root}")
        raise InputError(f"suite.judgments: {', '.join(map(str, of_page.values()))} come from pages of separate builds")
    return key, [j for file, content in contents.items() for j in _join(file, content, key)]


def _read_key(file: Path) -> Key:
    try:
        content = read_json(file)
        pages = {sha: (int(page["annotator"]), dict(page["left"])) for sha, page in content["pages"].items()}
        return Key(file, (content["a"], content["b"]), dict(content["items"]), dict(content["record"]), pages)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a key of pages ({type(error).__name__}: {error})") from None


def _read_downloaded(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"suite.judgments: {file}: no such file")
    try:
        content = read_json(file)
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("page_sha256"), str):
        raise InputError(f"{file}: has no page_sha256, expected a file that was downloaded from a page of suite=human")
    if not isinstance(content.get("judgments"), list) or not content["judgments"]:
        raise InputError(f"{file}: has no judgment, expected at least one")
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
            raise InputError(f"{where}: id {item!r}, expected one of the {len(left)} items of the page")
        if item in found:
            raise InputError(f"{where}: item {item} has an earlier judgment, expected one for each item")
        if choice not in CHOICES:
            raise InputError(f"{where}: choice {choice!r}, expected {', '.join(CHOICES)}")
        if isinstance(ms, bool) or not isinstance(ms, int | float) or not math.isfinite(ms) or ms < 0:
            raise InputError(f"{where}: ms {ms!r}, expected a number of milliseconds")
        outcome = "tie" if choice == "tie" else "win" if (choice == "left") == (left[item] == "a") else "lose"
        found[item] = Judgment(annotator, item, choice, outcome, ms / 1000)
    return list(found.values())
