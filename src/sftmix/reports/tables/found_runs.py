"""Find the runs of an ablation among all runs of a root, whichever command made them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from sftmix.artifacts.hashes import short_name
from sftmix.config.load import from_hydra
from sftmix.config.recipe import PLAIN_MIXUP, PLAIN_NTP, is_baseline
from sftmix.config.schema import to_dict
from sftmix.errors import ConfigError
from sftmix.provenance.runs import OF_LOSS, Run, find_runs, settings_of
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.reports.diff import MISSING, leaves_of, look_up
from sftmix.reports.tables.paper import read_paper
from sftmix.sweep.jobs import expand
from sftmix.sweep.store import StoredSweep, SweepRun, is_inert, same_as
from sftmix.terminal import counted

CHOICES = {"model": "local", "data": "own"}  # with the choice of each that has no name
OPTIMIZATION = ("recipe", "optimizer", "scheduler")
VARIED_DATA = ("select", "groups")  # Fields of the data that an ablation may vary


class _Setting(NamedTuple):
    overrides: tuple[str, ...]  # Without the seed
    config: Mapping[str, Any]


@dataclass(frozen=True)
class _Ablation:
    name: str
    given: Sequence[str]  # Settings of train.py that runs must agree with
    settings: Sequence[_Setting]  # Settings that the ablation compares

    @property
    def varied(self) -> list[str]:
        """The choices, of model and data, that the ablation varies."""
        return [k for k in CHOICES if len({look_up(s.config, f"{k}.name") for s in self.settings}) > 1]

    def is_of(self, run: Run, setting: _Setting) -> bool:
        mine, expected = _method(run.config), _method(setting.config)
        if mine.get("reference") == "given":  # scores or checkpoints of another trainer: the reference is unknown
            expected = {**expected, "reference": "given"}
        keys = [key_of(override) for override in self.given if not is_inert(override)]
        compared = [*self.varied, *(key.replace("/", ".") for key in keys if "@" not in key and key != "recipe")]
        return mine == expected and all(_agree(look_up(run.config, k), look_up(setting.config, k)) for k in compared)

    def page_of(self, run: Run) -> str:
        """Return everything that the content of a run depends on and that the ablation does not vary."""
        recipe = _without(run.fields.get("recipe", {}), OF_LOSS)
        data, model = _without(run.fields.get("data"), VARIED_DATA), _without(run.fields.get("model"), ("lora",))
        if "model" in self.varied:
            model, recipe = None, _without(recipe, ("lr",))
        methods = [_method(setting.config) for setting in self.settings]
        mine = _method(run.config)
        alike = [key for key in methods[0] if all(key in m and m[key] == methods[0][key] for m in methods)]
        fixed = {key: mine.get(key) for key in alike if mine.get(key) != "given"}
        return _key([None if "data" in self.varied else data, model, recipe, run.fields.get("precision"), fixed])

    def overrides_of(self, setting: _Setting, run: Run) -> Iterator[str]:
        """Yield the overrides in which the runs of a page differ from the config of the ablation."""
        chosen = [key for key in CHOICES if key not in self.varied]
        names = {key: look_up(run.config, f"{key}.name") or CHOICES[key] for key in chosen}
        overrides = [
            f"{key}={name}" for key, name in names.items() if name != (setting.config[key]["name"] or CHOICES[key])
        ]
        paths = [f"{key}.path" for key in chosen if isinstance(look_up(run.config, f"{key}.path"), str)]
        overrides += [f"{path}={look_up(run.config, path)}" for path in paths]
        yield from overrides
        shipped = _composed([f"ablation={self.name}", *self.given, *overrides, *setting.overrides])
        if shipped is None:
            return
        mine = leaves_of({key: run.config.get(key) for key in (*chosen, *OPTIMIZATION)})
        for key, value in leaves_of({key: shipped[key] for key in (*chosen, *OPTIMIZATION)}).items():
            follows = any(key.startswith(f"recipe.{term}") for term in OF_LOSS) or (
                key == "optimizer.lr" and mine.get("model.lr") == mine.get(key)
            )
            if key in paths or follows or key.endswith(".name") or is_inert(f"{key}=") or mine.get(key, value) == value:
                continue
            yield f"{key}={json.dumps(mine[key]) if not isinstance(mine[key], str) else mine[key]}"


def with_found_runs(
    name: str, sweeps: Sequence[StoredSweep], root: Path, given: Sequence[str], composed_by: Sequence[str] = ()
) -> tuple[list[StoredSweep], list[str]]:
    """Return the sweeps of an ablation, and a line for each run that is left out.

    There is one more sweep for each page of the table on which other runs were found.
    A run belongs to a setting of the ablation if its method (the terms of the loss, the split, the reference, adapters,
    the selection of the data) is equal, and if the run agrees with `given`. Runs of another model, data set or
    optimization are on another page of the table.

    Args:
        sweeps: All sweeps under the root.
        given: Settings of train.py.
        composed_by: Arguments that say where configs are read, for the printed commands.
    """
    runs, lines = find_runs(root)
    own = [sweep for sweep in sweeps if sweep.name == name]
    known = {run.target.name for sweep in own for run in sweep.runs}
    lines = [line for line in lines if not any(f" {other}" in line for other in known)]
    ablation = _Ablation(name, given, list(_settings_of(name, given)))
    if not ablation.settings:
        return own, lines
    matched: dict[str, list[tuple[int, Run]]] = {}  # number of the setting and run, by page
    baselines = {_key(settings_of(run.fields)): run.folder for run in runs if is_baseline(run.fields)}
    pages = {run.folder.resolve(): ablation.page_of(run) for run in runs}
    for run in runs:
        number = next((k for k, setting in enumerate(ablation.settings) if ablation.is_of(run, setting)), None)
        if number is not None:
            matched.setdefault(pages[run.folder.resolve()], []).append((number, run))
    pages_of = [[pages.get(run.target.resolve()) for run in sweep.runs] for sweep in own]
    own = [replace(s, page=next(filter(None, found), None)) for s, found in zip(own, pages_of, strict=True)]
    by_settings = {tuple(map(same_as, sweep.settings)): sweep.page for sweep in own if sweep.page is not None}
    own = [replace(sweep, page=sweep.page or by_settings.get(tuple(map(same_as, sweep.settings)))) for sweep in own]
    for page, found in matched.items():
        beside = next((sweep for sweep in own if sweep.page == page), None)
        number, run = found[0]
        common = beside.common if beside is not None else tuple(ablation.overrides_of(ablation.settings[number], run))
        common = (
            *common,
            *(o for o in given if (key_of(o) == "root" or not is_inert(o)) and same_as(o) not in map(same_as, common)),
        )
        command = ("python", train_script(), *composed_by, f"ablation={name}", "hydra.mode=RUN")
        command = (*command, *(override for override in common if key_of(override) != "ablation"))
        made = []
        for number, run in sorted(found, key=lambda pair: pair[0]):
            overrides = (*ablation.settings[number].overrides, f"seed={run.seed}")
            baseline = run.folder if is_baseline(run.fields) else baselines.get(_key(settings_of(run.fields)))
            baseline = baseline or run.folder.with_name("no-baseline")
            made.append(SweepRun(overrides, run.folder, baseline, shell_command([*command, *overrides]), "done"))
        if beside is None and name not in read_paper().tables:  # a table of the paper has its own rows
            for overrides in (s.overrides for k, s in enumerate(ablation.settings) if k not in dict(found)):
                target = root / short_name(f"not-run-{' '.join(overrides)}".replace("/", "-"))
                made.append(SweepRun(overrides, target, target, shell_command([*command, *overrides]), "waiting"))
        own.append(StoredSweep(root, name, "", common, tuple(made), composed_by=tuple(composed_by), page=page))
    shown = {run.folder for found in matched.values() for _, run in found} | {root / target for target in known}
    if others := [run for run in runs if run.folder not in shown and not is_baseline(run.fields)]:
        lines.append(f"{counted(len(others), 'complete run')} in {root} of other settings than the rows of this table")
    return own, lines


def _settings_of(name: str, given: Sequence[str]) -> Iterator[_Setting]:
    loader = GlobalHydra.instance().config_loader()
    if name not in loader.get_group_options("ablation"):
        return
    sweeper = hydra.compose("config", [f"ablation={name}"], return_hydra_config=True).hydra.sweeper
    params, listed = (OmegaConf.to_container(sweeper[key]) if sweeper.get(key) else None for key in ("params", "runs"))
    parse = OverridesParser.create(config_loader=loader).parse_overrides
    assert isinstance(params, dict | None)
    assert isinstance(listed, list | None)
    arguments = [f"ablation={name}", *(override for override in given if key_of(override) not in ("root", "seed"))]
    common, runs = expand(arguments, params or {}, listed or [], parse)  # type: ignore[arg-type]
    for overrides in dict.fromkeys(tuple(o for o in run if key_of(o) != "seed") for run in runs):
        config = _composed([*common, *overrides])
        if config is not None:
            yield _Setting(overrides, config)


def _composed(overrides: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the config of some overrides, or None if the config is not valid."""
    try:
        return to_dict(from_hydra(hydra.compose("config", list(overrides))))
    except (ConfigError, HydraException):
        return None


