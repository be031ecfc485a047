"""What lm-eval measured, as evaluations: one for each task, or for each group that has scores itself."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.metrics import bits_per_byte

from sftmix.evaluation.lm_eval.catalog import LoadedTasks
from sftmix.evaluation.results import Evaluation, part_name

TOLERANCE = 1e-9


class MetricByQuestion(NamedTuple):
    """The values of a metric, whose weighted mean is the score."""

    values: dict[str, float]
    weights: dict[str, float]


class TaskOutcome(NamedTuple):
    """Scores of one task, by column."""

    name: str
    total: int  # Number of questions of the task
    num_asked: int
    scores: dict[str, float]
    by_question: dict[str, MetricByQuestion]  # Columns whose score is a mean over questions
    lower_is_better: list[str]
    num_cut: int  # Questions whose prompt did not fit the model
    settings: dict[str, Any]
    unscored: list[str]  # Metrics whose score is not a finite number
    columns: dict[str, str]  # By lm-eval's METRIC,FILTER


def evaluations_of(
    results: Mapping[str, Any],
    loaded: LoadedTasks,
    *,
    cut: set[tuple[str, int]],
    limit: int | None,
    settings: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
) -> list[Evaluation]:
    """Return one evaluation for each group that lm-eval aggregates, and for each task that is in no such group.

    A group such as MMLU is one result: comparisons of its 57 subjects would be corrected for their number, so that no
    difference of a single subject could be seen. The scores of its tasks are in `record`.

    Args:
        results: Result of lm-eval's `evaluate` with samples.
        cut: Task and number of each question whose prompt was cut.
        settings: Settings of each task, beside those of the task itself.
    """
    outcomes = {
        name: _outcome(name, task, results, {number for of, number in cut if of == name}, settings[name])
        for name, task in loaded.tasks.items()
    }
    found, inside = [], set[str]()
    for group in _topmost(loaded.groups):
        members = [outcomes[task.task_name] for task in group.get_all_tasks()]
        inside |= {member.name for member in members}
        found.append(_of_group(group, members, results, limit, record))
    outside = [_of_task(outcome, limit, record) for name, outcome in outcomes.items() if name not in inside]
    return outside + found


def _of_task(outcome: TaskOutcome, limit: int | None, record: Mapping[str, Any]) -> Evaluation:
    weights = {column: found.weights for column, found in outcome.by_question.items() if _are_unequal(found.weights)}
    return Evaluation(
        suite="lm_eval",
        judge=None,
        benchmark=part_name(outcome.name, limit, outcome.total),
        round=1,
        scores=outcome.scores,
        questions={column: found.values for column, found in outcome.by_question.items()},
        counts={"questions": outcome.num_asked, "prompts_cut": outcome.num_cut},
        record={**record, "unscored": outcome.unscored},
        settings=outcome.settings,
        weights=weights,
        lower_is_better=outcome.lower_is_better,
    )


def _of_group(
    group: Group,
    members: Sequence[TaskOutcome],
    results: Mapping[str, Any],
    limit: int | None,
    record: Mapping[str, Any],
) -> Evaluation:
    """Return the scores of a group and of the groups inside it that lm-eval aggregates."""
    scores: dict[str, float] = {}
    by_question: dict[str, MetricByQuestion] = {}
    lower: list[str] = []
    for part in [group, *(inner for inner in group.get_all_groups() if inner.has_aggregation)]:
        names = {task.task_name for task in part.get_all_tasks()}
        found = results["results"][part.name]
        for key, column in _columns(found).items():
            if not _is_finite(found[key]):
                continue
            label = column if part is group else f"{column}, {part.alias or part.name}"
            scores[label] = float(found[key])
            inside = [(m, m.columns.get(key, "")) for m in members if m.name in names]
            if any(of_member in m.lower_is_better for m, of_member in inside):
                lower.append(label)
            together = [(m.name, m.by_question.get(of_member), m.num_asked) for m, of_member in inside]
            if (mean := _mean_of_tasks(together, scores[label])) is not None:
                by_question[label] = mean
    is_part = limit is not None and any(limit < member.total for member in members)
    common = {
        key: value if all(m.settings[key] == value for m in members) else {m.name: m.settings[key] for m in members}
        for key, value in members[0].settings.items()
    }
    for key in ("task_sha256", "questions_sha256"):
        common[key] = _sha256([[m.name, m.settings[key]] for m in members])
    return Evaluation(
        suite="lm_eval",
        judge=None,
        benchmark=f"{group.name}, first {limit} of each task" if is_part else group.name,
        round=1,
        scores=scores,
        questions={label: found.values for label, found in by_question.items()},
        counts={"questions": sum(m.num_asked for m in members), "prompts_cut": sum(m.num_cut for m in members)},
        record={**record, "unscored": [], "tasks": {m.name: {**m.scores, "questions": m.num_asked} for m in members}},
        settings={**common, "task_version": group.version},
        weights={label: found.weights for label, found in by_question.items() if _are_unequal(found.weights)},
        lower_is_better=lower,
    )


def _outcome(
    name: str, task: Any, results: Mapping[str, Any], cut: set[int], settings: Mapping[str, Any]
) -> TaskOutcome:
    samples, found = results["samples"][name], results["results"][name]
    is_higher_better = task.higher_is_better()
    scores, by_question, lower = {}, {}, []
    columns = _columns(found)
    for key, column in columns.items():
        metric, _, of_filter = key.partition(",")
        if is_higher_better.get(metric) is False:
            lower.append(column)
        if not _is_finite(found[key]):
            continue
        scores[column] = float(found[key])
        items = {str(s["doc_id"]): s[metric] for s in samples if s["filter"] == of_filter and metric in s}
        aggregation = task.aggregation().get(metric)
        if (values := _by_question(items, scores[column], aggregation)) is not None:
            by_question[column] = values
    asked = {str(sample["doc_id"]): sample["doc_hash"] for sample in samples}
    own = {
        "task_version": task.VERSION,
        "task_sha256": _sha256(_content(task)),
        "num_fewshot": task.config.num_fewshot,
        "questions_sha256": _sha256(asked),
    }
    unscored = [key for key in columns if not _is_finite(found[key])]
    total = results["n-samples"][name]["original"]
    return TaskOutcome(
        name, total, len(asked), scores, by_question, lower, len(cut), {**settings, **own}, unscored, columns
    )


def _by_question(items: Mapping[str, Any], score: float, aggregation: Any) -> MetricByQuestion | None:
    """Return the value and weight of each question if their weighted mean is the score, else None.

    An item of lm-eval may be a number, or a list of numbers such as IFEval's instructions, each of which counts.
    """
    values, weights = {}, {}
    for question, item in items.items():
        if aggregation is bits_per_byte and item[1] > 0:
            value, weight = -item[0] / item[1] / math.log(2), float(item[1])
        elif isinstance(item, list) and item and all(map(_is_finite, item)):
            value, weight = float(np.mean(item)), float(len(item))
        elif _is_finite(item):
            value, weight = float(item), 1.0
        elif isinstance(item, float):
            continue  # NaN: the question does not count
        else:
            return None
        values[question], weights[question] = value, weight
    return _if_mean(MetricByQuestion(values, weights), score)


def _mean_of_tasks(
    together: Sequence[tuple[str, MetricByQuestion | None, int]], score: float
) -> MetricByQuestion | None:
    """Return the questions of several tasks if their mean is the score of the group: over questions, or over tasks."""
    if any(found is None for _, found, _ in together):
        return None
    for of_tasks in (False, True):
        values, weights = {}, {}
        for name, found, num_asked in together:
            assert found is not None
            for question, value in found.values.items():
                values[f"{name}/{question}"] = value
                # A task counts as much as its questions, however much its questions weigh among each other
                share = found.weights[question] / sum(found.weights.values())
                weights[f"{name}/{question}"] = share if of_tasks else share * num_asked
        if (mean := _if_mean(MetricByQuestion(values, weights), score)) is not None:
            return mean
    return None


def _if_mean(found: MetricByQuestion, score: float) -> MetricByQuestion | None:
    total = sum(found.weights.values())
    if not total:
        return None
    mean = sum(value * found.weights[question] for question, value in found.values.items()) / total
    return found if math.isclose(mean, score, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else None


def _topmost(groups: Mapping[str, Group]) -> list[Group]:
    """Return the groups with scores that are inside no other group with scores."""
    scored = [group for group in groups.values() if group.has_aggregation]
    inside = {inner.name for group in scored for inner in group.get_all_groups()}
    return [group for group in scored if group.name not in inside]


def _columns(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of scores by the keys METRIC,FILTER of a result of lm-eval, without standard errors.

    The filter is named if there are several.
    """
    keys = [key for key in found if "," in key and not key.partition(",")[0].endswith("_stderr")]
    has_several = len({key.partition(",")[2] for key in keys}) > 1
    return {key: key.replace(",", ", ", 1) if has_several else key.partition(",")[0] for key in keys}


def _content(task: Any) -> Any:
    """Return everything that a task does, without paths and the addresses of functions."""
    config = {key: value for key, value in task.dump_config().items() if key not in ("metadata", "num_fewshot")}
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _are_unequal(weights: Mapping[str, float]) -> bool:
    numbers = list(weights.values())
    return not all(math.isclose(number, numbers[0]) for number in numbers)


def _is_finite(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_) and math.isfinite(value)
