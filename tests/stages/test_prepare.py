"""Data prepared once: what the first run writes the next one maps, and never that of anything else."""

import json

import numpy as np
import pytest

from builders import encode_examples
from prepared import counts, encoded_of, folders, tokens, write_rows
from sftmix.artifacts.manifest import read_json
from sftmix.data.census import REFUSED, SAME_TOKENS, TOO_LARGE
from sftmix.errors import InputError
from sftmix.stages import prepare as dataset
from sftmix.stages.context import RunContext


def test_the_second_run_reads_what_the_first_one_wrote(context, monkeypatch):
    first = encoded_of(context())
    monkeypatch.setattr(dataset.Encoder, "fit", None)
    monkeypatch.setattr(dataset, "source_rows", None)
    second = encoded_of(context())
    assert tokens(second) == tokens(first)
    assert second.census.as_dict() == first.census.as_dict()


def test_it_is_what_the_encoder_gives(context):
    prepared = context()
    encoded = encoded_of(prepared)
    from sftmix.data.census import Census

    plain = encode_examples(encoded.encoder, list(prepared.data.examples), Census())
    both = {e.example_id: e for e in [*encoded.train, *encoded.val]}
    assert both == {e.example_id: e for e in plain}


@pytest.mark.parametrize(
    ("changed", "examples"),
    [
        ("data.template=alpaca", 1),
        ("data.max_seq_len=100", 1),
        ("data.overlong=truncate", 1),
        ("model.init.vocab_size=380", 1),
        ("data.limit=50", 2),
        ("data.schema=instruction", 2),
    ],
)
def test_what_changes_the_ids_changes_the_files_and_nothing_else_does(context, tmp_path, changed, examples):
    encoded_of(context())
    encoded_of(context("data.epochs=7", "seed=3", "data.val_fraction=0.1", "recipe.mixup.mu=0.5"))
    assert (len(folders(tmp_path, "examples")), len(folders(tmp_path, "tokens"))) == (1, 1)
    encoded_of(context(changed))
    assert (len(folders(tmp_path, "examples")), len(folders(tmp_path, "tokens"))) == (examples, 2)


def test_other_rows_get_files_of_their_own(context, tmp_path):
    encoded_of(context())
    write_rows(tmp_path / "rows.jsonl", 61)
    assert sum(map(len, tokens(encoded_of(context())))) == 61


def test_the_same_bytes_under_another_kind_of_name_are_other_examples(context, tmp_path):
    for name in ("a.csv", "a.tsv"):
        (tmp_path / name).write_text("instruction\toutput\n" + "".join(f"say {i}\tanswer {i}\n" for i in range(9)))
        encoded_of(context(path=tmp_path / name))
    assert len(folders(tmp_path, "examples")) == 2


def test_files_of_a_folder_that_are_not_read_are_said(context, tmp_path):
    (tmp_path / "all").mkdir()
    write_rows(tmp_path / "all" / "rows.jsonl", 20)
    (tmp_path / "all" / "more.jsonl.zst").write_bytes(b"zst")
    prepared = context(path=tmp_path / "all")
    encoded_of(prepared)
    said = dataset.describe_reading(prepared.config.data, prepared.data.reading)
    assert "1 file of kinds that are not read: more.jsonl.zst" in said


def test_replacement_rows_that_answer_a_prompt_again_are_reported(context, tmp_path, compose):
    answers = [{"instruction": "Say 1.", "input": "x", "output": f"Better {k}."} for k in range(3)]
    (tmp_path / "better.json").write_text(json.dumps(answers))
    config = compose(
        "data=alpaca_quality",
        f"data.path={tmp_path / 'rows.jsonl'}",
        f"data.replacement.path={tmp_path / 'better.json'}",
        "data.replacement.fraction=1",
        "trainer.progress_bar=false",
        f"root={tmp_path / 'runs'}",
    )
    said = dataset.describe_reading(config.data, RunContext(config).data.reading)
    assert "1 rows with a replaced response" in said
    assert "2 rows of data.replacement answer a prompt again: the first counts" in said


