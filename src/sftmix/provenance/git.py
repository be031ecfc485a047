"""The git state of the running source."""

import subprocess
from pathlib import Path
from typing import Any


def git_state() -> dict[str, Any] | None:
    """Return the commit of the source and whether it has uncommitted changes, or None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
