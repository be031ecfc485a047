"""Validation files of another origin: how they are named, read and refused, and what depends on them."""

import json

import numpy as np
import pytest

from prepared import write_rows
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import VAL_SETS, read_table
from sftmix.config.schema import from_dict, to_dict
from sftmix.errors import ConfigError, InputError
from sftmix.reports.held_out import held_out_table
from sftmix.stages import checks, reference
from sftmix.stages.inputs import check_inputs
from sftmix.stages.plan import plan_run
from sftmix.stages.split import split_validation_file
from sftmix.stages.validation_files import FEWEST, few_held_out

TOO_LONG = json.dumps({"instruction": "x " * 900, "output": "y"})


def given(path):
    return f"data.val_path={path}"


def test_a_file_is_named_by_its_stem_or_by_a_mapping(context, tmp_path):
    files = [write_rows(tmp_path / name, number=5, start=200) for name in ("a.jsonl", "b.jsonl")]
    one, both = context(given(files[0])).config.data, context(given(f"[{files[0]},{files[1]}]")).config.data
    named = context(given(f"{{x: {files[0]}, y: {files[1]}}}")).config
    assert one.val_files == {"a": str(files[0])}
    assert both.val_files == {"a": str(files[0]), "b": str(files[1])}
    assert named.data.val_files == {"x": str(files[0]), "y": str(files[1])}
    assert from_dict(to_dict(named)) == named, "a record holds them"
    earlier = to_dict(named)
    del earlier["data"]["val_path"]
    assert from_dict(earlier).data.val_files == {}, "a record of an earlier version has none"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[a.jsonl,more/a.jsonl]", r"^data\.val_path: the name a occurs twice, expected each once; .*\{NAME: FILE\}"),
        ("{x: a.jsonl, y: a.jsonl}", r"the file a\.jsonl occurs twice"),
        ("{-x: a.jsonl}", r"'-x' names a file, expected a name of letters"),
        ("[]", r"data\.val_path=\[\]: expected a file, a list of files, or a mapping"),
        ("3", r"data\.val_path=3: expected a file"),
    ],
)
def test_names_and_files_that_occur_twice_are_refused(context, value, says):
    with pytest.raises(ConfigError, match=says):
        context(given(value))


def test_files_are_read_by_the_rules_of_the_training_data(context, tmp_path):
    """Same columns, template and length. Groups, weights and selections of the training data do not apply."""
    rows = [{"q": f"Ask {k}.", "output": f"Yes {k}." + " word" * (200 * (k == 3))} for k in range(6)]
    file = tmp_path / "other.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    own = [{"q": f"Say {k}.", "output": f"{k}", "kind": "kept", "w": 0.5} for k in range(30)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, own)))
    columns = "data.columns={instruction: q, group: kind, weight: w}"
    overrides = (columns, "data.groups=[kept]", "data.limit=20", "data/select=random", "data.select.k=8", given(file))
    prepared = context(*overrides, path=tmp_path / "own.jsonl")
    found = prepared.validation_files()["other"]
    assert len(found.examples) == 5
    assert found.census.lost().startswith("1 dropped:")
    assert "1 dropped" in found.in_words("other")
    assert found.num_trained_on == 0
    trained = prepared.encoded(prepared.config.model)
    text = trained.tokenizer.decode(found.examples[0].input_ids)
    shown = trained.tokenizer.decode(trained.train[0].input_ids)
    assert "Ask 0." in text
    assert text.partition("Ask")[0] == shown.partition("Say")[0], "the same template"


def test_examples_that_are_trained_on_too_are_counted(context, tmp_path):
    file = write_rows(tmp_path / "more.jsonl", number=10, start=55)
    prepared = context(given(file), "data.val_fraction=0")
    found = prepared.validation_files()["more"]
    assert found.num_trained_on == 5, "rows 55 to 59 of 60"
    assert "5 of them are trained on too" in found.in_words("more")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda file: None, r"^data\.val_path=.*more\.jsonl: no such file"),
        (lambda file: file.write_text(""), r"more\.jsonl: the file is empty"),
        (lambda file: file.write_text('{"a": 1}'), r"^data\.val_path, more: .*more\.jsonl, line 1: the fields are a"),
        (lambda file: file.write_text(TOO_LONG), r"more\.jsonl: no example to measure, expected one of at most \d+ "),
    ],
)
def test_a_bad_file_is_one_line_before_training(run, tmp_path, monkeypatch, write, says):
    monkeypatch.setattr(reference, "tune", None)
    write(tmp_path / "more.jsonl")
    with pytest.raises(InputError, match=says) as error:
        run(given(tmp_path / "more.jsonl"))
    assert "\n" not in str(error.value)


