"""Writes files of an artifact together with its checksums: what a test alters on purpose is not damage."""

from pathlib import Path
from typing import Any

from sftmix import artifacts


def write_json(path: Path, content: Any) -> None:
    if path.name == artifacts.MANIFEST and "fingerprint" in content:
        artifacts.seal(path.parent, content)
    else:
        artifacts.write_json(path, content)
        reseal(path)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    artifacts.write_table(path, columns)
    reseal(path)


def reseal(path: Path) -> None:
    """Write the manifest of the artifact that a file lies in again, if there is one."""
    if path.name != artifacts.MANIFEST and (path.parent / artifacts.MANIFEST).is_file():
        artifacts.seal(path.parent)
