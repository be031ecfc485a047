"""Styles, scripts and templates of pages, which are in the package, and their hashes for a content security policy."""

import base64
import hashlib
from importlib.resources import files


def asset(package: str, name: str) -> str:
    """Return the text of a file of a package. It must be ASCII, so that no character is escaped in a page."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    if not text.isascii():
        raise ValueError(f"{name}: expected ASCII, found {next(c for c in text if not c.isascii())!r}")
    return text


def hash_of(content: str) -> str:
    """Return the hash of an inline style or script, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
