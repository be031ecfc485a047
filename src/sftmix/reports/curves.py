"""Training curves of several recipes side by side, each with all of its seeds."""

import re
from collections.abc import Sequence
from pathlib import Path

from sftmix.artifacts.artifact import is_complete
from sftmix.errors import InputError
from sftmix.reports.figures.output import REPORTS, write_figure
from sftmix.reports.tables.pairs import recipe_runs
from sftmix.terminal import counted
from sftmix.training.curves import draw_curves, read_curves, why_no_curves

SEED_AND_FINGERPRINT = re.compile(r"-seed\d+-[0-9a-f]{8}$")


def compare_curves(runs: Sequence[Path], root: Path) -> str:
    """Draw the training curves of recipes into `root/reports/curves-<first recipe>.png` and `.pdf`.

    Each given run stands for its recipe: all complete runs beside it that differ only in the seed. A run that is not
    finished is drawn as it is now.

    Returns:
        Which runs are drawn, and the files.

    Raises:
        InputError: If no run is given, or a run has logged nothing.
    """
    if not runs:
        raise InputError("curves=[]: expected at least one run")
    seeds_of: dict[tuple[Path, ...], Path] = {}
    for run in runs:
        seeds = tuple(recipe_runs(run, "curves").runs.values()) if is_complete(run) else (run,)
        seeds_of.setdefault(seeds, run)
    titles = [SEED_AND_FINGERPRINT.sub("", run.name) for run in seeds_of.values()]
    names = [t if titles.count(t) == 1 else run.name for t, run in zip(titles, seeds_of.values(), strict=True)]
    recipes, lines = {}, []
    for name, seeds in zip(names, seeds_of, strict=True):
        recipes[name] = [read_curves(folder) for folder in seeds]
        for folder, curves in zip(seeds, recipes[name], strict=True):
            if not curves:
                raise InputError(f"curves={folder}: {why_no_curves(folder)}")
        unfinished = "" if is_complete(seeds[0]) else ", not finished"
        lines.append(f"{name}: {counted(len(seeds), 'seed')}{unfinished}")
    files = write_figure(draw_curves(recipes), root / REPORTS, f"curves-{names[0]}")
    return "\n".join([*lines, *(f"written: {file}" for file in files)])
