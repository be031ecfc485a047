"""How confident the reference is of a run's examples: by the run's own split, or by another's scores of the same."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sftmix.artifacts.artifact import find_artifacts
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.artifacts.tables import read_confidence
from sftmix.errors import InputError
from sftmix.evaluation.offline.run_data import read_split_column

LEAST_COVERAGE = 0.99


class RunConfidence(NamedTuple):
    """Confidence of the reference in examples.

    Attributes:
        values: by example id; higher is more confident.
        source: where they are from, in words.
    """

    values: dict[str, float]
    source: str


def find_confidence(run: Path, val_ids: Collection[str]) -> RunConfidence | None:
    """The confidence in nearly all held-out examples of a run; None where nobody has scored them.

    A run that was split by confidence has it in its own split. For any other the artifacts beside it are looked
    through: first those of which it is itself the reference, then all others, the newest first.

    Args:
        run: its folder.
        val_ids: its held-out examples.
    """

    def covers(values: dict[str, float]) -> bool:
        return sum(i in values for i in val_ids) >= LEAST_COVERAGE * len(val_ids)

    own = read_split_column(run, "confidence")
    if own and covers(own):
        return RunConfidence(own, "the run's own split")
    for folder in _scored_beside(run):
        values = _values(folder)
        if covers(values):
            return RunConfidence(values, folder.name)
    return None


def _scored_beside(run: Path) -> list[Path]:
    fingerprint = read_json(run / MANIFEST)["fingerprint"]
    found = [
        (scored.fields.get("checkpoints") == fingerprint, scored.completed, scored.folder)
        for scored in find_artifacts(run.parent, "confidence")[0]
    ]
    return [folder for *_, folder in sorted(found, reverse=True)]


def _values(folder: Path) -> dict[str, float]:
    """Confidence over all checkpoints of an artifact; nothing where it cannot be had."""
    from sftmix.stages.scores import confidence_of

    try:
        ids, values, _ = confidence_of(read_confidence(folder / "confidence.parquet"), None)
    except (InputError, ValueError, TypeError):  # it is another run's, which says so itself
        return {}
    return dict(zip(ids, values.tolist(), strict=True))
