"""Bad input, told in one line before anything is trained."""

import json

import pytest

from sftmix.artifacts.tables import read_table, write_table
from sftmix.errors import InputError
from sftmix.stages import reference, target

ROWS = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}."} for i in range(40)]


@pytest.mark.parametrize(
    ("rows", "overrides", "says"),
    [
        (ROWS[:1], [], "1 example to train on, expected at least 2"),
        ([{**ROWS[0], "output": ""}, {**ROWS[1], "output": " "}], [], "0 examples .* 2 dropped: empty response"),
        ([{"instruction": "A", "answer": "B"}], [], "row 1: the fields are instruction, answer, expected"),
        (ROWS, ["data.max_seq_len=8"], r"0 examples to train on.*40 dropped: prompt fills max_seq_len"),
        (ROWS, ["data.max_seq_len=8", "data.overlong=error"], r"row 1: \d+ prompt and \d+ response tokens"),
        (
            ROWS,
            ["reference.num_checkpoints=9"],
            r"reference\.num_checkpoints=9: the reference takes 3 steps \(40 examples, 1 epoch, steps of 16\), .*: "
            r"set reference\.num_checkpoints=3, or more steps by data\.epochs=3$",
        ),
        (ROWS[:3], ["data.num_checkpoints=2"], r"takes 1 step .*: set data\.num_checkpoints=1, or .* data\.epochs=2$"),
        (
            ROWS,
            ["data.template=tokenizer"],
            "the tokenizer has no chat template, expected alpaca, chatml, gemma, llama3",
        ),
        (
            ROWS,
            ["data.template=foo"],
            r"no such template, expected alpaca, .*, zephyr, tokenizer or the path of a \.jinja file",
        ),
        (ROWS, ["model.init.max_position_embeddings=64"], r"data\.max_seq_len=128: model tiny has 64 positions"),
        (
            ROWS[:3],
            ["recipe=ntp", "recipe.ntp.on=confident", "recipe.global_batch_size=16"],
            "3 examples .* at least 4",
        ),
    ],
)
def test_bad_input_is_told_before_training(run, tmp_path, rows, overrides, says, monkeypatch):
    monkeypatch.setattr(reference, "tune", None)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=says) as error:
        run("data.demo=null", f"data.path={file}", "data.val_fraction=0", *overrides)
    assert "\n" not in str(error.value)
    assert not [f for f in tmp_path.glob("*-*") if f.is_dir()], "nothing is left behind"


def test_a_confidence_file_of_other_data_is_refused_before_training(copy_of_run, run, monkeypatch):
    plan, root = copy_of_run
    file = root / plan.confidence.folder.name / "confidence.parquet"
    monkeypatch.setattr(reference, "tune", None)
    with pytest.raises(InputError, match=r"confidence of \d+ of the \d+ examples .* is it of other data\?"):
        run(f"confidence.path={file}", "data.demo.seed=9", root=root)


@pytest.mark.parametrize(
    ("change", "overrides", "says"),
    [
        ({}, ["confidence.use=[7]"], r"confidence\.use=\[7\]: .* has 2 checkpoints"),
        ({}, ["confidence.use=3"], r"confidence\.use=3: .* has 2 checkpoints"),
        ({"nll": float("nan")}, [], r"row 1 .* has nll=nan, and \d+ more of \d+ rows"),
        ({"num_tokens": 0}, [], r"row 1 .* has num_tokens=0, and"),
    ],
)
def test_a_confidence_file_that_cannot_be_used_is_told_before_training(
    copy_of_run, run, tmp_path, monkeypatch, change, overrides, says
):
    plan, root = copy_of_run
    monkeypatch.setattr(target, "tune", None)
    table = read_table(root / plan.confidence.folder.name / "confidence.parquet")
    write_table(tmp_path / "c.parquet", {**table, **{k: [v] * len(table["nll"]) for k, v in change.items()}})
    with pytest.raises(InputError, match=says):
        run(f"confidence.path={tmp_path / 'c.parquet'}", *overrides, root=root)


def test_a_checkpoint_that_scored_half_the_data_does_not_count_as_coverage(copy_of_run, run, tmp_path, monkeypatch):
    plan, root = copy_of_run
    monkeypatch.setattr(target, "tune", None)
    table = read_table(root / plan.confidence.folder.name / "confidence.parquet")
    kept = [k for k, c in enumerate(table["checkpoint"]) if c == 1 or k % 2]
    write_table(tmp_path / "c.parquet", {name: [values[k] for k in kept] for name, values in table.items()})
    with pytest.raises(InputError, match="expected every example to be scored under each of the 2 checkpoints"):
        run(f"confidence.path={tmp_path / 'c.parquet'}", root=root)


def test_a_reference_that_keeps_too_few_examples_is_told_before_it_is_tuned(run, monkeypatch):
    """A reference of bytes alone needs more tokens for the same text."""
    monkeypatch.setattr(reference, "tune", None)
    with pytest.raises(InputError, match=r"reference\.model=tiny: its tokenizer leaves .* of the target's"):
        run(
            "model@reference.model=tiny",
            "reference.model.init.vocab_size=300",
            "model.init.vocab_size=1000",
            "data.max_seq_len=60",
        )


@pytest.mark.parametrize("content", ["columns", "garbage"])
def test_a_file_that_is_no_confidence_file_is_refused(run, tmp_path, content):
    file = tmp_path / "c.parquet"
    if content == "columns":
        write_table(file, {"example_id": ["a"], "loss": [1.0]})
    else:
        file.write_bytes(b"nothing of the kind")
    says = (
        "no column checkpoint, num_tokens, nll; found example_id, loss"
        if content == "columns"
        else "expected a parquet file"
    )
    with pytest.raises(InputError, match=says):
        run(f"confidence.path={file}")
