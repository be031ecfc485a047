"""Pair the runs of two recipes by seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import find_artifacts, is_complete
from sftmix.artifacts.manifest import MANIFEST
from sftmix.errors import InputError
from sftmix.evaluation.results import EVALUATION
from sftmix.provenance.runs import damage_of, read_record
from sftmix.reports.diff import differing
from sftmix.reports.tables.groups import seedless


@dataclass(frozen=True)
class RecipeRuns:
    """One of two recipes that are compared."""

    run: Path  # The run that the user named
    recipe: Mapping[str, Any] | None  # Everything except the seed; None: an evaluated model instead of a run
    runs: Mapping[int, Path]  # All complete runs of the recipe in the same root, by seed
    damaged: tuple[str, ...] = ()  # Why other runs of the recipe cannot be read and are left out

    @property
    def in_words(self) -> str:
        if self.recipe is None:
            return f"{self.run.name}: one model"
        number = "one run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return f"{self.run.name}: {number} of its recipe, {_seeds(self.runs)}"


@dataclass(frozen=True)
class Pairing:
    """The runs that are compared."""

    pairs: list[tuple[Path, Path]]  # Runs of both recipes, one pair per seed
    is_one_recipe: bool
    head: list[str]  # Lines that describe the runs
    others: list[Path] = field(default_factory=list)  # If both are runs of one recipe, its other runs


def recipe_runs(run: Path, key: str = "compare") -> RecipeRuns:
    """Return a run with all complete runs in its root that differ only in the seed.

    Args:
        key: The setting that names the run, for messages.

    Raises:
        InputError: If the folder is neither a complete run nor an evaluated model.
    """
    if not is_complete(run):
        if not (run / EVALUATION).is_dir():
            raise InputError(f"{key}={run}: not a complete run, expected {MANIFEST} or the folder {EVALUATION} in it")
        return RecipeRuns(run, None, {})
    fields = read_record(run / MANIFEST).get("fields")
    if not isinstance(fields, dict) or (fields.get("kind") == "run" and not isinstance(fields.get("seed"), int)):
        raise InputError(f"{run / MANIFEST}: not the manifest of a run")
    if fields.get("kind") != "run":
        raise InputError(f"{key}={run}: the artifact is of kind {fields.get('kind')}, expected a run")
    runs: dict[int, Path] = {}
    damaged: list[str] = []
    recipe = seedless(fields, run)
    for folder, others, _ in find_artifacts(run.parent, "run")[0]:
        try:
            if folder == run or seedless(others, folder) != recipe:
                continue
        except InputError:  # the config of another run is damaged
            continue
        # without val.parquet the scores of suites can still be compared
        if (folder / "val.parquet").is_file() and (damage := damage_of(folder)) is not None:
            damaged.append(f"left out, damaged: {damage}")
        else:
            runs.setdefault(int(others["seed"]), folder)
    runs[int(fields["seed"])] = run
    return RecipeRuns(run, recipe, dict(sorted(runs.items())), tuple(damaged))


def pair_recipes(one: RecipeRuns, other: RecipeRuns) -> Pairing:
    """Pair the runs of two recipes by seed. Two runs of one recipe, or an evaluated model, are paired directly.

    Raises:
        InputError: If both runs are the same, or the recipes have no seed in common.
    """
    if one.run.resolve() == other.run.resolve():
        raise InputError(f"compare={one.run}: the same run twice, expected two")
    head = [f"a  {one.in_words}", f"b  {other.in_words}"]
    if one.recipe is None or other.recipe is None:
        return Pairing([(one.run, other.run)], False, [*head, "a model against a model: no seeds are paired"])
    damaged = dict.fromkeys((*one.damaged, *other.damaged))
    if one.recipe == other.recipe:
        seeds = [next(seed for seed, run in side.runs.items() if run == side.run) for side in (one, other)]
        others = {seed: run for seed, run in sorted({**other.runs, **one.runs}.items()) if seed not in seeds}
        runs = zip("ab", (one.run, other.run), seeds, strict=True)
        scatter = "two runs of one recipe: how far its seeds scatter is not known without two others"
        if len(others) > 1:
            scatter = f"two runs of one recipe, against the scatter of its others: {_seeds(others)}"
        head = [*(f"{side}  {run.name}: one run, seed {seed}" for side, run, seed in runs), *damaged, scatter]
        return Pairing([(one.run, other.run)], True, head, list(others.values()))
    common = [seed for seed in one.runs if seed in other.runs]
    if not common:
        raise InputError(
            f"compare=[{one.run.name},{other.run.name}]: no seed in common, the one has {_seeds(one.runs)}, the other "
            f"{_seeds(other.runs)}; runs are paired by seed"
        )
    head += [f"they differ in {', '.join(differing(one.recipe, other.recipe))}", *damaged]
    unpaired = [run.name for side in (one, other) for seed, run in side.runs.items() if seed not in common]
    if unpaired:
        head.append(f"left out, without a partner of their seed: {', '.join(unpaired)}")
    return Pairing([(one.runs[seed], other.runs[seed]) for seed in common], False, head)


def _seeds(runs: Mapping[int, Path]) -> str:
    return f"seed{'' if len(runs) == 1 else 's'} {', '.join(map(str, runs))}"
