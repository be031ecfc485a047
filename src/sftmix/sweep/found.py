"""The rows of an ablation among the runs of a root, whichever command made them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from sftmix.artifacts.hashes import short_name
from sftmix.config.load import from_hydra
from sftmix.config.schema import is_baseline, to_dict
from sftmix.errors import ConfigError
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.reports.dict_paths import MISSING, leaves_of, look_up
from sftmix.reports.runs import Run, find_runs, settings_of
from sftmix.reports.tables.paper import read_paper
from sftmix.sweep.rows import expand
from sftmix.sweep.store import Sweep, SweepRow, is_inert, same_as
from sftmix.terminal import counted

CHOICES = ("model", "data")
OPTIMIZATION = ("recipe", "optimizer", "scheduler")
TERMS = ("ntp", "mixup", "neftune_alpha")
OF_ROWS = ("select", "groups")  # fields of the data that a row may vary


class _Row(NamedTuple):
    """A row of an ablation: its overrides without the seed, and its configuration."""

    overrides: tuple[str, ...]
    config: Mapping[str, Any]


def with_found_runs(
    name: str, sweeps: Sequence[Sweep], root: Path, given: Sequence[str], composed_by: Sequence[str] = ()
) -> tuple[list[Sweep], list[str]]:
    """Return the sweeps of an ablation, and one more for each setting under which runs of its rows were found.

    A run is a row of the ablation if its method (the terms of the loss, the split, the reference, adapters, the
    selection of the data) is that of the row, and if it agrees with `given`. Runs of another model, data set or
    optimization are on another page of the table.

    Args:
        name: The ablation.
        sweeps: All sweeps under the root.
        root: The folder of the runs.
        given: Settings of train.py that runs must agree with.
        composed_by: Arguments that say where configurations are read, for the printed commands.

    Returns:
        The sweeps, and a line for each run that is left out.
    """
    runs, lines = find_runs(root)
    own = [sweep for sweep in sweeps if sweep.name == name]
    known = {row.target.name for sweep in own for row in sweep.rows}
    lines = [line for line in lines if not any(f" {other}" in line for other in known)]
    rows = list(_rows_of(name, given))
    if not rows:
        return own, lines
    varied = [key for key in CHOICES if len({look_up(row.config, f"{key}.name") for row in rows}) > 1]
    matched: dict[str, list[tuple[_Row, Run]]] = {}
    baselines = {_key(settings_of(run.fields)): run.folder for run in runs if is_baseline(run.fields)}
    pages = {run.folder.resolve(): _page(run, rows, varied) for run in runs}
    for run in runs:
        row = next((row for row in rows if _is_of(run, row, varied, given)), None)
        if row is not None:
            matched.setdefault(pages[run.folder.resolve()], []).append((row, run))
    own = [replace(sweep, page=_page_of(sweep, pages)) for sweep in own]
    by_settings = {tuple(map(same_as, sweep.settings)): sweep.page for sweep in own if sweep.page is not None}
    own = [replace(sweep, page=sweep.page or by_settings.get(tuple(map(same_as, sweep.settings)))) for sweep in own]
    for page, found in matched.items():
        beside = next((sweep for sweep in own if sweep.page == page), None)
        common = beside.common if beside is not None else tuple(_settings(name, given, varied, *found[0]))
        common = (*common, *(o for o in given if not is_inert(o) and same_as(o) not in map(same_as, common)))
        command = ("python", train_script(), *composed_by, f"ablation={name}", "hydra.mode=RUN")
        command = (*command, *(override for override in common if key_of(override) != "ablation"))
        made = [_as_row(command, row, run, baselines) for row in rows for its, run in found if its is row]
        if beside is None and name not in read_paper().tables:  # a table of the paper has its own rows
            missing = [row for row in rows if not any(its is row for its, _ in found)]
            made += [_not_run(command, row, root) for row in missing]
        own.append(Sweep(root, name, "", common, tuple(made), composed_by=tuple(composed_by), page=page))
    shown = {run.folder for found in matched.values() for _, run in found} | {root / target for target in known}
    if others := [run for run in runs if run.folder not in shown and not is_baseline(run.fields)]:
        lines.append(f"{counted(len(others), 'complete run')} in {root} of other settings than the rows of this table")
    return own, lines


def _rows_of(name: str, given: Sequence[str]) -> Iterator[_Row]:
    """The rows that `ablation=NAME` with the given settings means; none if the ablation has no file."""
    loader = GlobalHydra.instance().config_loader()
    if name not in loader.get_group_options("ablation"):
        return
    sweeper = hydra.compose("config", [f"ablation={name}"], return_hydra_config=True).hydra.sweeper
    params, listed = (OmegaConf.to_container(sweeper[key]) if sweeper.get(key) else None for key in ("params", "rows"))
    parse = OverridesParser.create(config_loader=loader).parse_overrides
    assert isinstance(params, dict | None)
    assert isinstance(listed, list | None)
    arguments = [f"ablation={name}", *(override for override in given if key_of(override) not in ("root", "seed"))]
    common, rows = expand(arguments, params or {}, listed or [], parse)  # type: ignore[arg-type]
    for overrides in dict.fromkeys(tuple(o for o in row if key_of(o) != "seed") for row in rows):
        config = _composed([*common, *overrides])
        if config is not None:
            yield _Row(overrides, config)


def _composed(overrides: Sequence[str]) -> Mapping[str, Any] | None:
    """The checked configuration of overrides, or None if they do not make one."""
    try:
        return to_dict(from_hydra(hydra.compose("config", list(overrides))))
    except (ConfigError, HydraException):
        return None


def _is_of(run: Run, row: _Row, varied: Sequence[str], given: Sequence[str]) -> bool:
    """Whether a run is a row of the ablation."""
    mine, wanted = _method(run.config), _method(row.config)
    if mine.get("reference") == "given":  # a file or folders of another trainer: whose confidence is not known
        wanted = {**wanted, "reference": "given"}
    keys = [key_of(override) for override in given if not is_inert(override)]
    compared = [*varied, *(key.replace("/", ".") for key in keys if "@" not in key and key != "recipe")]
    return mine == wanted and all(_agree(look_up(run.config, k), look_up(row.config, k)) for k in compared)


def _agree(mine: Any, wanted: Any) -> bool:
    if isinstance(mine, Mapping) and isinstance(wanted, Mapping) and "name" in wanted:
        return bool(mine.get("name") == wanted["name"])
    return mine is MISSING or bool(mine == wanted)


def _method(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration does, apart from the model, the data set and the optimization."""
    recipe, model = config.get("recipe") or {}, config.get("model") or {}
    data, reference = config.get("data") or {}, config.get("reference") or {}
    split, confidence = config.get("split") or {}, config.get("confidence") or {}
    ntp, mixup, select = recipe.get("ntp") or {}, recipe.get("mixup"), data.get("select")
    method: dict[str, Any] = {
        "ntp": (ntp.get("weight", 1.0), ntp.get("on", "all"), ntp.get("prompt_weight") or 0.0),
        "mixup": mixup and {"alpha": None, "normalize_by": "tokens", "pairing": "random", **mixup},
        "neftune_alpha": recipe.get("neftune_alpha"),
        "lora": model.get("lora"),
        "select": select and {key: select.get(key) for key in ("by", "k", "at_least")},
        "groups": data.get("groups"),
    }
    if mixup is None and method["ntp"][1] == "all":
        return method
    by = split.get("by", "confidence")
    method["split"] = (by, split.get("confident") if by == "group" else None)
    if by == "confidence":
        method["use"] = confidence.get("use")
        scoring = reference.get("model") or model
        is_given = confidence.get("path") is not None or confidence.get("checkpoints") is not None
        adapters = "" if scoring.get("lora") is None else " with LoRA"
        method["reference"] = (
            "given" if is_given else "same" if scoring == model else f"{scoring.get('name')}{adapters}"
        )
    return method


