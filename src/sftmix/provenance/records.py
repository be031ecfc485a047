"""From a finished run or sweep to a record: numbers, what made them, and a line in the index.

No data, no weights and no text of examples goes into a record, and no path of the machine.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftmix.analysis.verdict import Verdict
from sftmix.artifacts.artifact import tidy
from sftmix.artifacts.files import remove, sync_folder, write_bytes, write_json
from sftmix.artifacts.hashes import NAME_BYTES
from sftmix.artifacts.manifest import MANIFEST
from sftmix.config.schema import is_baseline
from sftmix.errors import InputError
from sftmix.quoting import shell_command
from sftmix.reports.held_out import HeldOutLoss, read_held_out
from sftmix.reports.page import markdown
from sftmix.reports.runs import baseline_of, find_runs, read_record
from sftmix.reports.tables.compare import HeldOutComparison, compare_held_out
from sftmix.reports.tables.groups import difference_figure
from sftmix.reports.tables.leaderboard import leaderboard
from sftmix.reports.tables.paper import read_paper
from sftmix.reports.tables.table import table
from sftmix.sweep.store import Sweep, SweepRow, read_sweep
from sftmix.terminal import counted, one_line

INDEX = "README.md"
INDEX_HEAD = "# Experiments\n\n| record | question | outcome |\n|---|---|---|\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def record_run(run: Path, to: Path, name: str | None = None) -> Path:
    """Write the record of a finished run; the folder it is in.

    Args:
        run: its folder.
        to: the folder of all records.
        name: of the record; None: the run's own.

    Raises:
        InputError: the run is not finished, or there is such a record already.
    """
    tidy(run)
    if not (run / MANIFEST).is_file() or not (run / "metrics.json").is_file():
        raise InputError(f"run={run}: no finished run, expected {MANIFEST} and metrics.json in it")
    manifest, passport, metrics = (read_record(run / file) for file in (MANIFEST, "run.json", "metrics.json"))
    what = _what(passport, manifest["fields"])
    losses = read_held_out(run)
    plain = is_baseline(manifest["fields"])
    baseline = None if plain else find_baseline(run, manifest["fields"])
    theirs = None if baseline is None else read_held_out(baseline)
    found = None if baseline is None else compare_held_out(run, baseline)
    outcome = _outcome(metrics, found, plain)
    question = f"what does {what} reach on held-out examples{'' if found is None else ', beside NTP'}?"
    text = [
        f"# {markdown(what)}",
        f"Question: {markdown(question)}",
        f"Outcome: {outcome}.",
        _code(_command(passport)),
        *_circumstances(passport),
        *_metrics(metrics, losses, theirs, found),
    ]
    title = str(manifest["title"])
    files = {"run.json": without_paths(passport)}
    return _write(to, str(manifest["completed"])[:10], name or title, text, files, question, outcome)


def record_sweep(folder: Path, to: Path, name: str | None = None) -> Path:
    """Write the record of a sweep, as far as its rows are there; the folder it is in.

    Args:
        folder: of the sweep.
        to: the folder of all records.
        name: of the record; None: the sweep's own.

    Raises:
        InputError: it is no sweep, no row is there, or there is such a record already.
    """
    sweep = read_sweep(folder.resolve())
    done = [row for row in sweep.rows if row.is_done]
    if not done:
        raise InputError(f"sweep={folder}: no row of it is finished")
    passport = read_record(done[0].target / "run.json")
    dates = [str(read_record(row.target / MANIFEST)["completed"])[:10] for row in done]
    is_known = sweep.name in read_paper().tables
    what = f"ablation {sweep.name}" if sweep.name != "sweep" else "a sweep"
    question = f"{what}: which row has the lowest held-out loss?"
    outcome = _outcome_of_sweep(sweep, done)
    text = [
        f"# {markdown(what[0].upper() + what[1:])}",
        f"Question: {markdown(question)}",
        f"Outcome: {outcome}.",
        _code(sweep.command),
        *_circumstances(passport, of_all=False),
        "## Leaderboard",
        leaderboard(sweep, "markdown"),
        *(["## Beside the paper", table(sweep.name, [sweep], "markdown")] if is_known else []),
    ]
    files = {"run.json": without_paths(passport), "sweep.json": without_paths(read_record(folder / MANIFEST))}
    return _write(to, max(dates), name or sweep.name, text, files, question, outcome)


def find_baseline(run: Path, fields: Mapping[str, Any]) -> Path | None:
    """The finished NTP run beside a run, at the same data, model, seed and optimization; None where there is none."""
    return baseline_of(run, fields, [(other.folder, other.fields) for other in find_runs(run.parent)[0]])


def _what(passport: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """A run in words: its recipe, model, data and seed."""
    config, recipe = passport["config"], fields["recipe"]
    name = "NTP" if is_baseline(fields) else str(config["recipe"]["name"])
    mu = "" if recipe["mixup"] is None else f" (mu {recipe['mixup']['mu']:g})"
    stage = " as the reference" if passport.get("stage") == "reference" else ""
    model, data = config["model"]["name"], config["data"]["name"]
    return f"recipe {name}{mu} with model {model} on {data}, seed {fields['seed']}{stage}"


def _outcome(metrics: Mapping[str, Any], found: HeldOutComparison | None, plain: bool) -> str:
    """What came out, in a line, from the numbers alone."""
    if metrics.get("val_loss") is None:
        return "nothing was held out, so no loss is known"
    fell = f"held-out loss {metrics['val_loss']:.4f} ({metrics['val_loss_before']:.4f} before)"
    if found is None:
        return f"{fell}, n=1 seed" + ("" if plain else ", no NTP run at the same settings to compare with")
    difference, verdict = found
    n = f"n={counted(len(difference.of_seeds), 'seed')}, {counted(difference.num_examples, 'example')}"
    return f"{fell}; minus NTP {difference_figure(difference, verdict).text}, {n}{_reason(verdict)}"


def _reason(verdict: Verdict) -> str:
    return "" if verdict.reason is None else f" ({verdict.reason})"


def _outcome_of_sweep(sweep: Sweep, done: Sequence[SweepRow]) -> str:
    losses = {row: read_held_out(row.target) for row in done}
    by_setting: dict[tuple[str, ...], list[float]] = {}
    for row, loss in losses.items():
        if loss.nll:
            by_setting.setdefault(row.seedless, []).append(loss.over(list(loss.nll)))
    if not by_setting:
        return f"{len(done)} of {len(sweep.rows)} rows done; nothing was held out, so no loss is known"
    means = {setting: sum(values) / len(values) for setting, values in by_setting.items()}
    best = min(means, key=lambda setting: means[setting])
    n = len(by_setting[best])
    what = " ".join(best) or "the one setting there is"
    return (
        f"{len(done)} of {len(sweep.rows)} rows done; lowest held-out loss {means[best]:.4f} (n={n}): {markdown(what)}"
    )


def _command(passport: Mapping[str, Any]) -> str:
    return shell_command(["python", *(_path_free(part) for part in passport.get("command", ["train.py"]))])


def _circumstances(passport: Mapping[str, Any], *, of_all: bool = True) -> Iterator[str]:
    """Source, versions, hardware, data and cost, as far as the passport has them."""
    git, packages, hardware = (passport.get(key) or {} for key in ("git", "packages", "hardware"))
    changed = ", with changes that no commit has" if git.get("changed") else ""
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    rows = {
        "commit": f"{git['commit']}{changed}" if git.get("commit") else None,
        "versions": f"Python {passport.get('python')}, {versions}",
        "hardware": _hardware(hardware) if hardware else None,
        "precision": passport.get("precision"),
    }
    if of_all:
        data, cost = passport.get("data") or {}, passport.get("cost") or {}
        rows |= {
            "data": _counts(passport.get("census") or {}, data),
            "wall time": f"{passport['seconds']:,.1f} s" if "seconds" in passport else None,
            "tokens trained": f"{passport['tokens']:,}" if "tokens" in passport else None,
            "cost": _cost(cost) if cost else None,
        }
    lines = [f"| {key} | {markdown(str(value))} |" for key, value in rows.items() if value]
    yield "\n".join(["| what | value |", "|---|---|", *lines])


def _hardware(hardware: Mapping[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('memory_gib')} GiB; {gpus}"


def _counts(census: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    rows = census.get("rows", {}).get("total")
    parts = [f"{rows:,} rows, {census.get('kept'):,} examples kept as they are"] if rows is not None else []
    if data:
        parts.append(f"{data['train_examples']:,} trained on, {data['val_examples']:,} held out")
    return "; ".join(parts)


def _cost(cost: Mapping[str, Any]) -> str:
    hours = next((f"{cost[key]:g} {key.replace('_', '-')}" for key in ("gpu_hours", "core_hours") if key in cost), "")
    return f"{hours}, {cost.get('flops', 0):.3g} operations (estimated), {cost.get('parameters', 0):,} parameters"


def _metrics(
    metrics: Mapping[str, Any], ours: HeldOutLoss, theirs: HeldOutLoss | None, found: HeldOutComparison | None
) -> Iterator[str]:
    """The table of losses, and how long it took."""
    if metrics.get("val_loss") is not None:
        columns, values = ["before", "after"], [metrics["val_loss_before"], ours.over(list(ours.nll))]
        if theirs is not None and found is not None:
            columns, values = [*columns, "NTP"], [*values, theirs.over(list(theirs.nll))]
        cells = [f"{value:.4f}" for value in values]
        if found is not None:
            cells.append(difference_figure(*found).text)
            columns.append(f"minus NTP [95%], {counted(len(found.difference.of_seeds), 'seed')}")
        head = f"held-out loss, nats per response token ({counted(len(ours.nll), 'example')}, n=1 seed)"
        yield "\n".join(
            [
                f"| {' | '.join([head, *map(markdown, columns)])} |",
                f"|{'---|' * (len(columns) + 1)}",
                f"| all | {' | '.join(map(markdown, cells))} |",
            ]
        )
    known = {
        key: metrics[key]
        for key in ("steps", "examples", "pairs", "seconds", "tokens_per_sec", "lr")
        if metrics.get(key)
    }
    yield ", ".join(f"{key} {value:g}" for key, value in known.items())


def _write(
    to: Path,
    date: str,
    name: str,
    text: Sequence[str],
    files: Mapping[str, Any],
    question: str,
    outcome: str,
) -> Path:
    """Write a record as a whole, then its line of the index.

    Raises:
        InputError: there is one of that name, or the name is none of a folder.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"name={name}: expected letters, digits, dots, dashes and underscores")
    if len(name) > NAME_BYTES - 11:
        raise InputError(f"name={name[:40]}...: {len(name)} characters, expected at most {NAME_BYTES - 11}")
    folder = to / f"{date}_{name}"
    to.mkdir(parents=True, exist_ok=True)
    with _held(to):
        _complete_index(to)
        if folder.exists() or folder.is_symlink():
            raise InputError(f"{folder}: there is such a record, give it another name=...")
        for old in to.glob(".[0-9]*_*.[0-9]*"):
            remove(old)  # of a killed command: this one holds the lock
        aside = to / f".{folder.name}.{os.getpid()}"
        aside.mkdir()
        try:
            body = _without_paths_in("\n\n".join(text)) + "\n"
            (aside / INDEX).write_text(body, encoding="utf-8", errors="backslashreplace")
            for file, content in files.items():
                write_json(aside / file, content)
            sync_folder(aside)
            aside.rename(folder)
        finally:
            remove(aside)
        _complete_index(to)
    return folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of records, so that no other command writes its index."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _complete_index(to: Path) -> None:
    """Add the line of every record that the index lacks: its question and outcome are in the record itself."""
    index = to / INDEX
    lines = (index.read_text(encoding="utf-8") if index.is_file() else INDEX_HEAD).rstrip("\n").split("\n")
    known = "\n".join(lines)
    added = False
    for record in sorted(to.glob("[0-9]*_*")):
        line = None if f"({record.name}/{INDEX})" in known or record.is_symlink() else _index_line(record)
        if line is not None:
            last = max((k for k, other in enumerate(lines) if other.startswith("|")), default=len(lines) - 1)
            lines.insert(last + 1, line)
            added = True
    if added:
        write_bytes(index, ("\n".join(lines) + "\n").encode(errors="backslashreplace"))


