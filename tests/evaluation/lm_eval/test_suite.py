"""suite=lm_eval on stories260K and two tasks of a folder."""

import json
import socket

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.lm_eval import suite as lm_eval_suite
from sftmix.evaluation.lm_eval.model import ScoringRequest, _keys
from sftmix.evaluation.model_pool import ModelPool
from sftmix.evaluation.results import write_evaluations
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import find_target
from sftmix.reports.tables.compare import compare


@pytest.fixture
def session_of(compose_eval, shared, tmp_path, task_folder):
    """A function that makes a call on stories260K from overrides."""

    def made(*overrides, tasks="animals,places"):
        given = (f"suite.include_path={task_folder}", f"suite.tasks=[{tasks}]", f"root={tmp_path / 'runs'}")
        config = compose_eval("suite=lm_eval", *given, "device=cpu", "progress_bar=false", *overrides)
        return Session(config, find_target(str(shared / "models" / "stories260K"), None, tmp_path / "runs"))

    return made


def evaluated(session):
    lm_eval_suite.check(session, session.config.suite)
    return lm_eval_suite.evaluate(session, session.config.suite)


def of_lm_eval(session, task_folder, **arguments):
    """The result of lm-eval's own evaluator and model class."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sftmix.evaluation.generators.fitting import with_template
    from sftmix.evaluation.lm_eval.model import silent

    tokenizer = with_template(session.tokenizer, session.config.suite.template, "")
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0)
    with silent():
        return simple_evaluate(
            HFLM(pretrained=session.pool.loaded.causal_lm, tokenizer=tokenizer, batch_size=1),
            tasks=["animals", "places"],
            task_manager=TaskManager(include_path=task_folder, include_defaults=False),
            bootstrap_iters=0,
            **seeds,
            **arguments,
        )


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        (["suite.apply_chat_template=false"], {}),
        (["suite.apply_chat_template=false", "suite.num_fewshot=2", "limit=4"], {"num_fewshot": 2, "limit": 4}),
        (
            ["suite.apply_chat_template=true", "suite.template=chatml", "suite.num_fewshot=2", "limit=4"],
            {"num_fewshot": 2, "limit": 4, "apply_chat_template": True, "fewshot_as_multiturn": True},
        ),
        (
            ["suite.apply_chat_template=true", "suite.template=chatml", "suite.system_instruction=Answer.", "limit=3"],
            {"limit": 3, "apply_chat_template": True, "system_instruction": "Answer."},
        ),
    ],
)
def test_every_question_has_the_result_of_lm_evals_own_evaluator(overrides, arguments, session_of, task_folder):
    session = session_of(*overrides)
    ours = evaluated(session)
    theirs = of_lm_eval(session, task_folder, **arguments)
    replies = [json.loads(line) for line in next(session.folder("lm_eval").glob("*.jsonl")).read_text().splitlines()]
    by_key = {reply["key"]: reply for reply in replies}
    for e in ours:
        task = e.benchmark.partition(",")[0]
        samples = theirs["samples"][task]
        for column, score in e.scores.items():
            metric, _, of_filter = column.partition(", ")
            assert score == pytest.approx(theirs["results"][task][f"{metric},{of_filter or 'none'}"], abs=1e-12)
            expected = {str(s["doc_id"]): s[metric] for s in samples if s["filter"] == (of_filter or "none")}
            assert metric == "ter" or e.questions[column] == expected
        kind = "generate_until" if task == "places" else "loglikelihood"
        for sample in samples:
            for key, [reply] in zip(
                _keys([ScoringRequest(kind, args) for args in sample["arguments"]]), sample["resps"], strict=True
            ):
                value = by_key[key]["value"]  # it is there: our prompt is the same
                assert value == reply if kind == "generate_until" else value[0] == pytest.approx(reply[0], abs=1e-4)
    animals, places = ours
    assert list(animals.scores) == ["acc", "acc_norm"]
    assert list(places.scores) == ["exact_match, word", "ter, word", "exact_match, whole", "ter, whole"]
    assert places.lower_is_better == ["ter, word", "ter, whole"]
    assert set(places.questions) == {"exact_match, word", "exact_match, whole"}, "TER is not a mean over questions"
    assert animals.counts == {"questions": arguments.get("limit", 10), "prompts_cut": 0}
    texts = {r["value"] for r in replies if r["kind"] == "generate_until"}
    assert arguments or len(texts) > 1, "equal texts would show nothing"


def test_a_killed_evaluation_continues_where_it_was(session_of, monkeypatch, capfd):
    kept = ModelPool.map

    def killed(pool, function, items):
        for done, found in enumerate(kept(pool, function, items)):
            if done == 2:
                raise KeyboardInterrupt
            yield found

    settings = ("suite.apply_chat_template=false", "suite.batch_size=2")
    monkeypatch.setattr(ModelPool, "map", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(session_of(*settings))
    computed = []

    def counted(pool, function, items):
        computed.extend(request for item in items for request in item)
        return kept(pool, function, items)

    monkeypatch.setattr(ModelPool, "map", counted)
    session = session_of(*settings)
    found = evaluated(session)
    (journal,) = session.folder("lm_eval").glob("*.jsonl")
    lines = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(lines) == len(set(lines)), "no request is computed twice"
    assert 0 < len(computed) < len(lines)
    monkeypatch.setattr(ModelPool, "map", lambda *_: pytest.fail("something was computed again"))
    assert [e.scores for e in evaluated(session_of("suite.batch_size=3", settings[0]))] == [e.scores for e in found]
    assert "Left truncation" not in capfd.readouterr().err


def test_nothing_is_asked_of_a_network_and_the_output_is_two_lines(session_of, monkeypatch, capfd):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    evaluated(session_of("suite.apply_chat_template=false", "limit=2"))
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["tasks", "model"]
    assert err == ""


def test_only_tasks_that_generate_use_the_chat_template_unless_it_is_set(session_of):
    animals, places = evaluated(session_of("suite.template=chatml", "limit=2"))
    assert (animals.benchmark, places.benchmark) == ("animals, first 2 of 10", "places, first 2 of 10")
    assert animals.settings["template_sha256"] is None
    assert places.settings["template_sha256"] is not None
    assert places.settings["fewshot_as_multiturn"] is True


def test_two_models_are_compared_question_by_question(session_of, tmp_path):
    found = evaluated(session_of("suite.apply_chat_template=false"))
    for name, sign in (("one", 0), ("other", 1)):
        changed = [
            e
            if sign == 0
            else type(e)(
                **{**vars(e), "questions": {c: {q: 1 - v for q, v in of.items()} for c, of in e.questions.items()}}
            )
            for e in found
        ]
        write_evaluations(tmp_path / name / "evaluation", changed)
    (block,) = compare(tmp_path / "one", tmp_path / "other").blocks
    rows = {(row[0].text, row[1].text): row for row in block.rows}
    assert set(rows) == {
        ("lm_eval, animals", "acc"),
        ("lm_eval, animals", "acc_norm"),
        ("lm_eval, places", "exact_match, word"),
        ("lm_eval, places", "exact_match, whole"),
    }
    assert rows["lm_eval, animals", "acc"][2].value == pytest.approx(found[0].scores["acc"])
    assert rows["lm_eval, animals", "acc"][9].value == 10


def test_a_dry_run_counts_the_questions_and_loads_no_model(session_of, monkeypatch, capsys):
    monkeypatch.setattr(ModelPool, "loaded", property(lambda _: pytest.fail("the model was loaded")))
    assert evaluated(session_of("dry_run=true", "limit=4", "suite.apply_chat_template=false")) == []
    assert "animals                             4 questions\n" in capsys.readouterr().out


def test_the_prompts_that_do_not_fit_are_counted(session_of, task_folder, write_task):
    rows = [{"text": "went home. " * n, "word": "home"} for n in (1, 300, 1, 300)]
    write_task(
        task_folder,
        "long",
        rows,
        output_type="generate_until",
        doc_to_text="text",
        doc_to_target="word",
        generation_kwargs={"until": ["."], "max_gen_toks": 4},
        fewshot_split=None,
        dataset_kwargs={"data_files": {"test": str(task_folder / "long-test.jsonl")}},
    )
    (found,) = evaluated(session_of("suite.apply_chat_template=false", "seed=3", tasks="long"))
    assert found.counts == {"questions": 4, "prompts_cut": 2}
    assert found.settings["seed"] == 3


def test_a_task_whose_answers_leave_no_room_for_a_question_is_refused(session_of, task_folder, write_task):
    write_task(
        task_folder,
        "endless",
        [{"text": "She went", "word": "home"}] * 11,
        output_type="generate_until",
        doc_to_text="text",
        doc_to_target="word",
        generation_kwargs={"until": ["."], "max_gen_toks": 512},
    )
    message = "task endless: its answers may have 512 tokens, and the model reads 512 with the question; leave the task"
    with pytest.raises(InputError, match=f"^{message}"):
        evaluated(session_of("suite.apply_chat_template=false", tasks="endless"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            "suite.template has no value and stories260K has no chat template, through which places is asked; expected "
            "suite.template=NAME, or suite.apply_chat_template=false",
        ),
        (["suite.template=nowhere"], "suite.template=nowhere"),
        (
            ["suite.num_fewshot=5", "suite.apply_chat_template=false"],
            "task animals: its questions cannot be built with num_fewshot=5 (ValueError: Sample larger than population",
        ),
        (
            ["suite.template={folder}/no_system.jinja", "suite.system_instruction=Be."],
            "suite.system_instruction=Be.: the chat template has no system turn",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_a_model_is_loaded(
    overrides, message, session_of, monkeypatch, tmp_path
):
    monkeypatch.setattr(ModelPool, "loaded", property(lambda _: pytest.fail("the model was loaded")))
    (tmp_path / "no_system.jinja").write_text("{{ messages[-1].content }}")
    session = session_of(*(override.format(folder=tmp_path) for override in overrides))
    with pytest.raises(InputError) as refused:
        lm_eval_suite.check(session, session.config.suite)
    assert message in str(refused.value)