def _agree(mine: Any, expected: Any) -> bool:
    if isinstance(mine, Mapping) and isinstance(expected, Mapping) and "name" in expected:
        return bool(mine.get("name") == expected["name"])
    return mine is MISSING or bool(mine == expected)


def _method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method of a config: everything except the model, the data set and the optimization."""
    recipe, model = config.get("recipe") or {}, config.get("model") or {}
    data, reference = config.get("data") or {}, config.get("reference") or {}
    split, confidence = config.get("split") or {}, config.get("confidence") or {}
    ntp, mixup, select = recipe.get("ntp") or {}, recipe.get("mixup"), data.get("select")
    method: dict[str, Any] = {
        "ntp": {**PLAIN_NTP, **ntp},
        "mixup": mixup and {"alpha": None, "normalize_by": "tokens", **PLAIN_MIXUP, **mixup},
        "neftune_alpha": recipe.get("neftune_alpha"),
        "comparison": recipe.get("comparison"),
        "lora": model.get("lora"),
        "select": select and {key: select.get(key) for key in ("by", "k", "at_least")},
        "groups": data.get("groups"),
    }
    if mixup is None and method["ntp"]["on"] == "all":
        return method
    by = split.get("by", "confidence")
    method["split"] = (by, split.get("confident") if by == "group" else None)
    if by == "confidence":
        method["use"] = confidence.get("use")
        method["from"] = confidence.get("from", "reference"), reference.get("epochs")
        scoring = reference.get("model") or model
        is_given = confidence.get("path") is not None or confidence.get("checkpoints") is not None
        adapters = "" if scoring.get("lora") is None else " with LoRA"
        adapters += f" on {scoring['quantization']} weights" if scoring.get("quantization") else ""
        scorer = f"{scoring.get('name') or scoring.get('path')}{adapters}"
        method["reference"] = "given" if is_given else "same" if scoring == model else scorer
    return method


def _key(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _without(content: Any, keys: Sequence[str]) -> Any:
    """Return a mapping without some keys, and any other value unchanged."""
    return {k: v for k, v in content.items() if k not in keys} if isinstance(content, Mapping) else content
