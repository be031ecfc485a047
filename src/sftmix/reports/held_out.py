"""The held-out loss of a run by subset, beside its NTP baseline: what the summary and the page of a run show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.provenance.runs import ExampleLosses, read_held_out, read_val_sets
from sftmix.reports.tables.columns import difference_cell, difference_of_losses
from sftmix.reports.tables.compare import compare_held_out
from sftmix.reports.tables.groups import ALL, SUBSETS
from sftmix.terminal import counted

HARDLY = 0.01  # A held-out loss that falls by less than this fraction of itself leads to a remark


class HeldOutRow(NamedTuple):
    """Held-out loss over all examples, a subset or a file of `data.val_path`, in nats per response token."""

    subset: str  # all, or the name of the subset or of the file
    before: float | None  # Before tuning; None for a subset
    baseline: float | None  # None if there is no baseline
    own: float
    difference: str  # Own loss minus the baseline's with its 95% interval; empty if there is no baseline


class HeldOutTable(NamedTuple):
    """The held-out losses of a run."""

    name: str  # NTP, or the recipe
    num_examples: int
    rows: list[HeldOutRow]  # All examples, then the two subsets if the run has a split, then the other files
    remarks: list[str]


def held_out_table(
    target: Path, baseline: Path | None, name: str, split: Mapping[str, list[Any]] | None
) -> HeldOutTable | None:
    """Return the held-out losses of a complete run, or None if nothing was held out.

    Args:
        baseline: Folder of the NTP run at the same settings.
        name: The recipe for the reader.
        split: Columns of `split.parquet`.

    Raises:
        InputError: If a file of a run is damaged.
    """
    metrics = read_json(target / "metrics.json")
    files, files_of_baseline = read_val_sets(target), {} if baseline is None else read_val_sets(baseline)
    if not metrics["val_examples"] and not files:
        return None
    ours = read_held_out(target)
    theirs = read_held_out(baseline) if baseline is not None else None
    subset_of = {} if split is None else dict(zip(split["example_id"], split["subset"], strict=True))
    chosen = {ALL: list(ours.nll)}
    for subset, title in zip(SUBSETS[1:], _names_of_subsets(read_json(target / MANIFEST)["fields"]), strict=True):
        chosen[title] = [i for i in ours.nll if subset_of.get(i) == subset]
    rows = []
    for title, ids in chosen.items():
        if not ids:
            continue
        rows.append(_row(title, metrics["val_loss_before"] if title == ALL else None, ours, theirs, ids))
    for title, losses in files.items():
        before = metrics["val_sets"][title]["loss_before"]
        rows.append(_row(title, before, losses, files_of_baseline.get(title), list(losses.nll)))
    return HeldOutTable(name, len(ours.nll), rows, _remarks(target, baseline, name, metrics))


def _row(
    title: str, before: float | None, ours: ExampleLosses, theirs: ExampleLosses | None, ids: Sequence[str]
) -> HeldOutRow:
    found = difference_of_losses([(ours, theirs)], ids) if theirs else None
    difference = "" if found is None else difference_cell(found).text
    return HeldOutRow(title, before, theirs.over(ids) if theirs else None, ours.over(ids), difference)


def _names_of_subsets(fields: Mapping[str, Any]) -> tuple[str, str]:
    split = fields.get("split") or {"by": "confidence"}
    return {
        "confidence": ("confident subset", "unconfident subset"),
        "group": (f"group {split.get('confident')}", "other groups"),
        "random": ("first subset", "second subset"),
        "length": ("shorter responses", "longer responses"),
    }[split["by"]]


def _remarks(target: Path, baseline: Path | None, name: str, metrics: Mapping[str, Any]) -> list[str]:
    """Return the verdict on the difference to the baseline, and whether the loss hardly fell."""
    remarks = []
    if baseline is not None and (compared := compare_held_out(target, baseline)) is not None:
        seeds = len(compared.difference.of_seeds)
        over = "" if seeds == 1 else f"over {seeds} seeds {difference_cell(compared.difference).text}: "
        remarks.append(f"{name} against NTP: {over}{compared.verdict.in_full}.")
    if metrics["val_loss"] is not None and metrics["val_loss"] > (1 - HARDLY) * metrics["val_loss_before"]:
        remarks.append(
            f"The loss hardly fell ({metrics['val_loss_before']:.3f} to {metrics['val_loss']:.3f}): is "
            f"model.lr={metrics['lr']:g} too low, or {counted(metrics['steps'], 'step')} too few?"
        )
    return remarks