def _index_line(record: Path) -> str | None:
    """Return the line of the index for a record that this program has written, else None."""
    try:
        text = (record / INDEX).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None
    found = {
        key: line.removeprefix(key) for line in text for key in ("Question: ", "Outcome: ") if line.startswith(key)
    }
    if len(found) < 2 or not (record / "run.json").is_file():
        return None
    question, outcome = found["Question: "], found["Outcome: "].removesuffix(".")
    return f"| [{record.name}]({record.name}/{INDEX}) | {question} | {outcome} |"


def _code(command: str) -> str:
    return f"    {one_line(_path_free(command))}"


QUOTED_PATH = re.compile(r"(['\"])~?/(?:[^'\"]*/)?([^'\"/]*)/?\1")
BARE_PATH = re.compile(r"(?<![\w./:~<\\-])~?/(?:[^\s\"'`,;()\[\]|/]+/)*([^\s\"'`,;()\[\]|/]+)/?")
WHOLE_PATH = re.compile(r"((?:[\w@./+~-]+=)?)~?/[^\[\]{}]*?([^/]*)/?")


def without_paths(content: Any) -> Any:
    """JSON with every absolute path cut to its last part."""
    if isinstance(content, Mapping):
        return {_path_free(str(key)): without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    return _path_free(content) if isinstance(content, str) else content


def _path_free(text: str) -> str:
    """A value, or `key=value`, with its absolute paths cut to their last part."""
    whole = WHOLE_PATH.fullmatch(text)
    return whole.group(1) + whole.group(2) if whole and " " not in whole.group(1) else _without_paths_in(text)


def _without_paths_in(text: str) -> str:
    return BARE_PATH.sub(r"\1", QUOTED_PATH.sub(r"\1\2\1", text))
