"""Further held-out sets (`suite.sets`): the loss of transformers, comparisons of two models, and refusals."""

import csv
import json
import re
import shutil

import pytest
import torch

from resealed import write_json
from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.model_pool import ModelSource
from sftmix.evaluation.offline import suite as offline
from sftmix.evaluation.offline.run_data import read_run_data
from sftmix.evaluation.results import read_evaluations
from sftmix.evaluation.run import run_suites
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import find_target
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer
from sftmix.reports.page import write_pages
from sftmix.reports.tables.compare import compare

LOSS, RANDOM_PAIRS = "held-out loss", "linearity gap, random pairs"
PAIRS = [(f"copy the word w{k}", "w " * (k + 1) + str(k)) for k in range(7)]


def as_rows(pairs=PAIRS):
    return [{"instruction": instruction, "output": output} for instruction, output in pairs]


def as_messages(pairs=PAIRS):
    return [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in pairs]


def lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def session(compose_eval, tmp_path):
    """A function that returns a session of suite=offline on a model with sets, and its suite."""

    def new(run, sets, *overrides):
        named = ", ".join(f"{name}: '{path}'" for name, path in sets.items())
        config = compose_eval(
            "suite=offline",
            f"root={tmp_path}",
            f"suite.sets={{{named}}}",
            *("progress_bar=false", "suite.num_answers=0", "suite.num_train=4"),
            *overrides,
        )
        return Session(config, find_target(str(run), None, tmp_path)), config.suite

    return new


@pytest.fixture
def evaluate(session):
    """A function that returns the evaluation of each set of a model, by benchmark."""

    def evaluated(run, sets, *overrides):
        of_call, suite = session(run, sets, *overrides)
        offline.check(of_call, suite)
        return {found.benchmark: found for found in offline.evaluate(of_call, suite)}

    return evaluated


@pytest.fixture
def model(small_run, tmp_path):
    """The folder of a model without a run."""
    return shutil.copytree(small_run[1].target.folder / "model", tmp_path / "mine")


@torch.no_grad()
def test_the_loss_of_a_set_is_that_of_transformers(model, evaluate, tmp_path):
    found = evaluate(model, {"words": lines(tmp_path / "a.jsonl", as_rows())})["words"]
    causal_lm, tokenizer = load_causal_lm(str(model), None).eval(), load_tokenizer(str(model), None, None)
    nll = num_tokens = 0
    losses = []
    for instruction, output in PAIRS:
        turns = [{"role": "user", "content": instruction}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": output}], tokenize=False)
        whole = whole[: whole.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False).input_ids])
        labels = ids.clone()
        labels[0, :start] = -100
        losses.append(causal_lm(input_ids=ids, labels=labels).loss.item())
        nll, num_tokens = nll + losses[-1] * (ids.shape[1] - start), num_tokens + ids.shape[1] - start
    assert sorted(found.questions[LOSS].values()) == pytest.approx(sorted(losses), rel=1e-4)
    assert found.scores[LOSS] == pytest.approx(nll / num_tokens, rel=1e-4)
    assert found.scores["perplexity"] == pytest.approx(torch.tensor(nll / num_tokens).exp().item(), rel=1e-4)
    assert found.counts == {"questions": 7, "tokens": num_tokens, "dropped": 0, "shortened": 0, "pairs": 3}
    assert {"accuracy", "ECE", "Brier", "entropy", RANDOM_PAIRS} <= set(found.scores)


def test_two_models_have_the_same_pairs_whatever_the_file(small_run, evaluate, model, tmp_path):
    other = shutil.copytree(small_run[1].reference.folder / "model", tmp_path / "other")
    one = evaluate(model, {"words": lines(tmp_path / "a.jsonl", as_rows())})["words"]
    (tmp_path / "b.json").write_text(json.dumps(as_messages(PAIRS[::-1])))
    two = evaluate(other, {"words": tmp_path / "b.json"})["words"]
    assert one.questions[RANDOM_PAIRS].keys() == two.questions[RANDOM_PAIRS].keys()
    assert one.questions[RANDOM_PAIRS] != two.questions[RANDOM_PAIRS]
    assert one.weights == two.weights
    assert one.settings["examples_sha256"] == two.settings["examples_sha256"]
    drawn = evaluate(model, {"words": tmp_path / "b.json"}, "seed=1")["words"]
    assert drawn.questions[RANDOM_PAIRS].keys() != one.questions[RANDOM_PAIRS].keys()


def test_pairs_remain_if_an_example_does_not_fit(small_run, evaluate, model, tmp_path):
    long = [*PAIRS, ("w", "w " * 3000)]
    one = evaluate(model, {"words": lines(tmp_path / "a.jsonl", as_rows(long))})["words"]
    assert (one.counts["questions"], one.counts["dropped"]) == (7, 1)
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"max_position_embeddings": 3500})
    two = evaluate(model, {"words": tmp_path / "a.jsonl"})["words"]
    assert (two.counts["questions"], two.counts["pairs"]) == (8, 4)
    assert one.questions[RANDOM_PAIRS].keys() < two.questions[RANDOM_PAIRS].keys()


