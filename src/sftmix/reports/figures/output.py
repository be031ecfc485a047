"""Write a report: the drawing as PNG and PDF, its numbers as JSON and Markdown, in a folder under `root/reports`."""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftmix.artifacts.files import replacing_file, write_bytes, write_json
from sftmix.artifacts.hashes import short_name
from sftmix.reports.page import ReportPage, write_pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORTS = "reports"
DOTS_PER_INCH = 160


def write_report(
    root: Path, name: str, page: ReportPage, numbers: Mapping[str, Any], drawing: "Figure | None" = None
) -> Path:
    """Write a report and return its folder. An earlier report of the same name is replaced.

    Args:
        numbers: What the page shows, for other programs. Numbers that are not finite are written as null.
        drawing: Figure of matplotlib.
    """
    folder = root / REPORTS / short_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "numbers.json", _finite(numbers))
    write_bytes(folder / "numbers.md", f"{write_pages([page], 'markdown')}\n".encode())
    if drawing is not None:
        write_figure(drawing, folder, "figure")
    return folder


def write_figure(drawing: "Figure", folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and PDF without dates, so that the same numbers give the same files. Return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        files.append(folder / f"{name}.{ending}")
        with replacing_file(files[-1]) as aside, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # of a name that the font cannot write: a box is drawn
            drawing.savefig(aside, format=ending, dpi=DOTS_PER_INCH, metadata=metadata)
    return files


def _finite(content: Any) -> Any:
    """Return content that JSON can hold: NaN and infinite numbers become null."""
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if hasattr(content, "_asdict"):
        return _finite(content._asdict())
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    return json.loads(json.dumps(content))
