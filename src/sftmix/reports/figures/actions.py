"""Check what is asked of `report.py figure=`, `topics=` and `stability=`, and compute it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftmix.config.model import Model
from sftmix.errors import ConfigError
from sftmix.reports.figures.scores import check_package, read_scored_run
from sftmix.reports.page import ReportPage

DEFAULT_K = 2500  # the paper's, section 3.2
FIGURES = {"tsne": ("k", "at"), "confidence": ("by",)}  # keys that a figure reads
CHOICES = {"at": ("response", "prompt"), "by": ("group", "source")}


def draw(
    action: str, asked: Mapping[str, Any], model: Model | None, root: Path, *, show_progress: bool
) -> tuple[ReportPage, Path]:
    """Return the page of a report and the folder of its files.

    Args:
        action: figure, topics or stability.
        asked: Value of each key of `report.py`; None if it was not given.
        model: The model of the hidden states of figure=tsne; None for the run's own.
    """
    _check(action, asked)
    if action == "topics" or asked["figure"] == "tsne":
        check_package(f"{action}={asked[action]}")
    k = DEFAULT_K if asked["k"] is None else asked["k"]
    if action == "stability":
        from sftmix.reports.figures.stability import stability

        return stability([str(run) for run in asked["stability"]], root)
    if action == "topics":
        from sftmix.reports.topics import label_shares, topics

        run = read_scored_run(str(asked["topics"]), root, "topics")
        if asked["labels"] is not None:
            return label_shares(run, Path(str(asked["labels"])), root)
        return topics(run, k, asked["spacy"], root)
    run = read_scored_run(str(asked["run"]), root, "run")
    if asked["figure"] == "confidence":
        from sftmix.reports.figures.confidence import confidence_by_group

        return confidence_by_group(run, asked["by"], root)
    from sftmix.reports.figures.tsne import tsne

    return tsne(run, k, asked["at"] or "response", model, root, show_progress=show_progress)


def _check(action: str, asked: Mapping[str, Any]) -> None:
    """Refuse values that are not allowed and keys that have no effect."""
    figure = asked["figure"]
    if action == "figure":
        if figure not in FIGURES:
            raise ConfigError(f"figure={figure}: expected one of {', '.join(FIGURES)}")
        for key in ("k", "at", "by"):
            if asked[key] is not None and key not in FIGURES[figure]:
                raise ConfigError(f"{key}={asked[key]}: figure={figure} does not read it")
        if asked["run"] is None:
            raise ConfigError(f"figure={figure}: expected run=FOLDER, a run or a folder of scores")
    if action == "stability" and isinstance(asked["stability"], str):
        raise ConfigError(f"stability={asked['stability']}: expected a list of runs, 'stability=[ONE,OTHER]'")
    if asked["k"] is not None and (type(asked["k"]) is not int or asked["k"] < 1):
        raise ConfigError(f"k={asked['k']}: expected a number of examples, at least 1")
    for key, allowed in CHOICES.items():
        if asked[key] not in (None, *allowed):
            raise ConfigError(f"{key}={asked[key]}: expected one of {', '.join(allowed)}")
    if asked["labels"] is not None and (asked["k"] is not None or asked["spacy"] is not None):
        raise ConfigError(f"labels={asked['labels']}: the shares of labels read neither k= nor spacy=")
