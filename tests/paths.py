"""Where the repository and the real files beside it are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SHARED = ROOT.parent / "shared"
