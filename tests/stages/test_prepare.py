"""Data prepared once: what the first run writes the next one maps, and never that of anything else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from builders import encode_examples
from sftmix.artifacts.manifest import read_json
from sftmix.data.census import HELD_OUT, NOT_FOUND, REFUSED, SAME_TOKENS, TOO_LARGE
from sftmix.errors import InputError
from sftmix.stages import prepare as dataset
from sftmix.stages.context import RunContext
from sftmix.stages.models import load_model_tokenizer


def write_rows(path, number=60, start=0):
    rows = [
        {"instruction": f"Say {i}.", "input": "x" * (i % 7), "output": f"It is {i}. " + "word " * (i % 9)}
        for i in range(start, start + number)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def context(compose, tmp_path):
    """A function that prepares the data of a configuration under the embedded tokenizer."""
    write_rows(tmp_path / "rows.jsonl")

    def prepared(*overrides, path=tmp_path / "rows.jsonl"):
        return RunContext(
            compose(
                "data=own",
                f"data.path={path}",
                "data.max_seq_len=128",
                "data.val_fraction=0.2",
                "model.init.vocab_size=400",
                "trainer.progress_bar=false",
                f"root={tmp_path / 'runs'}",
                *overrides,
            )
        )

    return prepared


def encoded_of(context):
    return context.encoded(context.config.model)


def tokens(encoded):
    return [list(part) for part in (encoded.train, encoded.val)]


def folders(tmp_path, kind):
    return [f for f in (tmp_path / "runs" / "data").glob(f"{kind}-*") if f.suffix != ".partial"]


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


def test_several_processes_give_the_same(context, tmp_path, monkeypatch):
    alone = encoded_of(context(f"root={tmp_path / 'alone'}"))
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    several = encoded_of(context("data.num_workers=2"))
    assert len(list(folders(tmp_path, "tokens")[0].glob("*.arrow"))) > 2
    assert tokens(several) == tokens(alone)
    assert several.census.as_dict() == alone.census.as_dict()


def test_a_shard_is_cut_by_its_text_too(context, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_CHARACTERS", 200)
    assert sum(map(len, tokens(encoded_of(context())))) == 60
    assert len(list(folders(tmp_path, "examples")[0].glob("*.arrow"))) > 5


def test_an_error_in_a_worker_is_the_one_line_it_is_here(context, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"rows\.jsonl row 1: \d+ prompt and \d+ response tokens, expected"):
            encoded_of(context("data.overlong=error", "data.max_seq_len=20", f"data.num_workers={workers}"))
    assert not folders(tmp_path, "tokens"), "nothing looks complete"


def _killed(*_):
    os._exit(9)


def test_a_worker_that_is_killed_is_one_line(context, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    monkeypatch.setattr(dataset, "_encode_in_worker", _killed)
    with pytest.raises(InputError, match=r"data\.num_workers=2: a process that tokenizes was killed"):
        encoded_of(context("data.num_workers=2"))


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


def test_an_interrupted_call_keeps_the_shards_it_has_finished(context, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    whole, calls = dataset.Encoder.fit, []

    def killed(self, examples, census):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, examples, census)

    monkeypatch.setattr(dataset.Encoder, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        encoded_of(context())
    encoded = encoded_of(context())
    assert calls == [16, 16, 16, 16, 12]
    assert sum(map(len, tokens(encoded))) == 60


def counts(census):
    found = census.as_dict()
    dropped = {reason.split(" (")[0]: entry["count"] for reason, entry in found["dropped"].items()}
    assert found["total"] == found["kept"] + census.num_shortened + sum(dropped.values())
    rows = found["rows"]
    assert rows["total"] == rows["kept"] + rows["shortened"] + rows["dropped"]
    return rows, dropped


@pytest.mark.parametrize("by", ["longest", "random", "scores", "ids"])
def test_a_selection_is_of_the_examples_to_train_on_and_is_counted(context, tmp_path, by):
    whole = encoded_of(context())
    train = list(whole.train)
    if by == "scores":
        (tmp_path / "scores.json").write_text(json.dumps([i % 10 for i in range(60)]))
    listed = [e.example_id for e in train[:9]]
    (tmp_path / "ids.json").write_text(json.dumps([*listed, "f" * 16]))
    options = {
        "longest": ["data.select.k=12"],
        "random": ["data.select.k=12"],
        "scores": [f"data.select.path={tmp_path / 'scores.json'}", "data.select.at_least=8"],
        "ids": [f"data.select.path={tmp_path / 'ids.json'}"],
    }[by]
    prepared = context(f"data/select={by}", *options)
    chosen = encoded_of(prepared)
    rows = [prepared.data.examples[int(line)].row for line in chosen.train.lines]
    if by == "longest":
        lengths = sorted((e.num_response_tokens for e in train), reverse=True)
        assert sorted((e.num_response_tokens for e in chosen.train), reverse=True) == lengths[:12]
    if by == "scores":
        assert all((row - 1) % 10 >= 8 for row in rows)
    if by == "ids":
        assert set(chosen.train.ids) == set(listed)
    assert list(chosen.val) == list(whole.val), "held-out losses stay comparable"
    not_there = {NOT_FOUND: {"count": 1, "places": ["f" * 16]}} if by == "ids" else {}
    assert chosen.census.as_dict()["noted"] == not_there
    found, dropped = counts(chosen.census)
    assert dropped == {"not selected": len(train) - len(chosen.train)}
    assert found["total"] == 60
    assert found["kept"] == len(chosen.train) + len(chosen.val)


def test_a_selection_is_the_same_under_every_tokenizer_of_a_run(context):
    prepared = context("data/select=longest", "data.select.k=12")
    target = encoded_of(prepared)
    other = prepared.data.encode(load_model_tokenizer(context("model.init.vocab_size=300").config.model))
    assert other.train.ids == target.train.ids
    assert other.train.lengths.tolist() != target.train.lengths.tolist()


def test_a_selection_has_a_confidence_of_its_own(compose, tmp_path):
    from sftmix.stages.device_choice import choose_device
    from sftmix.stages.plan import make_plan

    def plan(*overrides):
        config = compose(f"root={tmp_path}", "trainer=cpu", *overrides)
        return make_plan(config, choose_device(config.trainer))

    whole = plan()
    longest = plan("data/select=longest", "data.select.k=100")
    assert longest.confidence.fingerprint != whole.confidence.fingerprint
    other = plan("data/select=longest", "data.select.k=100", "model.init.vocab_size=700")
    assert other.target.fields["data"]["select"] != longest.target.fields["data"]["select"], "the tokenizer counts"


def test_a_dialogue_of_which_turns_are_selected_is_a_shortened_row(context, tmp_path):
    turns = [{"role": r, "content": f"{r} {k}"} for k in range(3) for r in ("user", "assistant")]
    (tmp_path / "talk.jsonl").write_text(
        "\n".join(json.dumps({"messages": [{"role": "system", "content": str(i)}, *turns]}) for i in range(30))
    )
    talk = tmp_path / "talk.jsonl"
    whole = context(path=talk)
    first = [whole.data.examples[int(line)] for line in encoded_of(whole).train.lines if line % 3 == 0]
    (tmp_path / "ids.json").write_text(json.dumps([e.id for e in first]))
    chosen = encoded_of(context("data/select=ids", f"data.select.path={tmp_path / 'ids.json'}", path=talk))
    found, _ = counts(chosen.census)
    assert found["shortened"] == len(first)
    assert found["kept"] == 30 - len(first)


def test_a_mixture_says_what_it_is_made_of(compose, tmp_path):
    copies = tmp_path / "copies"
    copies.mkdir()
    write_rows(copies / "wikidoc.jsonl", 20)
    write_rows(copies / "cord19.jsonl", 20, start=100)
    write_rows(copies / "cord_19.jsonl", 20, start=200)
    write_rows(copies / "medqa.jsonl", 20, start=300)
    left_out = "flashcards,wikidoc_patient_information,mediqa,medqa,mmmlu,pubmed_causal,chatdoctor"
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


def test_a_list_of_other_data_is_told_before_training(context, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(["f" * 16]))
    with pytest.raises(InputError, match="none of its 1 entries names an example of this data set"):
        encoded_of(context("data/select=ids", f"data.select.path={tmp_path / 'ids.json'}"))
    with pytest.raises(
        InputError, match=r"data\.select\.k=1000: \d+ examples to select from, set a lower one by data\.select\.k="
    ):
        encoded_of(context("data/select=longest"))


def test_listed_examples_that_are_held_out_are_noted(context, tmp_path):
    whole = encoded_of(context())
    select = ["data/select=ids", f"data.select.path={tmp_path / 'ids.json'}"]
    (tmp_path / "ids.json").write_text(json.dumps([*whole.train.ids[:5], *whole.val.ids[:2]]))
    chosen = encoded_of(context(*select))
    assert chosen.train.ids == whole.train.ids[:5]
    assert chosen.census.noted[HELD_OUT].count == 2
    (tmp_path / "ids.json").write_text(json.dumps(whole.val.ids[:2]))
    with pytest.raises(InputError, match=r"ids\.json: all 2 examples that it names are held out"):
        encoded_of(context(*select))


def test_a_revision_that_is_left_open_is_asked_for_once(compose, tmp_path, monkeypatch, capsys):
    from sftmix.stages import inputs

    asked = []

    def newest(kind, hub_id, _):
        asked.append((kind, hub_id))
        return "0" * 40

    monkeypatch.setattr(inputs, "newest_commit", newest)
    for _ in range(2):
        config = compose("data=alpaca_gpt4", f"root={tmp_path}")
        inputs.pin_revisions(config)
        assert config.data.revision == "0" * 40
    assert asked == [("dataset", "vicgalle/alpaca-gpt4")]
    assert "its newest commit is 0000000000" in capsys.readouterr().out
    config = compose("data=alpaca_gpt4", f"root={tmp_path}", "data.path=/copy.json")
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
    others = "flashcards,wikidoc_patient_information,mediqa,medqa,mmmlu,pubmed_causal,cord19,chatdoctor"
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


def test_the_fingerprint_of_a_selection_holds_what_decides_it_and_nothing_else(compose, tmp_path, shared):
    """The tokenizer and its own template, and not the precision that the target is saved in."""
    import shutil

    from sftmix.stages.device_choice import choose_device
    from sftmix.stages.plan import make_plan

    shutil.copytree(shared / "models" / "stories260K", tmp_path / "model")

    def confidence(*overrides):
        config = compose(
            "model=local",
            f"model.path={tmp_path / 'model'}",
            "model.lr=1e-3",
            "model@reference.model=tiny",
            "data/select=random",
            "data.select.k=100",
            "trainer=cpu",
            f"root={tmp_path / 'runs'}",
            *overrides,
        )
        return make_plan(config, choose_device(config.trainer)).confidence.fingerprint

    before = confidence()
    assert confidence("model.dtype=bfloat16") == before
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert confidence() != before


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


@pytest.mark.parametrize(
    ("number", "limit", "says"),
    [
        (59, "null", "59 scores for 60 rows that are read, expected one score a row"),
        (61, "null", "61 scores for 60 rows that are read, expected one score a row"),
        (60, "50", "60 scores for 50 rows that are read"),
        (1, "null", "1 score for 60 rows"),
    ],
)
def test_a_list_of_scores_has_exactly_one_a_row(context, tmp_path, number, limit, says):
    (tmp_path / "scores.json").write_text(json.dumps([1.0] * number))
    select = ["data/select=scores", f"data.select.path={tmp_path / 'scores.json'}", "data.select.k=3"]
    with pytest.raises(InputError, match=says):
        encoded_of(context(*select, f"data.limit={limit}"))


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


SLOW = """
import os, time
from pathlib import Path