def test_a_run_evaluates_its_own_data_and_sets_with_the_number_it_was_trained_on(small_run, evaluate, tmp_path, capsys):
    run = small_run[1].target.folder
    data = read_run_data(find_target(str(run), None, run.parent), False)
    trained = [data.texts[line] for line in data.trained.lines[:3].tolist()]
    same = [{"instruction": e.messages[-1].content, "output": e.response} for e in trained]
    file = lines(tmp_path / "a.jsonl", [*same, *as_rows(), as_rows()[0]])
    found = evaluate(run, {"words": file, "again": lines(tmp_path / "b.jsonl", as_messages(PAIRS[:2]))})
    assert list(found) == ["held-out", "words", "again"]
    assert found["words"].counts["trained_on"] == 3
    assert found["words"].counts["dropped"] == 1, "a duplicate counts once"
    assert found["again"].counts["trained_on"] == 0
    assert found["words"].record["max_seq_len"] == small_run[0].data.max_seq_len
    out = capsys.readouterr().out
    assert "1 dropped: duplicate of an earlier example (a.jsonl row 11)" in out
    assert "words and again have 2 examples in common" in out
    row = re.search(r"^  words .*", out.split("Held-out sets: losses")[1], re.MULTILINE)[0].split()
    assert row[1:6] == ["10", f"{found['words'].counts['tokens']:,}", "1", "0", "3"]
    assert f"{found['words'].scores[LOSS]:.4f}" == row[6]


def test_a_training_example_is_found_in_another_form(small_run, evaluate, tmp_path, monkeypatch):
    """An Alpaca row with an input has another id than the same text in one turn."""
    from sftmix.data.example import content_id, dialogue_id

    split = (Message("user", "Add.\n\n1 and 2", "Add.", "1 and 2"),)
    joined = (Message("user", "Add.\n\n1 and 2"),)
    assert content_id(split, "3") != content_id(joined, "3")
    assert dialogue_id((*split, Message("assistant", "3"))) == dialogue_id((*joined, Message("assistant", "3")))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("instruction", "input", "output"), ("Add.", "1 and 2", "3")])
    run = small_run[1].target.folder
    of_run = read_run_data(find_target(str(run), None, run.parent), False)
    table = of_run.trained.table
    dialogue = dialogue_id((*joined, Message("assistant", "3")))
    at = table.schema.get_field_index("dialogue")
    changed = type(of_run.trained)(table.set_column(at, "dialogue", [[dialogue] * len(table)]))
    monkeypatch.setattr(offline, "read_run_data", lambda *_: of_run._replace(trained=changed))
    assert evaluate(run, {"sums": tmp_path / "a.csv"})["sums"].counts["trained_on"] == 1


def test_a_limit_takes_the_first_examples_and_one_example_has_no_pair(evaluate, model, tmp_path, capsys):
    sets = {"words": lines(tmp_path / "a.jsonl", as_rows())}
    found = evaluate(model, sets, "limit=1")
    assert list(found) == ["words, first 1 of 7"]
    [one] = found.values()
    assert RANDOM_PAIRS not in one.scores
    assert (one.counts["questions"], one.counts["pairs"], one.record["linearity"]) == (1, 0, None)
    assert {LOSS, "perplexity", "accuracy", "ECE"} <= set(one.scores)
    assert "not known" in capsys.readouterr().out, "what a model without a run was trained on"


def test_sets_of_a_run_are_evaluated_also_without_its_data(copy_of_run, evaluate, tmp_path, capsys):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"] |= {"path": "no/such/file.jsonl", "demo": None}
    write_json(run / "run.json", record)
    found = evaluate(run, {"words": lines(tmp_path / "a.jsonl", as_rows())})
    assert list(found) == ["words"]
    assert "trained_on" not in found["words"].counts
    out = capsys.readouterr().out
    assert re.search(r"^held-out    left out: .*no/such/file\.jsonl", out, re.MULTILINE)
    assert "not known" in out


def test_an_example_that_is_cut_is_another_question(copy_of_run, evaluate, tmp_path):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"] |= {"overlong": "truncate"}
    write_json(run / "run.json", record)
    found = evaluate(run, {"words": lines(tmp_path / "a.jsonl", as_rows([*PAIRS, ("w", "w " * 400)]))})["words"]
    assert (found.counts["questions"], found.counts["shortened"]) == (8, 1)
    maximum = record["config"]["data"]["max_seq_len"]
    assert sum(i.endswith(f" within {maximum} tokens") for i in found.questions[LOSS]) == 1


