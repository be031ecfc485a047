"""The runs under a root, found by their own files: complete, damaged or unfinished, whichever command made them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import OLD, find_artifacts, is_complete, tidy
from sftmix.artifacts.files import PARTIAL
from sftmix.artifacts.manifest import MANIFEST, damaged, read_json
from sftmix.config.schema import is_baseline
from sftmix.errors import InputError
from sftmix.reports.held_out import read_halves, read_held_out

NOT_A_RUN = ("confidence-", "base-", "examples-", "tokens-")  # names of other artifacts


@dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        folder: Its folder.
        fields: Everything that its content depends on, as its manifest says.
        config: The configuration of the run itself. The configuration in `run.json` is that of the command: if the run
            was tuned as a reference, the command's own target had another model, seed or recipe.
    """

    folder: Path
    fields: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.fields["seed"])


def read_record(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file that a run left.

    Raises:
        InputError: If the file is missing or damaged, or is not an object.
    """
    try:
        content = read_json(file)
    except OSError as error:
        raise damaged(file, f"cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise damaged(file, "is damaged, expected a JSON object")
    return content


def damage_of(folder: Path) -> str | None:
    """Return why the files of a complete run cannot be read, or None if they can."""
    try:
        for file in (MANIFEST, "run.json", "metrics.json"):
            read_record(folder / file)
        read_held_out(folder)
        read_halves(folder)
    except InputError as error:
        return str(error)
    return None


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Return the complete runs under a root in the order of their names, and a line for each other run.

    The lines name runs that are unfinished, and runs whose manifest or `run.json` cannot be read.
    """
    lines: dict[str, str] = {}
    for folder in root.glob("*"):
        name = folder.name
        if name.startswith(".") or name.endswith(OLD):
            continue
        tidy(folder)
        if name.endswith(PARTIAL) and folder.is_dir():
            if not name.startswith(NOT_A_RUN):
                lines[name] = f"unfinished: {name}, the command that started it continues it"
        elif not is_complete(folder) and ((folder / "run.json").is_file() or (folder / "metrics.json").is_file()):
            lines[name] = f"damaged: {name} (no {MANIFEST} in it)"
    found, unreadable = find_artifacts(root, "run")
    runs: list[Run] = []
    for folder, manifest in found:
        try:
            fields = manifest["fields"]
            runs.append(Run(folder, fields, _config_of(read_record(folder / "run.json"), fields)))
        except InputError as error:
            unreadable.append((folder, error))
    lines |= {folder.name: f"damaged: {folder.name} ({error})" for folder, error in unreadable}
    return runs, [lines[name] for name in sorted(lines)]


def _config_of(record: Mapping[str, Any], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of a run from its `run.json` and manifest."""
    config = record.get("config")
    if not isinstance(config, dict):
        raise InputError("run.json has no config")
    own = {**config, "seed": fields["seed"]}
    if record.get("stage") == "reference":
        reference = config.get("reference") or {}
        recipe = {**(config.get("recipe") or {}), "name": "ntp", "mixup": None, "neftune_alpha": None}
        own |= {"model": reference.get("model") or config.get("model"), "recipe": recipe, "split": {"by": "confidence"}}
    own["recipe"] = {**(own.get("recipe") or {}), **fields.get("recipe", {})}
    return own


def baseline_of(run: Path, fields: Mapping[str, Any], others: Sequence[tuple[Path, Mapping[str, Any]]]) -> Path | None:
    """Return the NTP run at the same data, model, seed and optimization as a run, or None if there is none.

    Args:
        run: Folder of the run.
        fields: Fields of its manifest.
        others: Folder and fields of each run that may be the baseline.
    """
    wanted = settings_of(fields)
    found = (
        other for other, theirs in others if other != run and is_baseline(theirs) and settings_of(theirs) == wanted
    )
    return next(found, None)


def settings_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run and its NTP baseline have in common: data, model, optimization, seed and precision."""
    recipe = {
        key: value for key, value in fields.get("recipe", {}).items() if key not in ("ntp", "mixup", "neftune_alpha")
    }
    return {"recipe": recipe, **{key: fields.get(key) for key in ("data", "model", "seed", "precision")}}