def test_a_mixture_says_what_it_is_made_of(compose, tmp_path):
    copies = tmp_path / "copies"
    copies.mkdir()
    write_rows(copies / "wikidoc.jsonl", 20)
    write_rows(copies / "cord19.jsonl", 20, start=100)
    write_rows(copies / "cord_19.jsonl", 20, start=200)
    write_rows(copies / "medqa.jsonl", 20, start=300)
    left_out = "flashcards,wikidoc_patient_information,mediqa,medqa,mmmlu,pubmed_causal,health_advice,chatdoctor"
    config = compose(
        "data=medalpaca",
        f"data.path={copies}",
        f"data.mixture.leave_out=[{left_out}]",
        "data.mixture.sources.cord19.cap=5",
        "data.template=chatml",
        "data.max_seq_len=128",
        "model.init.vocab_size=400",
        "trainer.progress_bar=false",
        f"root={tmp_path / 'runs'}",
    )
    context = RunContext(config)
    encoded = encoded_of(context)
    assert len(encoded.train) + len(encoded.val) == 25
    said = dataset.describe_reading(config.data, context.data.reading)
    assert "cord19                               5    821,007  first 5" in said
    assert "mmmlu                         left out      3,787" in said
    assert "holds questions of MMLU" in said
    assert "together                            25; the paper names 263,000" in said
    assert "not read, of none of the sources: cord_19.jsonl" in said
    assert {context.data.examples[k].source for k in range(25)} == {"wikidoc", "cord19"}


def test_a_copy_of_a_mixture_that_lacks_a_source_is_told_before_anything_is_read(compose, tmp_path):
    from sftmix.stages.inputs import check_inputs

    with pytest.raises(InputError, match=r"no copy of source flashcards in it .*leave_out"):
        check_inputs(compose("data=medalpaca", f"data.path={tmp_path}", f"root={tmp_path}"))
    (tmp_path / "one.json").write_text("[]")
    with pytest.raises(InputError, match="data medalpaca has several sources, expected a folder of them"):
        check_inputs(compose("data=medalpaca", f"data.path={tmp_path / 'one.json'}", f"root={tmp_path}"))


def test_a_revision_that_is_left_open_is_asked_for_once(compose, tmp_path, monkeypatch, capsys):
    from sftmix.stages import inputs

    asked = []

    def newest(kind, hub_id, _):
        asked.append((kind, hub_id))
        return "0" * 40

    monkeypatch.setattr(inputs, "newest_commit", newest)
    for _ in range(2):
        config = compose("data=alpaca_gpt4", "data.revision=null", f"root={tmp_path}")
        inputs.pin_revisions(config)
        assert config.data.revision == "0" * 40
    assert asked == [("dataset", "vicgalle/alpaca-gpt4")]
    assert "its newest commit is 0000000000" in capsys.readouterr().out
    config = compose("data=alpaca_gpt4", "data.revision=null", f"root={tmp_path}", "data.path=/copy.json")
    inputs.pin_revisions(config)
    assert config.data.revision is None


def test_the_examples_are_mapped_and_not_read(context, tmp_path, monkeypatch):
    """Arrow's own count of what it allocated: a view of the tokens adds next to nothing, a copy all of them."""
    import pyarrow

    path = write_rows(tmp_path / "many.jsonl", 2000)
    encoded = encoded_of(context(path=path))
    num_bytes = 4 * int(encoded.train.lengths.sum() + encoded.val.lengths.sum())
    assert num_bytes > 300_000

    def allocated():
        before = pyarrow.total_allocated_bytes()
        encoded = encoded_of(context(path=path))
        _ = [encoded.train[k] for k in range(len(encoded.train))]
        return pyarrow.total_allocated_bytes() - before

    assert allocated() < 20_000
    monkeypatch.setattr(pyarrow, "memory_map", pyarrow.OSFile)
    assert allocated() > num_bytes, "the bound above can fail"
    assert encoded.train.indices.dtype == np.int64


