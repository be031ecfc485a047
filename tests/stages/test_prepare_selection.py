"""Selections of the examples to train on: they are counted, fingerprinted and independent of the tokenizer."""

import json

import pytest

from prepared import counts, encoded_of
from sftmix.data.census import HELD_OUT, NOT_FOUND
from sftmix.errors import InputError
from sftmix.stages.models import load_model_tokenizer


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
