"""Fingerprints of fields, checksums of files that this program writes, and hashes of input files."""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from sftmix.artifacts.files import write_json
from sftmix.errors import InputError

NAME_BYTES = 225  # File systems allow 255; suffixes such as `.<process id>.partial` need the rest
RACY_NS = 2 * 10**9  # A file that changed less than this before it was hashed may change within the same clock tick


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Return the first 8 hexadecimal digits of the hash of resolved fields, independent of their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def short_name(name: str, max_bytes: int = NAME_BYTES) -> str:
    """Return a name of at most `max_bytes` bytes: a longer one is cut and ends with a hash of the whole name."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= max_bytes:
        return name
    return f"{encoded[: max_bytes - 9].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def checksum(path: Path) -> str:
    """Return the checksum of a file's bytes (XXH3, 128 bits, hexadecimal)."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON content with a checksum of itself."""
    text = json.dumps(content, sort_keys=True)
    return {**content, "checksum": xxhash.xxh3_128(text.encode()).hexdigest()}


def is_intact(content: Any) -> bool:
    """Return whether JSON content matches the checksum that `sealed` has added."""
    if not isinstance(content, dict):
        return False
    return content == sealed({key: value for key, value in content.items() if key != "checksum"})


def content_hash(path: Path, cache: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's files of the given patterns with their names.

    Hashes are remembered in the JSON file `cache`. A remembered hash is used only if size, modification time, change
    time and inode of the file (of the target of a symbolic link) are those of the file that was hashed. The hash of a
    file that had changed less than two seconds earlier is not remembered. A damaged cache is ignored, and a cache that
    cannot be written stays unchanged.

    Raises:
        InputError: If the file changes while it is read.
    """
    if path.is_dir():
        files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        parts = [f"{file.name}:{content_hash(file, cache)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
    key = str(path.resolve())
    known = _remembered_hashes(cache)
    before = _identity(path)
    if (entry := known.get(key)) is not None and entry[:-1] == before:
        return str(entry[-1])
    begin = time.time_ns()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if _identity(path) != before:
        raise InputError(f"{path}: changed while it was read; run the command again when the file is complete")
    if max(before[1:3]) < begin - RACY_NS:
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, sealed({"files": {**_remembered_hashes(cache), key: [*before, found]}}))
    return found


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remembered_hashes(cache: Path) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        content = json.loads(cache.read_text(encoding="utf-8"))
        if is_intact(content) and isinstance(content.get("files"), dict):
            found: dict[str, list[Any]] = content["files"]
            return found
    return {}
