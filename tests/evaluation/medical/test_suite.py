"""suite=medical: missing files are reported first; the results are one evaluation for each benchmark and round."""

import importlib.util
import json

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.medical import suite as medical
from sftmix.evaluation.medical.schema import MEDICAL
from sftmix.evaluation.medical.scorer import Scored
from sftmix.evaluation.model_pool import ModelSource
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import find_target
from sftmix.stages import inputs


@pytest.fixture
def session_of(compose_eval, shared, tmp_path):
    """A function that makes a call on stories260K from overrides."""

    def made(*overrides):
        config = compose_eval(
            "suite=medical", f"root={tmp_path / 'runs'}", "device=cpu", "progress_bar=false", *overrides
        )
        return Session(config, find_target(str(shared / "models" / "stories260K"), None, tmp_path / "runs"))

    return made


def test_embedded_questions_are_scored_in_every_round(session_of, capsys):
    session = session_of("bench=demo", "limit=4", "suite.rounds=2")
    medical.check(session, session.config.suite)
    found = medical.evaluate(session, session.config.suite)
    assert [(e.suite, e.judge, e.benchmark, e.round) for e in found] == [
        ("medical", None, "demo, first 4 of 100", 1),
        ("medical", None, "demo, first 4 of 100", 2),
    ]
    for e in found:
        assert list(e.scores) == ["accuracy", "accuracy free"]
        for column, score in e.scores.items():
            assert score == pytest.approx(sum(e.questions[column].values()) / 4)
            assert set(e.questions[column].values()) <= {0.0, 100.0}
        assert e.counts["questions"] == 4
        assert e.settings["model"] == session.target.identity
        assert e.settings["adds_bos"] is True
    assert found[0].record["prompts_sha256"] != found[1].record["prompts_sha256"]
    assert "chance 25.0, always " in capsys.readouterr().out
    assert [e.scores for e in medical.evaluate(session, session.config.suite)] == [e.scores for e in found]


def test_a_part_of_the_published_questions_is_named_as_one(session_of, shared):
    bench = shared / "data" / "bench"
    session = session_of(
        f"bench={bench}", "limit=2", "suite.rounds=1", "suite.pool=held_out", "suite.benchmarks=[PubMedQA,MedMCQA]"
    )
    medical.check(session, session.config.suite)
    found = medical.evaluate(session, session.config.suite)
    names = ["PubMedQA, first 2 of 500", "MedMCQA, last 200 as shots, first 2 of 3983"]
    assert [e.benchmark for e in found] == names
    assert [list(e.scores) for e in found] == [["PubMedQA", "PubMedQA free"], ["MedMCQA", "MedMCQA free"]]
    assert found[0].counts["context_cut"] == 2, "three abstracts are longer than this model reads"


