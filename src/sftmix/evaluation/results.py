"""Results of suites: one file in a run's folder `evaluation` for each suite, benchmark, judge and round."""

import glob
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import NAME_BYTES, short_name
from sftmix.artifacts.manifest import damaged, read_json
from sftmix.errors import InputError

EVALUATION = "evaluation"
LOSS = "held-out loss"
OWN_HELD_OUT = "held-out"  # benchmark of suite=offline: the held-out examples of the run itself


@dataclass(frozen=True)
class Evaluation:
    """Results of one round of a suite."""

    suite: str
    judge: str | None  # Name of the judge, or None if answers are right or wrong
    benchmark: str  # Name of the questions. A part of a benchmark, or embedded questions, have another name.
    round: int  # Counted from 1
    scores: dict[str, float]  # By the column of the paper's table
    # By column, the result of each question in the unit of the score. Their mean, weighted by `weights` if there are
    # any, is the score.
    questions: dict[str, dict[str, float]] = field(default_factory=dict)
    # Number of questions, and of those that are unparsable, cut or missing
    counts: dict[str, int] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # Origin of the scores: served models, hashes, dates
    # Equal for all rounds: models, templates, how answers were drawn
    settings: dict[str, Any] = field(default_factory=dict)
    # By column, the weight of each question, above 0 (the tokens, if a score is per token). A column without weights
    # has equal weights.
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    # Columns of which a lower value is better. In suite=offline the name of a column decides.
    lower_is_better: list[str] = field(default_factory=list)

    @property
    def raters(self) -> frozenset[str]:
        """The models that answered under the judge's name, with the hash of their prompts; empty without a judge."""
        served, template = self.record.get("served_models") or [], self.settings.get("template_sha256")
        if self.judge is None or not served:
            return frozenset()
        return frozenset(f"{model} with prompts {str(template)[:8]}" if template else str(model) for model in served)

    @property
    def file_name(self) -> str:
        """Name of the file. Results of the same suite, benchmark, judge and round have the same name."""
        parts = (self.suite, self.benchmark, *([self.judge] if self.judge is not None else []))
        name = "--".join(quote(re.sub(r"[ ,]+", "_", part), safe="") for part in parts)  # judges a/b and a_b are two
        round_ = f"--round{self.round}"
        return short_name(name, NAME_BYTES - len(round_)) + round_ + ".json"


def loss_of(subset: str) -> str:
    """Return the name of the score that is the held-out loss of a subset or tercile."""
    return f"{LOSS}, {subset}"


def plain_name(*parts: str) -> str:
    """Return the name of a file of answers or judgments from its parts, such as benchmark and judge."""
    return "--".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts)


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share, count of total, in percent."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(0.95, "wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def part_name(benchmark: str, limit: int | None, total: int) -> str:
    """Return the name of a benchmark of which only the first questions were asked."""
    return benchmark if limit is None or limit >= total else f"{benchmark}, first {limit} of {total}"


def write_evaluations(folder: Path, evaluations: Sequence[Evaluation]) -> list[str]:
    """Write each evaluation as a file of a run's folder `evaluation`; return a message for each file that was lost.

    An older file of the same round is replaced. Other rounds of the same suite, benchmark and judge are removed if they
    have other settings, because they cannot be averaged with the new round.
    """
    folder.mkdir(parents=True, exist_ok=True)
    messages = []
    for evaluation in evaluations:
        pattern = glob.escape(evaluation.file_name).replace(f"round{evaluation.round}.json", "round*.json")
        for file in sorted(folder.glob(pattern)):
            other = _read(file)
            keys = sorted(other.settings.keys() | evaluation.settings.keys())
            differing = [key for key in keys if _as_json(other, key) != _as_json(evaluation, key)]
            if differing:
                file.unlink(missing_ok=True)
                what = "replaced" if other.round == evaluation.round else "removed"
                messages.append(f"{file.name}: {what}, it was made under other settings ({', '.join(differing)})")
        write_json(folder / evaluation.file_name, asdict(evaluation))
    return messages


def _as_json(evaluation: Evaluation, key: str) -> str:
    """Return a setting as it is written: a tuple becomes a list."""
    return json.dumps(evaluation.settings.get(key), sort_keys=True)


def read_evaluations(run: Path) -> list[Evaluation]:
    """Return the evaluations of a run in the order of their files' names.

    Raises:
        InputError: If a file cannot be read, or is not an evaluation.
    """
    return [_read(file) for file in sorted((run / EVALUATION).glob("*.json"))]


def _read(file: Path) -> Evaluation:
    try:
        content: Mapping[str, Any] = read_json(file)
        by_column = {name: content.get(name, {}) for name in ("questions", "weights")}
        fields: dict[str, Any] = {name: content[name] for name in ("suite", "judge", "benchmark", "round")}
        fields |= {name: dict(content.get(name, {})) for name in ("counts", "record", "settings")}
        fields |= {name: {c: _numbers(values) for c, values in of.items()} for name, of in by_column.items()}
        lower = list(map(str, content.get("lower_is_better", [])))
        found = Evaluation(**fields, scores=_numbers(content["scores"]), lower_is_better=lower)
    except InputError:
        raise damaged(file, "is damaged, expected the results of an evaluation") from None
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, f"is not an evaluation ({error})") from None
    texts = isinstance(found.suite, str) and isinstance(found.benchmark, str) and isinstance(found.judge, str | None)
    is_round = isinstance(found.round, int) and not isinstance(found.round, bool)
    numbers = [found.scores, *found.questions.values()]
    if not texts or not is_round or not all(math.isfinite(x) for values in numbers for x in values.values()):
        raise InputError(
            f"{file}: is not an evaluation (a suite, judge, benchmark, round or score has a wrong type or value)"
        )
    for column, weights in found.weights.items():
        of_all = weights.keys() == found.questions.get(column, {}).keys()
        if not of_all or not all(0 < weight < math.inf for weight in weights.values()):
            raise InputError(f"{file}: weights of {column}: expected one weight above 0 for each question")
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}
