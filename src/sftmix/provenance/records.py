"""Write a record of a finished run or sweep: metrics, metadata, and a line in the index of records.

A record holds no data, no weights, no text of examples, and no path of the machine.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import is_complete, tidy
from sftmix.artifacts.files import remove, sync_folder, write_bytes, write_json
from sftmix.artifacts.hashes import NAME_BYTES
from sftmix.artifacts.manifest import MANIFEST
from sftmix.config.recipe import is_baseline
from sftmix.errors import InputError
from sftmix.provenance.runs import find_baseline, read_held_out, read_record
from sftmix.quoting import shell_command
from sftmix.reports.page import markdown, write_pages
from sftmix.reports.tables.columns import difference_cell
from sftmix.reports.tables.compare import HeldOutComparison, compare_held_out
from sftmix.reports.tables.leaderboard import leaderboard
from sftmix.reports.tables.paper import read_paper
from sftmix.reports.tables.table import table
from sftmix.sweep.store import StoredSweep, read_sweep
from sftmix.terminal import counted, one_line

INDEX = "README.md"
INDEX_HEAD = "# Experiments\n\n| record | question | outcome |\n|---|---|---|\n"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_NAME = NAME_BYTES - 11  # the date precedes the name


def record_run(run: Path, to: Path, name: str | None = None) -> Path:
    """Write the record of a finished run into the folder of all records, and return the folder of the record.

    Raises:
        InputError: If the run is not finished, or the record exists already.
    """
    tidy(run)
    if not is_complete(run) or not (run / "metrics.json").is_file():
        raise InputError(f"run={run}: not a finished run, expected {MANIFEST} and metrics.json in it")
    manifest, metadata, metrics = (read_record(run / file) for file in (MANIFEST, "run.json", "metrics.json"))
    fields = manifest["fields"]
    what, plain = _in_words(metadata, fields), is_baseline(fields)
    baseline = None if plain else find_baseline(run, fields)
    found = None if baseline is None else compare_held_out(run, baseline)
    question = f"what does {what} reach on held-out examples{'' if found is None else ', beside NTP'}?"
    command = shell_command(["python", *(_path_free(word) for word in metadata.get("command", ["train.py"]))])
    head = _head(what, question, _outcome(metrics, found, plain), command)
    page = [*head, _circumstances(metadata), *_metrics(run, metrics, baseline, found)]
    name, files = name or str(manifest["title"]), {"run.json": without_paths(metadata)}
    return _write(to, str(manifest["completed"])[:10], name, page, files)


def record_sweep(folder: Path, to: Path, name: str | None = None) -> Path:
    """Write the record of the finished runs of a sweep into the folder of all records, and return its folder.

    Raises:
        InputError: If the folder holds no sweep, no run is finished, or the record exists already.
    """
    sweep = read_sweep(folder.resolve())
    done = [run.target for run in sweep.runs if run.is_done]
    if not done:
        raise InputError(f"sweep={folder}: none of its runs is finished")
    metadata = read_record(done[0] / "run.json")
    dates = [str(read_record(run / MANIFEST)["completed"])[:10] for run in done]
    what = f"ablation {sweep.name}" if sweep.name != "sweep" else "a sweep"
    question = f"{what}: which run has the lowest held-out loss?"
    page = [
        *_head(what[0].upper() + what[1:], question, _outcome_of_sweep(sweep), sweep.command),
        _circumstances({key: metadata.get(key) for key in ("git", "packages", "python", "hardware", "precision")}),
        "## Leaderboard",
        write_pages([leaderboard(sweep)], "markdown"),
    ]
    if sweep.name in read_paper().tables:
        page += ["## Beside the paper", write_pages(table(sweep.name, [sweep]), "markdown")]
    files = {"run.json": without_paths(metadata), "sweep.json": without_paths(read_record(folder / MANIFEST))}
    return _write(to, max(dates), name or sweep.name, page, files)


def _head(title: str, question: str, outcome: str, command: str) -> list[str]:
    code = f"    {one_line(_path_free(command))}"
    return [f"# {markdown(title)}", f"Question: {markdown(question)}", f"Outcome: {outcome}.", code]


def _in_words(metadata: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    config, recipe = metadata["config"], fields["recipe"]
    name = "NTP" if is_baseline(fields) else str(config["recipe"]["name"])
    mu = "" if recipe["mixup"] is None else f" (mu {recipe['mixup']['mu']:g})"
    stage = " as the reference" if metadata.get("stage") == "reference" else ""
    model, data = (
        part["name"] or Path(str(part["path"] or part.get("hub_id"))).name for part in (config["model"], config["data"])
    )
    return f"recipe {name}{mu} with model {model} on {data}, seed {fields['seed']}{stage}"


def _outcome(metrics: Mapping[str, Any], found: HeldOutComparison | None, plain: bool) -> str:
    if metrics.get("val_loss") is None:
        return "nothing was held out, so no loss is known"
    loss = f"held-out loss {metrics['val_loss']:.4f} ({metrics['val_loss_before']:.4f} before)"
    if found is None:
        return f"{loss}, n=1 seed" + ("" if plain else ", no NTP run at the same settings to compare with")
    difference, verdict = found
    n = f"n={counted(len(difference.of_seeds), 'seed')}, {counted(difference.num_examples, 'example')}"
    return f"{loss}; minus NTP {_difference(found)}, {n}" + (f" ({verdict.reason})" if verdict.reason else "")


def _difference(found: HeldOutComparison) -> str:
    return difference_cell(found.difference, verdict=found.verdict, show_sd=True).text


def _outcome_of_sweep(sweep: StoredSweep) -> str:
    done = [run for run in sweep.runs if run.is_done]
    by_setting: dict[tuple[str, ...], list[float]] = {}
    for run in done:
        loss = read_held_out(run.target)
        if loss.nll:
            by_setting.setdefault(run.seedless, []).append(loss.over(list(loss.nll)))
    counts = f"{len(done)} of {len(sweep.runs)} runs done"
    if not by_setting:
        return f"{counts}; nothing was held out, so no loss is known"
    means = {setting: sum(values) / len(values) for setting, values in by_setting.items()}
    best = min(means, key=lambda setting: means[setting])
    what = " ".join(best) or "the only setting"
    return f"{counts}; lowest held-out loss {means[best]:.4f} (n={len(by_setting[best])}): {markdown(what)}"


def _circumstances(metadata: Mapping[str, Any]) -> str:
    """Return a table of the source, versions, hardware, data and cost that the metadata hold."""
    git, packages, hardware, data, cost, census = (
        metadata.get(key) or {} for key in ("git", "packages", "hardware", "data", "cost", "census")
    )
    changed = ", with uncommitted changes" if git.get("changed") else ""
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    counts = []
    if (num_rows := census.get("rows", {}).get("total")) is not None:
        counts.append(f"{num_rows:,} rows, {census.get('kept'):,} examples kept as they are")
    if data:
        counts.append(f"{data['train_examples']:,} trained on, {data['val_examples']:,} held out")
    hours = next((f"{cost[key]:g} {key.replace('_', '-')}" for key in ("gpu_hours", "core_hours") if key in cost), "")
    operations = f"{cost.get('flops', 0):.3g} operations (estimated), {cost.get('parameters', 0):,} parameters"
    tokens = "tokens measured" if metadata.get("averaged") else "tokens trained"  # an average trains nothing
    values = {
        "commit": f"{git['commit']}{changed}" if git.get("commit") else None,
        "versions": f"Python {metadata.get('python')}, {versions}",
        "hardware": f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('memory_gib')} GiB; {gpus}"
        if hardware
        else None,
        "precision": metadata.get("precision"),
        "data": "; ".join(counts),
        "wall time": f"{metadata['seconds']:,.1f} s" if "seconds" in metadata else None,
        tokens: f"{metadata['tokens']:,}" if "tokens" in metadata else None,
        "cost": f"{hours}, {operations}" if cost else None,
    }
    lines = [f"| {key} | {markdown(str(value))} |" for key, value in values.items() if value]
    return "\n".join(["| what | value |", "|---|---|", *lines])


def _metrics(
    run: Path, metrics: Mapping[str, Any], baseline: Path | None, found: HeldOutComparison | None
) -> Iterator[str]:
    if metrics.get("val_loss") is not None:
        ours = read_held_out(run)
        cells = {"before": f"{metrics['val_loss_before']:.4f}", "after": f"{ours.over(list(ours.nll)):.4f}"}
        if baseline is not None and found is not None:
            theirs = read_held_out(baseline)
            cells["NTP"] = f"{theirs.over(list(theirs.nll)):.4f}"
            cells[f"minus NTP [95%], {counted(len(found.difference.of_seeds), 'seed')}"] = _difference(found)
        head = f"held-out loss, nats per response token ({counted(len(ours.nll), 'example')}, n=1 seed)"
        yield "\n".join(
            [
                f"| {' | '.join([head, *map(markdown, cells)])} |",
                f"|{'---|' * (len(cells) + 1)}",
                f"| all | {' | '.join(map(markdown, cells.values()))} |",
            ]
        )
    keys = ("steps", "examples", "pairs", "seconds", "tokens_per_sec", "lr")
    yield ", ".join(f"{key} {metrics[key]:g}" for key in keys if metrics.get(key))


def _write(to: Path, date: str, name: str, page: Sequence[str], files: Mapping[str, Any]) -> Path:
    """Write a complete record, then its line of the index, and return the folder of the record."""
    if not NAME.fullmatch(name):
        raise InputError(f"name={name}: expected letters, digits, dots, dashes and underscores")
    if len(name) > MAX_NAME:
        raise InputError(f"name={name[:40]}...: {len(name)} characters, expected at most {MAX_NAME}")
    folder = to / f"{date}_{name}"
    to.mkdir(parents=True, exist_ok=True)
    handle = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # no other command writes the index
        _complete_index(to)
        if folder.exists() or folder.is_symlink():
            raise InputError(f"{folder}: this record exists already, choose another name=...")
        for old in to.glob(".[0-9]*_*.[0-9]*"):  # left by a killed command
            remove(old)
        aside = to / f".{folder.name}.{os.getpid()}"
        aside.mkdir()
        try:
            body = _without_paths_in("\n\n".join(page)) + "\n"
            (aside / INDEX).write_text(body, encoding="utf-8", errors="backslashreplace")
            for file, content in files.items():
                write_json(aside / file, content)
            sync_folder(aside)
            aside.rename(folder)
        finally:
            remove(aside)
        _complete_index(to)
    finally:
        os.close(handle)
    return folder


def _complete_index(to: Path) -> None:
    """Add the line of every record that the index lacks: question and outcome are read from the record itself."""
    index = to / INDEX
    lines = (index.read_text(encoding="utf-8") if index.is_file() else INDEX_HEAD).rstrip("\n").split("\n")
    known = "\n".join(lines)
    new = [
        line
        for record in sorted(to.glob("[0-9]*_*"))
        if f"({record.name}/{INDEX})" not in known
        and not record.is_symlink()
        and (line := _index_line(record)) is not None
    ]
    if new:
        last = max((k for k, line in enumerate(lines) if line.startswith("|")), default=len(lines) - 1)
        lines[last + 1 : last + 1] = new
        write_bytes(index, ("\n".join(lines) + "\n").encode(errors="backslashreplace"))


def _index_line(record: Path) -> str | None:
    """Return the line of the index for a record that this program has written, otherwise None."""
    try:
        text = (record / INDEX).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    question, outcome = (re.search(rf"^{key}: (.*)$", text, re.MULTILINE) for key in ("Question", "Outcome"))
    if question is None or outcome is None or not (record / "run.json").is_file():
        return None
    return f"| [{record.name}]({record.name}/{INDEX}) | {question[1]} | {outcome[1].removesuffix('.')} |"


QUOTED_PATH = re.compile(r"(['\"])~?/(?:[^'\"]*/)?([^'\"/]*)/?\1")
BARE_PATH = re.compile(r"(?<![\w./:~<\\-])~?/(?:[^\s\"'`,;()\[\]|/]+/)*([^\s\"'`,;()\[\]|/]+)/?")
WHOLE_PATH = re.compile(r"((?:[\w@./+~-]+=)?)~?/[^\[\]{}]*?([^/]*)/?")


def without_paths(content: Any) -> Any:
    """Return JSON content with every absolute path cut to its last component."""
    if isinstance(content, Mapping):
        return {_path_free(str(key)): without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    return _path_free(content) if isinstance(content, str) else content


def _path_free(text: str) -> str:
    """Return a value, or `key=value`, with every absolute path cut to its last component."""
    whole = WHOLE_PATH.fullmatch(text)
    return whole.group(1) + whole.group(2) if whole and " " not in whole.group(1) else _without_paths_in(text)


def _without_paths_in(text: str) -> str:
    return BARE_PATH.sub(r"\1", QUOTED_PATH.sub(r"\1\2\1", text))