def test_files_count_for_the_target_and_not_for_the_reference(compose, small_overrides, tmp_path):
    """The losses of a file belong to the run. Scores and reference do not depend on it."""
    file = write_rows(tmp_path / "more.jsonl", number=4, start=300)
    plans = {}
    for name, more in {"without": (), "with": (given(file),), "named": (given(f"{{other: {file}}}"),)}.items():
        plans[name] = plan_run(compose(*small_overrides, f"root={tmp_path}", *more))[1]
    write_rows(file, number=5, start=300)
    plans["changed"] = plan_run(compose(*small_overrides, f"root={tmp_path}", given(file)))[1]
    assert len({plan.reference.fingerprint for plan in plans.values()}) == 1
    assert len({plan.confidence.fingerprint for plan in plans.values()}) == 1
    assert len({plan.target.fingerprint for plan in plans.values()}) == 4
    assert len({plan.baseline.fingerprint for plan in plans.values()}) == 4
    assert "val_sets" not in plans["without"].target.fields


def test_subsets_follow_the_rule_of_the_split(context, tmp_path):
    """Files are not scored: a split by confidence knows only examples that have a confidence."""
    file = write_rows(tmp_path / "more.jsonl", number=8, start=56)
    prepared = context(given(file), "data.val_fraction=0")
    found, split = prepared.validation_files()["more"], prepared.config.split
    assert split_validation_file(split, found, {}) == {"confident": [], "unconfident": []}
    ids = found.examples.ids
    known = split_validation_file(split, found, {ids[1]: -2.0, ids[6]: -3.0})
    assert known == {"confident": [1], "unconfident": [6]}
    split.by = "length"
    by_length = split_validation_file(split, found, {})
    lengths = found.examples.num_response_tokens
    assert [len(members) for members in by_length.values()] == [4, 4]
    assert max(lengths[by_length["confident"]]) <= min(lengths[by_length["unconfident"]])


def test_losses_of_files_are_in_the_run_its_curves_and_its_report(run, tmp_path):
    file = write_rows(tmp_path / "more.jsonl", number=6, start=300)
    plan = run("recipe=sftmix", "split.by=random", "data.demo.num_examples=40", given(file))
    folder = plan.target.folder
    metrics, table = read_json(folder / "metrics.json")["val_sets"]["more"], read_table(folder / VAL_SETS)
    assert metrics["examples"] == len(table["nll"]) == 6
    assert metrics["loss"] == pytest.approx(np.sum(table["nll"]) / np.sum(table["num_tokens"]))
    assert {"loss_before", "loss_confident", "loss_unconfident"} <= metrics.keys()
    assert "val_more/loss" in (folder / "logs/metrics.csv").read_text()
    split = read_table(folder / "split.parquet")
    row = held_out_table(folder, None, "SFTMix", split).rows[-1]
    assert row == ("more", metrics["loss_before"], None, pytest.approx(metrics["loss"]), "")


@pytest.mark.parametrize(("number", "warns"), [(0, False), (1, True), (FEWEST - 1, True), (FEWEST, False)])
def test_few_held_out_examples_are_warned_about(number, warns):
    warning = few_held_out(number)
    assert (warning is not None) is warns
    assert warning is None or warning.startswith(f"only {number} example{'s' if number > 1 else ''} held out")


def test_the_start_of_a_run_names_files_and_few_held_out_examples(context, tmp_path, capsys):
    file = write_rows(tmp_path / "more.jsonl", number=4, start=300)
    prepared = context(given(file))
    checks._print_data(prepared, prepared.encoded(prepared.config.model))
    printed = capsys.readouterr().out
    assert "held out, expected at least 30" in printed
    assert "validation file more: 4 examples\n" in printed
    check_inputs(prepared.config)
