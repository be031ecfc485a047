"""Questions through `datasets`: the hub's columns give the same questions and prompts as the published files."""

import json

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.medical.benchmarks import read_questions
from sftmix.evaluation.medical.hub_sets import HubSet, hub_set, open_table
from sftmix.evaluation.medical.questions import rows_sha256

COMMIT = "0123456789" * 4


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def hub_columns(benchmark, bench):
    """The published files' rows of a test in the columns of the hub's data sets, and its split."""
    import datasets

    if benchmark == "PubMedQA":
        labelled = json.loads((bench / "ori_pqal.json").read_text())
        rows = [
            {
                "pubid": int(name),
                "question": fields["QUESTION"],
                "context": {"contexts": fields["CONTEXTS"], "labels": fields["LABELS"]},
                "final_decision": fields["final_decision"],
            }
            for name, fields in labelled.items()
        ]
        return "train", datasets.Dataset.from_list(rows)
    if benchmark == "MedMCQA":
        rows = [row | {"cop": row["cop"] - 1} for row in lines(bench / "medmcqa_dev.jsonl")]
        table = datasets.Dataset.from_list(rows).cast_column("cop", datasets.ClassLabel(names=list("abcd")))
        return "validation", table
    name = {"MedQA": "medqa_us_4options_test", "MedQA-5": "medqa_us_5options_test"}[benchmark]
    kept = ("question", "options", "answer_idx")
    return "test", datasets.Dataset.from_list(
        [{key: row[key] for key in kept} for row in lines(bench / f"{name}.jsonl")]
    )


def saved(folder, **splits):
    import datasets

    tables = {
        name: t if isinstance(t, datasets.Dataset) else datasets.Dataset.from_list(t) for name, t in splits.items()
    }
    datasets.DatasetDict(tables).save_to_disk(str(folder))
    return hub_set(str(folder), "suite.hub")


@pytest.mark.parametrize("benchmark", ["MedQA", "MedQA-5", "PubMedQA", "MedMCQA"])
def test_the_hubs_columns_give_the_questions_of_the_published_files(benchmark, shared, tmp_path):
    bench = shared / "data" / "bench"
    split, table = hub_columns(benchmark, bench)
    source = saved(tmp_path / "set", **{split: table})
    of_hub = read_questions(benchmark, "held_out", bench, tmp_path, source)
    of_files = read_questions(benchmark, "held_out", bench, tmp_path)
    assert of_hub == of_files._replace(source=str(tmp_path / "set"))
    assert rows_sha256(of_hub.test) == rows_sha256(of_files.test)
    assert of_files.source is None


def test_the_train_split_is_the_pool_and_its_repeats_are_counted(tmp_path):
    row = {"question": "Q?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer_idx": "C"}
    other = row | {"question": "Other?"}
    source = saved(tmp_path / "set", test=[row], train=[other, row, other])
    found = read_questions("MedQA", "train", None, tmp_path, source)
    assert [r.question for r in found.test] == ["Q?"]
    assert [r.question for r in found.pool] == ["Other?"]
    assert (found.num_left_out, found.num_repeats) == (1, 1)


def test_plain_numbers_of_a_right_option_count_from_1_as_in_the_publishers_lines(tmp_path):
    row = {"id": "x", "question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 4}
    source = saved(tmp_path / "set", validation=[row], train=[row | {"id": "y", "question": "R?", "cop": 1}])
    found = read_questions("MedMCQA", "train", None, tmp_path, source)
    assert [r.answer for r in (*found.test, *found.pool)] == [3, 0]


def test_the_hub_is_asked_for_the_pinned_commit_of_the_labelled_questions(monkeypatch, shared):
    import datasets

    asked = []

    def load_dataset(path, config, **options):
        asked.append((path, config, options["revision"], options["split"]))
        return hub_columns("PubMedQA", shared / "data" / "bench")[1]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = hub_set(f"qiaojin/PubMedQA@{COMMIT}", "suite.hub")
    found = read_questions("PubMedQA", "train", shared / "data" / "bench", shared, source)
    assert (len(found.test), len(found.pool)) == (500, 500)
    assert found.source == f"qiaojin/PubMedQA:pqa_labeled@{COMMIT}"
    assert asked == [("qiaojin/PubMedQA", "pqa_labeled", COMMIT, "train")]


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("owner/name", HubSet("owner/name", None, None, False)),
        ("owner/name:some", HubSet("owner/name", "some", None, False)),
        (f"owner/name:some@{COMMIT}", HubSet("owner/name", "some", COMMIT, False)),
        ("qiaojin/PubMedQA:pqa_artificial", HubSet("qiaojin/PubMedQA", "pqa_artificial", None, False)),
    ],
)
def test_what_a_data_set_may_be_written_as(given, means):
    assert hub_set(given, "suite.hub") == means


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("./nowhere", "suite.hub.MedQA=./nowhere: no such folder, expected OWNER/NAME, "),
        ("name", "suite.hub.MedQA=name: no such folder, expected OWNER/NAME, "),
        ("owner/name@main", "suite.hub.MedQA=owner/name@main: main is not a commit of 40 hexadecimal digits"),
        ("owner/name@", "suite.hub.MedQA=owner/name@:  is not a commit of 40 hexadecimal digits"),
    ],
)
def test_what_is_no_data_set_is_one_line(given, says):
    with pytest.raises(InputError) as refused:
        hub_set(given, "suite.hub.MedQA")
    assert str(refused.value).startswith(says)


def test_a_folder_that_is_something_else_is_one_line(tmp_path):
    import datasets

    source = saved(tmp_path / "set", test=[{"a": 1}])
    with pytest.raises(InputError, match=r"set: has no split train, expected one of test$"):
        open_table(source, "train")
    with pytest.raises(InputError, match=r"set \(test\), row 1: no field 'options', expected a question"):
        read_questions("MedQA", "train", None, tmp_path, source)
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(InputError, match=r"a single split without a name, expected a DatasetDict with the split train"):
        open_table(hub_set(str(tmp_path / "one"), "suite.hub"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: not a folder that datasets saved \(.*\)$"):
        open_table(hub_set(str(tmp_path / "empty"), "suite.hub"), "train")


def test_a_repeated_labelled_question_is_one_line(shared, tmp_path):
    row = {"pubid": 7, "question": "Q?", "context": {"contexts": ["C."]}, "final_decision": "yes"}
    source = saved(tmp_path / "set", train=[row, row])
    with pytest.raises(InputError, match=r"set \(train\), row 2: question 7 is repeated$"):
        read_questions("PubMedQA", "train", shared / "data" / "bench", tmp_path, source)