def test_two_runs_are_compared_by_question_unless_the_examples_differ(copy_of_run, compose_eval, tmp_path):
    plan, root = copy_of_run
    runs = [root / plan.target.folder.name, root / plan.reference.folder.name]

    def call(run, file):
        overrides = ("suite=offline", f"run={run}", f"root={root}", f"suite.sets={{words: '{file}'}}")
        config = compose_eval(*overrides, "progress_bar=false", "suite.num_answers=0", "suite.num_train=4")
        assert run_suites(config) == 0

    call(runs[0], lines(tmp_path / "a.jsonl", as_rows()))
    call(runs[1], lines(tmp_path / "elsewhere" / "other.jsonl", as_messages()))
    text = write_pages([compare(*runs)], "text")
    [loss] = [row.split() for row in text.split("offline, words")[1].splitlines() if "held-out loss" in row]
    values = [found.scores[LOSS] for run in runs for found in read_evaluations(run) if found.benchmark == "words"]
    assert loss[2:4] == [f"{value:.4f}" for value in values]
    assert "linearity gap, random pairs" in text
    call(runs[1], lines(tmp_path / "other.jsonl", as_rows(PAIRS[:-1])))
    text = write_pages([compare(*runs)], "text")
    assert "offline, words" not in text.split("\n\n")[1]
    assert re.search(r"offline, words, held-out loss, .*: not compared, .*under other settings: examples_sha256", text)


def test_results_under_another_chat_template_have_other_settings(model, evaluate, tmp_path):
    sets = {"words": lines(tmp_path / "a.jsonl", as_rows())}
    one, other = (evaluate(model, sets, f"generate.template={name}")["words"].settings for name in ("chatml", "alpaca"))
    assert [key for key in one if one[key] != other[key]] == ["template"]
    assert len(one["tokenizer"]) == 64


def test_a_set_is_written_before_the_next_is_evaluated(model, compose_eval, monkeypatch, tmp_path):
    from sftmix.evaluation.offline import suite

    evaluate_set = suite.evaluate_set

    def first_only(held_out, *rest):
        if held_out.benchmark != "one":
            raise KeyboardInterrupt
        return evaluate_set(held_out, *rest)

    monkeypatch.setattr(suite, "evaluate_set", first_only)
    file = lines(tmp_path / "a.jsonl", as_rows())
    overrides = ("suite=offline", f"run={model}", f"root={tmp_path}", f"suite.sets={{one: '{file}', two: '{file}'}}")
    with pytest.raises(KeyboardInterrupt):
        run_suites(compose_eval(*overrides, "progress_bar=false"))
    [folder] = (tmp_path / "evaluated").iterdir()
    assert [found.benchmark for found in read_evaluations(folder)] == ["one"]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ("{}", r"suite\.sets=\{\}: expected names of letters"),
        ("{a/b: x.json}", r"suite\.sets=.*a/b.*expected names of letters, digits, .* other than held-out"),
        ("{held-out: x.json}", r"suite\.sets=.*held-out.*: expected names"),
        ("{lima: ''}", r"suite\.sets=.*each with a file: '\{lima: FILE\}'"),
        ("{lima: null}", r"suite\.sets\.lima=null: expected a value"),
        ("{lima: [x.json]}", r"suite\.sets=.*expected names"),
        ("x.json", r"suite\.sets"),
    ],
)
def test_a_set_needs_a_name_and_a_file(compose_eval, sets, says):
    with pytest.raises(InputError, match=says) as error:
        compose_eval("suite=offline", f"suite.sets={sets}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, r"suite\.sets\.words=.*none\.jsonl: no such file or folder"),
        ("folder", "", r"suite\.sets\.words=.*folder: a folder, expected a file"),
        ("empty.jsonl", "", r"empty\.jsonl: the file is empty, expected rows"),
        ("notes.txt", "hello", r"suite\.sets\.words=.*notes\.txt: expected a file of \.json"),
        ("blank.json", "[]", r"suite\.sets\.words: .*blank\.json: no rows"),
        (
            "odd.jsonl",
            '{"a": "x", "b": "y"}\n',
            r"suite\.sets\.words: .*odd\.jsonl, line 1: the fields are a, b.* change the file",
        ),
        (
            "unanswered.jsonl",
            '{"instruction": "a", "output": ""}\n',
            r"no example to evaluate, expected one of at most \d+ tokens \(1 dropped: empty response",
        ),
        (
            "long.jsonl",
            json.dumps({"instruction": "a", "output": "w " * 3000}),
            r"long\.jsonl: no example to evaluate, .*1 dropped: longer than max_seq_len",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_the_model_is_loaded(
    model, session, monkeypatch, tmp_path, name, content, says
):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("the model was loaded"))
    of_call, suite = session(model, {"words": tmp_path / name})
    with pytest.raises(InputError, match=says) as error:
        suite.check_call(of_call.config)
        offline.check(of_call, suite)
    assert "\n" not in str(error.value)


def test_a_model_without_a_chat_template_needs_one(model, session, tmp_path):
    (model / "chat_template.jinja").unlink()
    sets = {"words": lines(tmp_path / "a.jsonl", as_rows())}
    of_call, suite = session(model, sets)
    with pytest.raises(InputError, match=r"generate\.template has no value and mine has no chat template, expected"):
        offline.check(of_call, suite)
    offline.check(*session(model, sets, "generate.template=chatml"))
