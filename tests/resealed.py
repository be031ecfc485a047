"""Write files of an artifact together with its checksums: what a test alters on purpose is not damage."""

from pathlib import Path
from typing import Any

from sftmix.artifacts import files, tables
from sftmix.artifacts.manifest import MANIFEST, parse_json, seal


def write_json(path: Path, content: Any) -> None:
    if path.name == MANIFEST and "fingerprint" in content:
        _seal(path.parent, content)
    else:
        files.write_json(path, content)
        reseal(path)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    tables.write_table(path, columns)
    reseal(path)


def reseal(path: Path) -> None:
    """Write the manifest again of the artifact that holds a file, if there is one."""
    manifest = path.parent / MANIFEST
    if path != manifest and manifest.is_file():
        _seal(path.parent, parse_json(manifest))


def _seal(folder: Path, content: dict[str, Any]) -> None:
    seal(folder, {key: value for key, value in content.items() if key != "checksum"})
