"""What suites have found of a run: files in its folder `evaluation`, one a suite, benchmark, judge and round."""

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


@dataclass(frozen=True)
class Evaluation:
    """What one round of a suite has found.

    Attributes:
        suite: mt_bench, alpaca_eval, medical, offline or human.
        judge: whose scores they are, or None where answers are simply right or wrong.
        benchmark: which questions; a part of them, or embedded ones, has another name than the whole.
        round: counted from 1.
        scores: by the column of the paper's table.
        questions: by column, what each question brought, in the unit of the score: its mean, by `weights` where they
            are, is the score.
        counts: of questions, and of what has to be known to read the scores: unparsable, cut, missing.
        record: how it came about: served models, hashes, dates.
        settings: what all its rounds have in common: models, templates, how answers were drawn.
        weights: by column, how much each of its questions counts, above 0: where a score is per token, the tokens of
            each. A column that is not there has equal weights.
    """

    suite: str
    judge: str | None
    benchmark: str
    round: int
    scores: dict[str, float]
    questions: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def raters(self) -> frozenset[str]:
        """The models that a judge's name stood for, and the prompts that they were given; empty without a judge."""
        served, template = self.record.get("served_models") or [], self.settings.get("template_sha256")
        if self.judge is None or not served:
            return frozenset()
        return frozenset(f"{model} with prompts {str(template)[:8]}" if template else str(model) for model in served)

    @property
    def file_name(self) -> str:
        """Names its file: the same suite, benchmark, judge and round take its place."""
        parts = (self.suite, self.benchmark, *([self.judge] if self.judge is not None else []), f"round{self.round}")
        words = (re.sub(r"[ ,]+", "_", part) for part in parts)
        name = "--".join(quote(word, safe="") for word in words)  # judges a/b and a_b are two
        round_ = f"--round{self.round}"
        return short_name(name.removesuffix(round_), NAME_BYTES - len(round_)) + round_ + ".json"


def loss_of(subset: str) -> str:
    """Return the name of the score that is the held-out loss of a subset or tercile."""
    return f"{LOSS}, {subset}"


def part_name(benchmark: str, limit: int | None, total: int) -> str:
    """What a benchmark is called of which the first questions alone were asked."""
    return benchmark if limit is None or limit >= total else f"{benchmark}, first {limit} of {total}"


def write_evaluations(folder: Path, evaluations: Sequence[Evaluation]) -> list[str]:
    """Write each as a file of a run's folder `evaluation`, in the place of what it had found before.

    Other rounds of the same suite, benchmark and judge stay where they were made under the same settings; others go,
    since no mean is over both. What is said of those that went comes back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    for evaluation in evaluations:
        pattern = glob.escape(evaluation.file_name).replace(f"round{evaluation.round}.json", "round*.json")
        for file in sorted(folder.glob(pattern)):
            other = _read(file)
            keys = sorted(other.settings.keys() | evaluation.settings.keys())
            differing = [key for key in keys if _as_json(other, key) != _as_json(evaluation, key)]
            if differing:
                file.unlink(missing_ok=True)
                what = "replaced" if other.round == evaluation.round else "removed"
                said.append(f"{file.name}: {what}, it was made under other settings ({', '.join(differing)})")
        write_json(folder / evaluation.file_name, asdict(evaluation))
    return said


def _as_json(evaluation: Evaluation, key: str) -> str:
    """A setting as it is written: a tuple is a list there."""
    return json.dumps(evaluation.settings.get(key), sort_keys=True)


def read_evaluations(run: Path) -> list[Evaluation]:
    """The evaluations of a run, in the order of their files' names.

    Raises:
        InputError: a file cannot be read, or is of something else.
    """
    return [_read(file) for file in sorted((run / EVALUATION).glob("*.json"))]


def _read(file: Path) -> Evaluation:
    try:
        content: Mapping[str, Any] = read_json(file)
        found = Evaluation(
            content["suite"],
            content["judge"],
            content["benchmark"],
            content["round"],
            _figures(content["scores"]),
            {column: _figures(values) for column, values in content.get("questions", {}).items()},
            dict(content.get("counts", {})),
            dict(content.get("record", {})),
            dict(content.get("settings", {})),
            {column: _figures(values) for column, values in content.get("weights", {}).items()},
        )
    except InputError:
        raise damaged(file, "is damaged, expected the results of an evaluation") from None
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, f"no evaluation can be read from it ({error})") from None
    texts = isinstance(found.suite, str) and isinstance(found.benchmark, str) and isinstance(found.judge, str | None)
    is_round = isinstance(found.round, int) and not isinstance(found.round, bool)
    figures = [found.scores, *found.questions.values()]
    if not texts or not is_round or not all(math.isfinite(x) for values in figures for x in values.values()):
        raise InputError(
            f"{file}: no evaluation can be read from it (a suite, judge, benchmark, round or score is none)"
        )
    for column, weights in found.weights.items():
        of_all = weights.keys() == found.questions.get(column, {}).keys()
        if not of_all or not all(0 < weight < math.inf for weight in weights.values()):
            raise InputError(f"{file}: weights of {column}: expected one above 0 for each of its questions")
    return found


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}