def test_the_passport_holds_the_census(small_run):
    _, plan = small_run
    census = read_json(plan.target.folder / "run.json")["census"]
    assert census["rows"] == {"total": 120, "kept": 120, "shortened": 0, "dropped": 0}


def test_dialogues_go_through_all_stages_and_their_turns_share_a_forward(compose, tmp_path, capsys):
    """The confidence stage says so, and the nats are those of a pass turn by turn."""
    from sftmix.artifacts.tables import read_table
    from sftmix.stages import confidence
    from sftmix.stages.pipeline import run_pipeline

    turns = [{"role": r, "content": f"{r} says {k}"} for k in range(3) for r in ("user", "assistant")]
    rows = [{"messages": [{"role": "system", "content": f"talk {i}"}, *turns]} for i in range(24)]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def nats(root):
        plan = run_pipeline(
            compose(
                "data=own",
                f"data.path={tmp_path / 'talk.jsonl'}",
                "data.max_seq_len=128",
                "data.epochs=1",
                "data.num_checkpoints=2",
                "model.init.hidden_size=32",
                "model.init.vocab_size=400",
                "trainer=cpu",
                "trainer.progress_bar=false",
                f"root={root}",
            )
        )
        table = read_table(plan.confidence.folder / "confidence.parquet")
        keys = zip(table["example_id"], table["checkpoint"], strict=True)
        return dict(zip(keys, table["nll"], strict=True)), read_json(plan.confidence.folder / "run.json")["scored"]

    together, scored = nats(tmp_path / "together")
    assert scored == [{"examples": 72, "sequences": 24}] * 2
    assert capsys.readouterr().out.count("72 examples in 24 sequences: turns of a dialogue share one") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confidence, "group_shared_prefixes", lambda encoded: [[i] for i in range(len(encoded))])
        apart, scored = nats(tmp_path / "apart")
    assert scored == [{"examples": 72, "sequences": 72}] * 2
    assert together == pytest.approx(apart, rel=1e-5)


def test_the_files_of_a_mixtures_folder_keep_their_rows_apart(compose, tmp_path):
    folder = tmp_path / "copies" / "wikidoc"
    folder.mkdir(parents=True)
    for number in range(6):
        write_rows(folder / f"{number}.jsonl", 1, start=number)
    others = "flashcards,wikidoc_patient_information,mediqa,medqa,mmmlu,pubmed_causal,health_advice,cord19,chatdoctor"
    overrides = [
        "data=medalpaca",
        f"data.path={tmp_path / 'copies'}",
        f"data.mixture.leave_out=[{others}]",
        "data.template=chatml",
        "data.max_seq_len=128",
        "data.val_fraction=0",
        "model.init.vocab_size=400",
        "trainer.progress_bar=false",
        f"root={tmp_path / 'runs'}",
    ]
    context = RunContext(compose(*overrides))
    found, _ = counts(encoded_of(context).census)
    assert (found["total"], found["kept"]) == (6, 6)
    assert "wikidoc                              6     10,000" in dataset.describe_reading(
        context.config.data, context.data.reading
    )
    (tmp_path / "ids.json").write_text("[0]")
    with pytest.raises(InputError, match="names rows, but the data set has 6 sources"):
        encoded_of(RunContext(compose(*overrides, "data/select=ids", f"data.select.path={tmp_path / 'ids.json'}")))


def test_a_renamed_column_that_no_row_has_is_refused(context, tmp_path):
    with pytest.raises(
        InputError, match=r"data\.columns\.system=nope: no row has a column nope; the fields are input, instr"
    ):
        encoded_of(context("data.columns.system=nope"))
    assert not folders(tmp_path, "examples")


def test_a_group_that_no_row_is_of_is_refused(context, tmp_path):
    with pytest.raises(InputError, match="no row has a group in column group"):
        encoded_of(context("data.groups=[a]"))
    assert not folders(tmp_path, "examples")