class Slow:
    def __init__(self, folder):
        self.folder = folder
    def fit(self, examples, census):
        (self.folder / f"aside-{os.getpid()}").touch()
        (self.folder / f"aside-{os.getpid()}").rename(self.folder / f"worker-{os.getpid()}")
        time.sleep(600)
"""
PARENT_OF_WORKERS = """
import sys
from pathlib import Path
from sftmix.cli.program import errors_in_one_line
from sftmix.data.demo import demo_rows
from sftmix.data.shards import EXAMPLES, example_columns, write_shard
from sftmix.stages.prepare import _encode_shards
from sftmix.distributed.stopping import StopRequest
from slow import Slow
folder = Path(sys.argv[1])
tasks = []
for name in "ab":
    write_shard(folder / f"{name}.arrow", EXAMPLES, example_columns([]))
    tasks.append((folder / f"{name}.arrow", folder / f"{name}-tokens.arrow", 0))
with StopRequest(["SIGTERM", "SIGUSR2"]).listening(), errors_in_one_line():
    list(_encode_shards(Slow(folder), tasks, 2))
"""


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("is_early", [False, True], ids=["at work", "starting"])
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGKILL, -9, ""),
        (signal.SIGTERM, 75, "stopped by SIGTERM: run the same command again, it goes on\n"),
        (signal.SIGUSR2, 75, "stopped by SIGUSR2: run the same command again, it goes on\n"),
        (signal.SIGINT, 130, "interrupted: the same command goes on with what is not done\n"),
    ],
)
def test_processes_that_tokenize_end_with_their_parent(tmp_path, number, code, says, is_early):
    """A signal other than SIGKILL reaches the workers too, as by a terminal or SLURM."""
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PARENT_OF_WORKERS, str(tmp_path)]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 120
    while len(children.read_text().split()) < 3 if is_early else len(list(tmp_path.glob("worker-*"))) < 2:
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pids = children.read_text().split()
    assert len(pids) == 3, "two workers, and the process by which multiprocessing cleans up"
    if number == signal.SIGKILL:
        parent.kill()
    else:
        os.killpg(parent.pid, number)
    _, said = parent.communicate(timeout=60)
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert parent.returncode == code
    if number != signal.SIGKILL:
        assert said == says
