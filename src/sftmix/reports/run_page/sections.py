"""What the sections of a run's page show, read from the files of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.scored_examples import NO_SUBSET, ScoredExamples
from sftmix.artifacts.artifact import Found, find_artifacts, is_complete
from sftmix.artifacts.manifest import parse_json, read_json
from sftmix.artifacts.tables import read_table
from sftmix.config.recipe import is_baseline
from sftmix.data.census import first_few
from sftmix.errors import InputError
from sftmix.provenance.runs import Run, read_record
from sftmix.quoting import shell_command
from sftmix.reports.diff import MISSING, leaves_of
from sftmix.reports.held_out import HeldOutTable, held_out_table
from sftmix.reports.run_page.figures import Picture, curve_pictures
from sftmix.reports.summary import Recovery, ScoredExample, recipe_name, recovery
from sftmix.terminal import counted, one_line
from sftmix.training.curves import read_curves, why_no_curves

LONGEST = 20_000  # Characters of a text that are shown
HARDWARE = ("accelerator", "devices", "strategy", "precision", "layout", "attention", "chosen_by_memory")

Facts = list[tuple[str, str]]  # Names and values


class Curves(NamedTuple):
    """Training curves, and the names of the recipes in the order of their colors."""

    pictures: list[Picture]
    names: list[str]


class SampleAnswer(NamedTuple):
    """An example with the answers of the model."""

    instruction: str
    group: str
    texts: list[tuple[str, str]]  # Titles and texts: before tuning, after tuning, in the data


class Fate(NamedTuple):
    """What became of some examples or rows, and why."""

    what: str  # shortened, dropped or noted
    reason: str
    number: int
    places: str  # The first of them


class DataReport(NamedTuple):
    """What became of every row."""

    rows: Facts
    examples: Facts
    fates: list[Fate]


class Setting(NamedTuple):
    """A value of the config. The default is None if it is the same."""

    key: str
    value: str
    default: str | None


class Metadata(NamedTuple):
    """Versions, hardware and seeds of a run, and its config."""

    facts: Facts
    packages: Facts
    environment: list[str]
    changed: list[Setting]  # Settings that are not the default
    others: list[Setting]


class Command(NamedTuple):
    """A command that made a folder."""

    what: str
    folder: str
    command: str


def name_of(run: Run) -> str:
    """Return the recipe of a run for the reader."""
    recipe = str((run.config.get("recipe") or {}).get("name", "ntp"))
    return "NTP" if is_baseline(run.fields) else recipe_name(run.fields, recipe)


def read_facts(run: Run) -> Facts:
    """Return what was trained, on what, and at which cost."""
    record, metrics = read_record(run.folder / "run.json"), read_record(run.folder / "metrics.json")
    config, data, cost = run.config, record.get("data") or {}, record.get("cost") or {}
    model, recipe, optimizer = (config.get(key) or {} for key in ("model", "recipe", "optimizer"))
    path = f" ({model['path']})" if model.get("path") else " (embedded)" if model.get("init") else ""
    parameters = [f"{cost['parameters']:,} parameters"] if cost.get("parameters") else []
    if cost.get("trained_parameters") not in (None, cost.get("parameters")):
        parameters.append(f"{cost['trained_parameters']:,} of them trained")
    adapter = [f"LoRA of rank {model['lora'].get('rank', '?')}"] if model.get("lora") else []
    adapter += [f"quantized to {model['quantization']}"] if model.get("quantization") else []
    source = config.get("data") or {}
    numbers = [(data.get("train_examples"), "to train on"), (data.get("val_examples"), "held out")]
    examples = [f"{counted(number, 'example')} {what}" for number, what in numbers if number]
    name = model.get("name") or Path(str(model.get("path"))).name
    facts = [("Model", f"{name}{path}: {', '.join([*parameters, *adapter])}".removesuffix(": "))]
    facts.append(("Data", f"{source.get('name')}: {', '.join(examples)}".removesuffix(": ")))
    facts.append(("Recipe", _recipe_in_words(run, recipe)))
    if record.get("averaged"):
        facts.append(("Training", f"none: the mean of the checkpoints {', '.join(record['averaged'])}"))
    elif "steps" in metrics:
        batch = f" of {recipe['global_batch_size']} examples" if "global_batch_size" in recipe else ""
        epochs = f", {counted(source['epochs'], 'epoch')}" if isinstance(source.get("epochs"), int) else ""
        rate = metrics.get("lr", optimizer.get("lr"))
        steps = counted(metrics["steps"], "step")
        facts.append(("Training", f"{steps}{batch}{epochs}, learning rate {rate:g} at its peak"))
    if "seconds" in record:
        words = [_duration(record["seconds"])]
        words += [f"{cost[key]:g} {key.replace('_', ' ')}" for key in ("gpu_hours", "core_hours") if key in cost]
        words += [f"{record['tokens']:,} tokens"] if record.get("tokens") else []
        facts.append(("Cost", ", ".join(words)))
    return facts


def _recipe_in_words(run: Run, recipe: Mapping[str, Any]) -> str:
    words, mixup = [name_of(run)], recipe.get("mixup")
    if mixup:
        words += [f"{key} {mixup[key]:g}" for key in ("mu", "alpha") if key in mixup]
    if "confidence" in run.fields or "split" in run.fields:
        by = (run.fields.get("split") or {"by": "confidence"})["by"]
        words.append(f"split by {by}")
    return ", ".join([*words, f"seed {run.seed}"])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def read_losses(run: Run, baseline: Path | None) -> HeldOutTable | None:
    """Return the held-out losses that the summary prints, or None if nothing was held out."""
    file = run.folder / "split.parquet"
    return held_out_table(run.folder, baseline, name_of(run), read_table(file) if file.is_file() else None)


def read_recovery(run: Run, examples: ScoredExamples | None) -> Recovery | None:
    """Return how well confidence recovers what was planted in the embedded data, or None for other runs.

    Ranks of the first epoch are not minus a perplexity, so a run that was split by them has none.
    """
    is_demo = bool((run.config.get("data") or {}).get("demo"))
    if examples is None or examples.subset is None or examples.has_ranks or not is_demo:
        return None
    columns = zip(examples.group, examples.instruction, examples.confidence.tolist(), examples.subset, strict=True)
    chosen = [ScoredExample(group, i or "", c, subset) for group, i, c, subset in columns if subset != NO_SUBSET]
    return recovery(chosen) if chosen else None


def read_curve_pictures(folder: Path, name: str, baseline: Path | None) -> Curves | None:
    """Return the training curves of a run beside those of its baseline, or None if nothing is logged yet.

    Raises:
        InputError: If the run is finished and logged nothing.
    """
    recipes = {name: [lines]} if (lines := read_curves(folder)) else {}
    if recipes and baseline is not None and (lines := read_curves(baseline)):
        recipes["NTP" if name != "NTP" else "NTP baseline"] = [lines]
    if not recipes and is_complete(folder):
        raise InputError(f"{folder}: {why_no_curves(folder)}")
    return Curves(curve_pictures(recipes), list(recipes)) if recipes else None


def read_data_report(folder: Path) -> DataReport:
    """Return the content of `census.json`."""
    census = read_record(folder / "census.json")
    rows = [(name, f"{count:,}") for name, count in census["rows"].items()]
    fates = [
        Fate(what, reason, entry["count"], one_line(first_few([str(place) for place in entry["places"]])))
        for what in ("shortened", "dropped", "noted")
        for reason, entry in census[what].items()
    ]
    totals = {what: sum(fate.number for fate in fates if fate.what == what) for what in ("shortened", "dropped")}
    counts = {"total": census["total"], "kept": census["kept"], **totals}
    return DataReport(rows, [(name, f"{count:,}") for name, count in counts.items()], fates)


def read_answers(folder: Path) -> list[SampleAnswer]:
    """Return the answers in `answers.json`. A run of an earlier version has none from before tuning."""
    found = []
    for entry in read_json(folder / "answers.json"):
        keys = (("before", "Before tuning"), ("answer", "After tuning"), ("response", "In the data"))
        texts = [(title, _shortened(entry[key])) for key, title in keys if key in entry]
        found.append(SampleAnswer(_shortened(entry["instruction"]), entry.get("group") or "", texts))
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"


def read_metadata(run: Run, defaults: Mapping[str, Any]) -> Metadata:
    """Return the content of `run.json`. Settings that are not the default are first.

    Args:
        defaults: The config of `train.py` without arguments.
    """
    record = read_record(run.folder / "run.json")
    hardware, git = record.get("hardware") or {}, record.get("git")
    gpus = hardware.get("gpus") or []
    machine = [", ".join(gpus)] if gpus else []
    if hardware:
        machine += [f"{hardware['cpu']}, {counted(hardware['cores'], 'core')}, {hardware['memory_gib']:g} GiB"]
    facts = [("Hardware", "; ".join(machine))]
    facts += [(name.replace("_", " ").capitalize(), str(record[name])) for name in HARDWARE if record.get(name)]
    facts.append(("Seeds", ", ".join(f"{name} {seed}" for name, seed in (record.get("seeds") or {}).items())))
    commit = "unknown: made outside a checkout" if not isinstance(git, Mapping) else str(git.get("commit"))
    changed = " with uncommitted changes" if isinstance(git, Mapping) and git.get("changed") else ""
    facts += [("Commit", commit + changed), ("Python", str(record.get("python")))]
    own, normal = leaves_of(record.get("config") or run.config), leaves_of(defaults)
    settings = [_setting(key, own[key], normal.get(key, MISSING)) for key in sorted(own)]
    return Metadata(
        [(name, one_line(value)) for name, value in facts if value],
        [(name, number) for name, number in (record.get("packages") or {}).items() if number],
        [str(entry) for entry in record.get("environment") or []],
        [setting for setting in settings if setting.default is not None],
        [setting for setting in settings if setting.default is None],
    )


def _setting(key: str, value: Any, default: Any) -> Setting:
    words = "absent" if default is MISSING else _in_words(default)
    return Setting(key, _in_words(value), None if value == default else words)


def _in_words(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else one_line(value)


def read_commands(run: Run) -> list[Command]:
    """Return the commands that made the reference, the scores and the run, as far as their folders are there."""
    chain, root = [("This run", run.folder)], run.folder.parent
    for scores in _named(root, "confidence", run.fields.get("confidence")):
        references = _named(root, "run", scores.fields.get("checkpoints"))
        chain = [*(("Reference", found.folder) for found in references), ("Scores", scores.folder), *chain]
    commands = []
    for what, folder in chain:
        try:
            words = parse_json(folder / "run.json")["command"]
            commands.append(Command(what, folder.name, shell_command(["python", *map(str, words)])))
        except (InputError, OSError, KeyError, TypeError):
            commands.append(Command(what, folder.name, "(its run.json has no command)"))
    return commands


def _named(root: Path, kind: str, fingerprint: Any) -> list[Found]:
    """Return the complete artifacts of a kind with a fingerprint."""
    return [found for found in find_artifacts(root, kind)[0] if found.folder.name.endswith(f"-{fingerprint}")]