def test_what_is_read_is_said_of_all_rows(context, tmp_path):
    rows = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "topic": "A"}, None])))
    prepared = context()
    encoded_of(prepared)
    said = dataset.describe_reading(prepared.config.data, prepared.data.reading)
    assert "9 of 10 rows: instruction, input (where there is one) and output" in said
    assert "columns that are not read: topic" in said


def test_rows_that_the_template_shows_alike_count_once(context, tmp_path):
    """A template that has no inputs, such as chatml, shows both rows alike; alpaca does not."""
    twins = [{"instruction": "A", "input": "B", "output": "C"}, {"instruction": "A\n\nB", "output": "C"}]
    (tmp_path / "twins.json").write_text(
        json.dumps([*twins, *({"instruction": f"{i}", "output": "C"} for i in range(9))])
    )
    for template, number in (("chatml", 10), ("alpaca", 11)):
        room = ("data.max_seq_len=512", "model.init.max_position_embeddings=512")
        encoded = encoded_of(context(f"data.template={template}", *room, path=tmp_path / "twins.json"))
        assert len(encoded.train) + len(encoded.val) == number
        found, dropped = counts(encoded.census)
        assert dropped == ({SAME_TOKENS: 1} if number == 10 else {})
        assert found == {"total": 11, "kept": number, "shortened": 0, "dropped": 11 - number}
        if number == 10:
            assert encoded.census.dropped[SAME_TOKENS].first == ["twins.json row 2"]


def test_what_a_template_raises_is_in_the_report_and_in_the_error(context, tmp_path):
    template = tmp_path / "no_system.jinja"
    template.write_text(
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    rows = [{"system": "S" * (i > 1), "prompt": f"Say {i}.", "completion": "B"} for i in range(9)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    overrides = (f"data.template={template}", "data.val_fraction=0")
    encoded = encoded_of(context(*overrides, path=tmp_path / "rows.json"))
    assert len(encoded.train) == 2
    assert encoded.census.dropped[REFUSED].first[0] == "rows.json row 3: System role not supported"
    (tmp_path / "rows.json").write_text(json.dumps(rows[2:]))
    with pytest.raises(
        InputError, match=r"7 dropped: template refuses .* \(rows\.json row 1: System role not supported\)"
    ):
        encoded_of(context(*overrides, path=tmp_path / "rows.json"))


def test_a_row_that_is_too_large_is_dropped_and_counted(context, tmp_path):
    file = write_rows(tmp_path / "large.jsonl", 20)
    with file.open("a") as out:
        out.write("\n" + json.dumps({"instruction": "A", "output": "x" * 200_000}))
    encoded = encoded_of(context("data.max_row_mib=0.1", path=file))
    assert len(encoded.train) + len(encoded.val) == 20
    assert encoded.census.dropped[TOO_LARGE].first == ["large.jsonl row 21: more than 0.1 MiB"]
    assert encoded.census.rows["dropped"] == 1
    (tmp_path / "large.jsonl").write_text(json.dumps({"data": ["x" * 200_000]}))
    with pytest.raises(
        InputError, match=r"line 1: more than 0\.1 MiB; set data\.max_row_mib=N to read larger rows; if"
    ):
        encoded_of(context("data.max_row_mib=0.1", path=file))


def test_a_missing_file_is_told_under_its_own_key(compose, tmp_path):
    from sftmix.stages.inputs import check_inputs

    for overrides, says in (
        (["data/select=ids", "data.select.path=/no/list.json"], r"data\.select\.path=/no/list\.json: no such file"),
        (
            ["data=alpaca_quality", "data.replacement.path=/no/b.json"],
            r"data\.replacement\.path=/no/b\.json: no such file",
        ),
    ):
        with pytest.raises(InputError, match=says):
            check_inputs(compose(*overrides, f"root={tmp_path}"))
