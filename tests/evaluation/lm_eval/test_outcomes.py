"""Scores of lm-eval become evaluations whose questions, weighted, give the score."""

import math

import pytest
from lm_eval.api.metrics import bits_per_byte, mean, median

from sftmix.evaluation.lm_eval.outcomes import _by_question
from sftmix.evaluation.lm_eval.suite import check, evaluate
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import find_target


def weighted(found):
    return sum(v * found.weights[q] for q, v in found.values.items()) / sum(found.weights.values())


def test_a_metric_that_is_a_mean_has_questions():
    items = {"0": True, "1": 0, "2": 1.0, "3": math.nan}
    found = _by_question(items, 2 / 3, mean)
    assert found.values == {"0": 1.0, "1": 0.0, "2": 1.0}, "lm-eval's nanmean leaves the others out"
    assert _by_question({"0": 1.0, "1": 0.0, "2": 0.0}, 0.0, median) is None
    assert _by_question({"0": ("reference", "prediction")}, 50.0, None) is None, "BLEU"
    assert _by_question({"0": (0, 0)}, 0.0, None) is None, "F1 of labels and predictions"


def test_ifevals_instructions_count_each():
    items = {"0": [True, False, False], "1": [True]}  # IFEval: 2 of 4 instructions
    found = _by_question(items, 0.5, lambda lists: sum(map(sum, lists)) / sum(map(len, lists)))
    assert found.values == {"0": pytest.approx(1 / 3), "1": 1.0}
    assert found.weights == {"0": 3, "1": 1}
    assert weighted(found) == pytest.approx(0.5)


def test_bits_per_byte_are_weighted_by_bytes_and_perplexity_has_no_questions():
    items = [(-10.0, 4), (-3.0, 6)]
    found = _by_question(dict(enumerate(items)), bits_per_byte(items), bits_per_byte)
    assert weighted(found) == pytest.approx(13 / 10 / math.log(2))
    assert _by_question(dict(enumerate(items)), math.exp(1.3), None) is None


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_with_scores_is_one_result_over_the_questions_of_its_tasks(
    by_size, compose_eval, shared, tmp_path, task_folder, write_task
):
    rows = [{"story": "She saw a", "options": ["cat", "dog"], "answer": k % 2} for k in range(12)]
    known = {"output_type": "multiple_choice", "doc_to_text": "story", "doc_to_choice": "options"}
    for name, part in (("small", rows[:3]), ("large", rows)):
        of_test = {"data_files": {"test": str(task_folder / f"{name}-test.jsonl")}}
        metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        write_task(
            task_folder,
            name,
            part,
            **known,
            doc_to_target="answer",
            metric_list=metrics,
            dataset_kwargs=of_test,
            fewshot_split=None,
        )
    aggregated = f"aggregate_metric_list: [{{metric: acc, weight_by_size: {by_size}}}]"
    (task_folder / "zoo.yaml").write_text(f"group: zoo\ntask: [large, inner]\n{aggregated}\n")
    (task_folder / "inner.yaml").write_text(f"group: inner\ntask: [small]\n{aggregated}\n")
    given = (f"suite.include_path={task_folder}", f"root={tmp_path / 'runs'}", "device=cpu", "progress_bar=false")

    def found(*overrides):
        config = compose_eval("suite=lm_eval", *given, *overrides)
        session = Session(config, find_target(str(shared / "models" / "stories260K"), None, tmp_path / "runs"))
        check(session, config.suite)
        return evaluate(session, config.suite)

    [zoo] = found("suite.tasks=[zoo]")
    large, small = found("suite.tasks=[large,small]")
    assert list(zoo.scores) == ["acc", "acc, inner"]
    share = 10 / 13 if by_size else 0.5
    assert zoo.scores["acc"] == pytest.approx(share * large.scores["acc"] + (1 - share) * small.scores["acc"])
    assert zoo.scores["acc, inner"] == small.scores["acc"]
    values, weights = zoo.questions["acc"], zoo.weights.get("acc", dict.fromkeys(zoo.questions["acc"], 1.0))
    assert values == {
        **{f"large/{q}": v for q, v in large.questions["acc"].items()},
        **{f"small/{q}": v for q, v in small.questions["acc"].items()},
    }
    mean_of_questions = sum(v * weights[q] for q, v in values.items()) / sum(weights.values())
    assert mean_of_questions == pytest.approx(zoo.scores["acc"])
    assert ("acc" in zoo.weights) is not by_size
    assert zoo.record["tasks"] == {
        "large": {"acc": large.scores["acc"], "questions": 10},
        "small": {"acc": small.scores["acc"], "questions": 3},
    }
    [first] = found("suite.tasks=[zoo]", "limit=4")
    assert first.benchmark == "zoo, first 4 of each task"
    assert first.counts["questions"] == 7


def test_a_group_may_aggregate_one_of_several_filters(compose_eval, shared, tmp_path, task_folder):
    metrics = "[{metric: exact_match, filter_list: [word]}, {metric: ter, filter_list: [whole]}]"
    (task_folder / "zoo.yaml").write_text(f"group: zoo\ntask: [places]\naggregate_metric_list: {metrics}\n")
    (task_folder / "one.yaml").write_text(
        "group: one\ntask: [places]\naggregate_metric_list: [{metric: exact_match, filter_list: word}]\n"
    )
    for name, columns, lower in (
        ("one", ["exact_match"], []),
        ("zoo", ["exact_match, word", "ter, whole"], ["ter, whole"]),
    ):
        given = (f"suite.include_path={task_folder}", f"root={tmp_path / 'runs'}", "device=cpu", "progress_bar=false")
        config = compose_eval("suite=lm_eval", *given, f"suite.tasks=[{name}]", "suite.apply_chat_template=false")
        session = Session(config, find_target(str(shared / "models" / "stories260K"), None, tmp_path / "runs"))
        check(session, config.suite)
        [found] = evaluate(session, config.suite)
        assert list(found.scores) == columns
        assert list(found.questions) == columns[:1], "TER is not a mean over questions"
        assert found.lower_is_better == lower
        assert sum(found.questions[columns[0]].values()) / 10 == pytest.approx(found.scores[columns[0]])
