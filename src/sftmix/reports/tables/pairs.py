"""Two runs as what they stand for: each the runs of its recipe, paired by their seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import find_artifacts
from sftmix.artifacts.manifest import MANIFEST
from sftmix.errors import InputError
from sftmix.evaluation.results import EVALUATION
from sftmix.reports.dict_paths import leaves_of
from sftmix.reports.runs import damage_of, read_record
from sftmix.reports.tables.groups import seedless
from sftmix.sweep.store import is_complete


@dataclass(frozen=True)
class Side:
    """One of two recipes.

    Attributes:
        run: that was named.
        recipe: what its content depends on but the seed; None where it is no run of ours: a model that was evaluated.
        runs: all complete runs of the recipe that are beside it, by seed.
        damaged: Why each other run of the recipe whose files cannot be read is left out.
    """

    run: Path
    recipe: Mapping[str, Any] | None
    runs: Mapping[int, Path]
    damaged: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """Its name and how many runs of its recipe there are."""
        if self.recipe is None:
            return f"{self.run.name}: one model"
        number = "one run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return f"{self.run.name}: {number} of its recipe, {_seeds(self.runs)}"


@dataclass(frozen=True)
class Pairing:
    """Which runs are compared.

    Attributes:
        pairs: runs of the one and of the other, a pair a seed.
        is_one_recipe: whether both are runs of one recipe.
        said: what they are, and what has to be known of them.
        others: of one recipe, its runs beside the two.
    """

    pairs: list[tuple[Path, Path]]
    is_one_recipe: bool
    said: list[str]
    others: list[Path] = field(default_factory=list)


def side_of(run: Path) -> Side:
    """What a run stands for: all complete runs in its root that differ from it in the seed alone.

    Raises:
        InputError: it is no complete run, and no model that was evaluated.
    """
    if not is_complete(run):
        if not (run / EVALUATION).is_dir():
            raise InputError(f"compare={run}: no complete run, expected {MANIFEST} or the folder {EVALUATION} in it")
        return Side(run, None, {})
    fields = _fields(run)
    if fields.get("kind") != "run":
        raise InputError(f"compare={run}: no run but a {fields.get('kind')}, expected a run")
    runs: dict[int, Path] = {}
    damaged: list[str] = []
    for folder, manifest in find_artifacts(run.parent, "run")[0]:
        others = manifest["fields"]
        if seedless(others) != seedless(fields) or folder == run:
            continue
        # without val.parquet the scores of suites can still be compared
        if (folder / "val.parquet").is_file() and (damage := damage_of(folder)) is not None:
            damaged.append(f"left out, damaged: {damage}")
        else:
            runs.setdefault(int(others["seed"]), folder)
    runs[int(fields["seed"])] = run
    return Side(run, seedless(fields), dict(sorted(runs.items())), tuple(damaged))


def pair_sides(one: Side, other: Side) -> Pairing:
    """Runs of two recipes paired by seed; two runs of one recipe, and models that are no runs, as they are.

    Raises:
        InputError: it is the same run twice, or no seed is common.
    """
    if one.run.resolve() == other.run.resolve():
        raise InputError(f"compare={one.run}: the same run twice, expected two")
    sides = [f"a  {one.in_words}", f"b  {other.in_words}"]
    if one.recipe is None or other.recipe is None:
        return Pairing([(one.run, other.run)], False, [*sides, "a model against a model: no seeds are paired"])
    if one.recipe == other.recipe:
        return _pair_seeds(one, other)
    common = [seed for seed in one.runs if seed in other.runs]
    if not common:
        raise InputError(
            f"compare=[{one.run.name},{other.run.name}]: no seed in common, the one has {_seeds(one.runs)}, the other "
            f"{_seeds(other.runs)}; runs are paired by seed"
        )
    said = [*sides, f"they differ in {', '.join(differing(one.recipe, other.recipe))}"]
    said += dict.fromkeys((*one.damaged, *other.damaged))
    alone = [run.name for side in (one, other) for seed, run in side.runs.items() if seed not in common]
    if alone:
        said.append(f"left out, without a partner of their seed: {', '.join(alone)}")
    return Pairing([(one.runs[seed], other.runs[seed]) for seed in common], False, said)


def _pair_seeds(one: Side, other: Side) -> Pairing:
    """Two runs of one recipe, with its other runs."""
    seeds = [next(seed for seed, run in side.runs.items() if run == side.run) for side in (one, other)]
    others = {seed: run for seed, run in sorted({**other.runs, **one.runs}.items()) if seed not in seeds}
    runs = zip("ab", (one.run, other.run), seeds, strict=True)
    said = [f"{side}  {run.name}: one run, seed {seed}" for side, run, seed in runs]
    said += dict.fromkeys((*one.damaged, *other.damaged))
    if len(others) > 1:
        said.append(f"two runs of one recipe, against the scatter of its others: {_seeds(others)}")
    else:
        said.append("two runs of one recipe: how far its seeds scatter is not known without two others")
    return Pairing([(one.run, other.run)], True, said, list(others.values()))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The dotted names of the fields in which two recipes differ."""
    left, right = leaves_of(one), leaves_of(other)
    absent = object()
    return [name for name in dict.fromkeys((*left, *right)) if left.get(name, absent) != right.get(name, absent)]


def _fields(run: Path) -> dict[str, Any]:
    fields = read_record(run / MANIFEST).get("fields")
    if not isinstance(fields, dict) or (fields.get("kind") == "run" and not isinstance(fields.get("seed"), int)):
        raise InputError(f"{run / MANIFEST}: no manifest of a run")
    return fields


def _seeds(runs: Mapping[int, Path]) -> str:
    return f"seed{'' if len(runs) == 1 else 's'} {', '.join(map(str, runs))}"