def test_the_accuracy_over_the_questions_that_fit_is_printed_beside_the_accuracy_over_all(session_of, tmp_path, capsys):
    lengths = (1, 1, 1, 1, 600, 600)  # words: this model reads 512 tokens
    rows = [
        {"id": str(k), "question": "why " * n, "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1 + k % 4}
        for k, n in enumerate(lengths)
    ]
    pool = [row | {"id": f"{row['id']}t", "question": f"{k}?"} for k, row in enumerate(rows)]
    for name, part in (("dev", rows), ("train", pool)):
        (tmp_path / f"medmcqa_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    session = session_of(f"bench={tmp_path}", "suite.rounds=2", "suite.benchmarks=[MedMCQA]")
    found = medical.evaluate(session, session.config.suite)
    column = "MedMCQA, those that fit"
    for e in found:
        assert list(e.scores) == ["MedMCQA", "MedMCQA free", column]
        assert e.questions[column] == {id: e.questions["MedMCQA"][id] for id in "0123"}
        assert e.questions["MedMCQA"]["4"] == e.questions["MedMCQA"]["5"] == 0.0
        assert e.scores[column] == pytest.approx(sum(e.questions[column].values()) / 4)
        assert e.scores["MedMCQA"] == pytest.approx(e.scores[column] * 4 / 6)
    mean = sum(e.scores[column] for e in found) / 2
    said = f"; 2 too long for the model, counted as wrong; {mean:.1f}% of the 4 that fit\n"
    assert capsys.readouterr().out.endswith(said)
    assert mean > 0, "otherwise both accuracies would be 0"


def test_a_chat_template_changes_the_prompts_and_not_the_shared_tokenizer(session_of):
    session = session_of("bench=demo", "limit=1", "suite.rounds=1", "suite.template=chatml")
    plain = session_of("bench=demo", "limit=1", "suite.rounds=1")
    medical.check(session, session.config.suite)
    (found,), (without,) = medical.evaluate(session, session.config.suite), medical.evaluate(plain, plain.config.suite)
    assert found.record["prompts_sha256"] != without.record["prompts_sha256"]
    assert found.settings["adds_bos"] is False
    assert without.settings["template_sha256"] is None
    assert session.tokenizer.chat_template == plain.tokenizer.chat_template


def test_a_dry_run_prints_the_calls_and_loads_no_model(session_of, capsys, monkeypatch):
    session = session_of("bench=demo", "dry_run=true")
    monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("the model was loaded"))
    assert medical.evaluate(session, session.config.suite) == []
    assert "3 rounds of 100 questions" in capsys.readouterr().out


def test_what_is_missing_is_an_error_before_a_model_is_loaded(session_of, shared, monkeypatch):
    def refused(session):
        monkeypatch.setattr(ModelSource, "load", lambda *_: pytest.fail("the model was loaded"))
        with pytest.raises(InputError) as error:
            medical.check(session, session.config.suite)
        return str(error.value)

    bench = f"bench={shared / 'data' / 'bench'}"
    assert "medqa_us_4options_train.jsonl is not in this folder" in refused(session_of(bench))
    assert "suite.template=nowhere" in refused(session_of("bench=demo", "suite.template=nowhere"))
    small = refused(session_of("bench=demo", "suite.num_shots=51"))
    assert small == "suite.num_shots=51: demo has 50 rows that may be shots"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(medical, "find_spec", lambda _: None)
    assert refused(session_of("bench=demo")) == "suite=medical: it needs lm_eval, pip install 'sftmix[eval]'"


@pytest.mark.parametrize("setting", ["suite.benchmarks=[PubMedQA]", "suite.pool=held_out", "suite.hub={MedQA: a/b}"])
def test_what_chooses_among_published_questions_is_refused_for_embedded_ones(setting, session_of):
    session = session_of("bench=demo", setting)
    with pytest.raises(InputError) as refused:
        medical.check(session, session.config.suite)
    assert str(refused.value).startswith(f"{setting}: embedded questions ")


def test_the_published_settings_are_those_of_the_suite_by_default(compose_eval):
    suite = compose_eval("suite=medical").suite
    assert (tuple(suite.benchmarks), suite.pool) == (MEDICAL, medical.POOL)


def test_what_a_train_file_repeats_is_in_the_record(session_of, tmp_path):
    row = {"id": "0", "question": "0?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1}
    train = [row | {"id": str(k), "question": f"{k}?"} for k in range(1, 5)]
    for name, rows in (("dev", [row]), ("train", [*train, *train[:2]])):
        (tmp_path / f"medmcqa_{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    session = session_of(f"bench={tmp_path}", "suite.rounds=1", "suite.benchmarks=[MedMCQA]")
    (found,) = medical.evaluate(session, session.config.suite)
    assert found.record["pool_repeats"] == 2
    assert found.settings["pool"] == 4


def test_the_sd_over_rounds_is_a_samples_and_the_record_says_so(session_of, capsys, monkeypatch):
    right = iter((1, 2, 3))  # of four questions, in three rounds: sd 25 of a sample, 20.4 of a population

    def planted(_, prompts, *__):
        num_right = next(right)
        return [Scored((0.0,), k < num_right, False) for k in range(len(prompts))]

    monkeypatch.setattr(medical.Scorer, "score", planted)
    session = session_of("bench=demo", "limit=4", "suite.rounds=3")
    found = medical.evaluate(session, session.config.suite)
    assert "first 4 of 100: 50.0% ± 25.0 over 3 rounds" in capsys.readouterr().out
    assert {e.record["sd_over_rounds"] for e in found} == {"of a sample (n - 1); BioMistral's is the population's (n)"}


def test_the_hubs_questions_are_read_at_a_commit_that_is_remembered(session_of, monkeypatch, tmp_path, capsys):
    import datasets

    rows = [
        {"question": f"{k}?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer_idx": "B"} for k in range(6)
    ]
    asked = []

    def load_dataset(path, config, *, revision, split):
        asked.append((path, config, revision, split))
        return datasets.Dataset.from_list(rows[:2] if split == "test" else rows[2:], split=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(inputs, "newest_commit", lambda *_: "a" * 40)
    monkeypatch.setattr(medical, "check_on_hub", lambda *_: None)
    session = session_of("suite.hub={MedQA: owner/name}", "suite.benchmarks=[MedQA]", "suite.rounds=1")
    medical.check(session, session.config.suite)
    monkeypatch.setattr(inputs, "newest_commit", None)  # it is not asked for again
    (found,) = medical.evaluate(session, session.config.suite)
    assert set(asked) == {("owner/name", None, "a" * 40, split) for split in ("test", "train")}
    assert found.record["source"] == f"owner/name@{'a' * 40}"
    assert found.counts["questions"] == 2
    assert "owner/name: its newest commit is aaaa" in capsys.readouterr().out

    folder = tmp_path / "saved"
    datasets.DatasetDict(
        {"test": datasets.Dataset.from_list(rows[:2]), "train": datasets.Dataset.from_list(rows[2:])}
    ).save_to_disk(str(folder))
    session = session_of(f"suite.hub={{MedQA: {folder}}}", "suite.benchmarks=[MedQA]", "suite.rounds=1")
    (again,) = medical.evaluate(session, session.config.suite)
    assert again.settings == found.settings
    assert again.record["prompts_sha256"] == found.record["prompts_sha256"]


def test_a_data_set_of_a_benchmark_that_is_not_asked_is_refused(session_of):
    session = session_of("suite.hub={MedQA: a/b}", "suite.benchmarks=[MedMCQA]")
    with pytest.raises(InputError) as refused:
        medical.check(session, session.config.suite)
    assert str(refused.value) == "suite.hub={MedQA: a/b}: MedQA is not among suite.benchmarks"


def test_a_hub_that_cannot_be_reached_is_one_line_and_names_the_way_out(session_of, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    def repo_info(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for given in ("nobody/nothing", f"nobody/nothing@{'0' * 40}"):
        session = session_of(f"suite.hub={{MedQA: {given}}}", "suite.benchmarks=[MedQA]")
        with pytest.raises(InputError, match=r"^dataset nobody/nothing: could not be .*local copy with bench=FOLDER$"):
            medical.check(session, session.config.suite)