def _page(run: Run, rows: Sequence[_Row], varied: Sequence[str]) -> str:
    """What all runs of a page have in common: everything that their content depends on and that no row varies."""
    recipe = {key: value for key, value in run.fields.get("recipe", {}).items() if key not in TERMS}
    data, model = run.fields.get("data"), run.fields.get("model")
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key not in OF_ROWS}
    if isinstance(model, Mapping):
        model = {key: value for key, value in model.items() if key != "lora"}
    if "model" in varied:
        model, recipe = None, {key: value for key, value in recipe.items() if key != "lr"}
    methods = [_method(row.config) for row in rows]
    mine = _method(run.config)
    alike = [key for key in methods[0] if all(key in m and m[key] == methods[0][key] for m in methods)]
    fixed = {key: mine.get(key) for key in alike if mine.get(key) != "given"}
    return _key([None if "data" in varied else data, model, recipe, run.fields.get("precision"), fixed])


def _page_of(sweep: Sweep, pages: Mapping[Path, str]) -> str | None:
    """The page of the first complete run of a sweep."""
    return next(filter(None, (pages.get(row.target.resolve()) for row in sweep.rows)), None)


def _key(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _settings(name: str, given: Sequence[str], varied: Sequence[str], row: _Row, run: Run) -> Iterator[str]:
    """Yield the overrides in which the runs of a page differ from the shipped ablation."""
    chosen = [key for key in CHOICES if key not in varied]
    overrides = [f"{key}={look_up(run.config, f'{key}.name')}" for key in chosen]
    overrides = [o for o, key in zip(overrides, chosen, strict=True) if o != f"{key}={row.config[key]['name']}"]
    paths = [f"{key}.path" for key in chosen if isinstance(look_up(run.config, f"{key}.path"), str)]
    overrides += [f"{path}={look_up(run.config, path)}" for path in paths]
    yield from overrides
    shipped = _composed([f"ablation={name}", *given, *overrides, *row.overrides])
    if shipped is None:
        return
    mine = leaves_of({key: run.config.get(key) for key in (*chosen, *OPTIMIZATION)})
    for key, value in leaves_of({key: shipped[key] for key in (*chosen, *OPTIMIZATION)}).items():
        follows = any(key.startswith(f"recipe.{term}") for term in TERMS) or (
            key == "optimizer.lr" and mine.get("model.lr") == mine.get(key)
        )
        if key in paths or follows or key.endswith(".name") or is_inert(f"{key}=") or mine.get(key, value) == value:
            continue
        yield f"{key}={json.dumps(mine[key]) if not isinstance(mine[key], str) else mine[key]}"


def _as_row(command: Sequence[str], row: _Row, run: Run, baselines: Mapping[str, Path]) -> SweepRow:
    overrides = (*row.overrides, f"seed={run.seed}")
    baseline = run.folder if is_baseline(run.fields) else baselines.get(_key(settings_of(run.fields)))
    baseline = baseline or run.folder.with_name("no-baseline")
    line = shell_command([*command, *overrides])
    return SweepRow(overrides, run.folder, baseline, None, line, "done", None, None, None)


def _not_run(command: Sequence[str], row: _Row, root: Path) -> SweepRow:
    target = root / short_name(f"not-run-{' '.join(row.overrides)}".replace("/", "-"))
    line = shell_command([*command, *row.overrides])
    return SweepRow(row.overrides, target, target, None, line, "waiting", None, None, None)
