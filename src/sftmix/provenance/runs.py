"""Complete, damaged and unfinished runs under a root, whichever command made them, and their held-out losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.artifact import OLD, find_artifacts, is_complete, tidy
from sftmix.artifacts.files import PARTIAL
from sftmix.artifacts.manifest import MANIFEST, damaged, read_json
from sftmix.artifacts.tables import VAL_SETS, read_table
from sftmix.config.recipe import is_baseline
from sftmix.errors import InputError

OF_LOSS = ("ntp", "mixup", "neftune_alpha", "comparison", "matched")  # Fields of a recipe that its NTP baseline has not
NOT_A_RUN = ("confidence-", "base-", "examples-", "tokens-")  # names of other artifacts


@dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        fields: Everything that the content depends on, from the manifest.
        config: The config of the run itself. The config in `run.json` is the config of the command: if the run was
            tuned as a reference, the target of the command had another model, seed or recipe.
    """

    folder: Path
    fields: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.fields["seed"])


class ExampleLosses(NamedTuple):
    """Held-out loss of a run by example."""

    nll: dict[str, float]  # Sum over the response tokens in nats, by example id
    num_tokens: dict[str, int]  # Number of response tokens, by example id

    def over(self, ids: Sequence[str]) -> float:
        """Return the loss in nats per token over some examples."""
        return sum(self.nll[i] for i in ids) / sum(self.num_tokens[i] for i in ids)


def read_held_out(run: Path) -> ExampleLosses:
    """Return the loss of each held-out example of a run."""
    ids, num_tokens, nll = read_columns(run / "val.parquet", ("example_id", "num_tokens", "nll"))
    return ExampleLosses(dict(zip(ids, nll, strict=True)), dict(zip(ids, num_tokens, strict=True)))


def read_val_sets(run: Path) -> dict[str, ExampleLosses]:
    """Return the losses of a run on the files of `data.val_path`, by name; empty if it has none."""
    if not (run / VAL_SETS).is_file():
        return {}
    found: dict[str, ExampleLosses] = {}
    columns = read_columns(run / VAL_SETS, ("set", "example_id", "num_tokens", "nll"))
    for name, example_id, num_tokens, nll in zip(*columns, strict=True):
        losses = found.setdefault(name, ExampleLosses({}, {}))
        losses.num_tokens[example_id], losses.nll[example_id] = num_tokens, nll
    return found


def read_subsets(run: Path) -> dict[str, str]:
    """Return the subset of each held-out example, `confident` or `unconfident`; empty if the run has no split."""
    if not (run / "split.parquet").is_file():
        return {}
    columns = read_columns(run / "split.parquet", ("example_id", "part", "subset"))
    return {i: subset for i, part, subset in zip(*columns, strict=True) if part == "val" and subset is not None}


def read_columns(file: Path, names: Sequence[str]) -> list[list[Any]]:
    """Return columns of a table of a run. The InputError for a missing column names the remedy."""
    table = read_table(file)
    if "half" in table and "subset" not in table:
        raise InputError(f"{file}: of an earlier version, without the column subset; the run's command makes a new run")
    if lacking := [name for name in names if name not in table]:
        raise damaged(file, f"no column {', '.join(lacking)}")
    return [table[name] for name in names]


def read_record(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run. The InputError for a missing or damaged file names the remedy."""
    try:
        content = read_json(file)
    except OSError as error:
        raise damaged(file, f"cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise damaged(file, "is damaged, expected a JSON object")
    return content


def read_config(run: Path) -> Mapping[str, Any]:
    """Return the config in `run.json` of a run."""
    config = read_record(run / "run.json").get("config")
    if not isinstance(config, dict):
        raise damaged(run / "run.json", "holds no config")
    return config


def damage_of(folder: Path) -> str | None:
    """Return why the files of a complete run cannot be read, or None if they can."""
    try:
        for file in (MANIFEST, "run.json", "metrics.json"):
            read_record(folder / file)
        read_held_out(folder)
        read_subsets(folder)
    except InputError as error:
        return str(error)
    return None


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Return the complete runs under a root by name, and a line for each unfinished or unreadable run."""
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
    for artifact in found:
        try:
            runs.append(read_run(artifact.folder, artifact.fields))
        except InputError as error:
            unreadable.append((artifact.folder, error))
    lines |= {folder.name: f"damaged: {folder.name} ({error})" for folder, error in unreadable}
    return runs, [lines[name] for name in sorted(lines)]


def read_run(folder: Path, fields: Mapping[str, Any]) -> Run:
    """Return a complete run, given the fields of its manifest.

    Raises:
        InputError: If `run.json` is missing or damaged, or has no config.
    """
    record = {**read_record(folder / "run.json"), "config": read_config(folder)}
    return Run(folder, fields, _config_of(record, fields))


def newest_run(root: Path) -> Run:
    """Return the complete run under a root that was completed last.

    Raises:
        InputError: If there is none.
    """
    if runs := find_runs(root)[0]:
        return max(runs, key=lambda run: str(read_json(run.folder / MANIFEST).get("completed", "")))
    raise InputError(f"{root}: no finished run in it; `make demo` makes one in a minute")


def _config_of(record: Mapping[str, Any], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = record["config"]
    own = {**config, "seed": fields["seed"]}
    if record.get("stage") == "reference":
        reference = config.get("reference") or {}
        recipe = {
            **(config.get("recipe") or {}),
            "name": "ntp",
            "mixup": None,
            "neftune_alpha": None,
            "comparison": None,
        }
        own |= {"model": reference.get("model") or config.get("model"), "recipe": recipe, "split": {"by": "confidence"}}
    own["recipe"] = {**(own.get("recipe") or {}), **fields.get("recipe", {})}
    return own


def find_baseline(run: Path, fields: Mapping[str, Any]) -> Path | None:
    """Return the complete NTP run in the same root at the same data, model, seed and optimization, or None."""
    expected = settings_of(fields)
    others = [other for other in find_runs(run.parent)[0] if other.folder != run and is_baseline(other.fields)]
    others.sort(key=lambda other: other.fields.get("val_sets") != fields.get("val_sets"))  # first: the same files
    return next((other.folder for other in others if settings_of(other.fields) == expected), None)


def settings_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run and its NTP baseline have in common: data, model, optimization, seed and precision."""
    recipe = {key: value for key, value in fields.get("recipe", {}).items() if key not in OF_LOSS}
    return {"recipe": recipe, **{key: fields.get(key) for key in ("data", "model", "seed", "precision")}}
