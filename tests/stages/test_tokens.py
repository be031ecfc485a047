"""Cached token ids: those that are computed, the census too, and never those of anything else."""

import pytest

from sftmix.data.census import Census
from sftmix.data.demo import demo_rows
from sftmix.data.encoding import Encoder
from sftmix.data.examples import examples_from_rows
from sftmix.data.sources import Row
from sftmix.data.templates import set_template, template_source
from sftmix.errors import InputError
from sftmix.stages import tokens
from sftmix.stages.tokens import encode_once


@pytest.fixture(autouse=True)
def _every_size_is_kept(monkeypatch):
    monkeypatch.setattr(tokens, "FEWEST_EXAMPLES", 1)


def examples(number=60):
    rows = (Row("", i, fields) for i, fields in enumerate(demo_rows(number, 0)))
    return examples_from_rows(rows, "demo", None, Census())


def encoder(tokenizer, template="chatml", max_seq_len=24, overlong="drop"):
    set_template(tokenizer, template_source(template))
    return Encoder(tokenizer, max_seq_len, overlong)


def encode(root, encoder, some=None):
    census = Census()
    census.rows = 3
    encoded = encode_once(encoder, some or examples(), census, root=root, title="demo", show_progress=False)
    return encoded, census.as_dict()


def test_the_second_call_reads_what_the_first_one_wrote(tmp_path, tiny_tokenizer, monkeypatch):
    first, census = encode(tmp_path, encoder(tiny_tokenizer))
    assert census["dropped"], "some are too long, so that the census has something to say"
    again = encoder(tiny_tokenizer)
    monkeypatch.setattr(again, "encode", None)
    assert encode(tmp_path, again) == (first, census)


def test_it_is_what_the_encoder_gives(tmp_path, tiny_tokenizer):
    plain = encoder(tiny_tokenizer).encode(examples(), Census(), show_progress=False)
    encode(tmp_path, encoder(tiny_tokenizer))
    assert encode(tmp_path, encoder(tiny_tokenizer))[0] == plain


@pytest.mark.parametrize("changed", [{"template": "alpaca"}, {"max_seq_len": 30}, {"overlong": "truncate"}])
def test_what_changes_the_ids_changes_the_file(tmp_path, tiny_tokenizer, changed):
    encode(tmp_path, encoder(tiny_tokenizer))
    plain = encoder(tiny_tokenizer, **changed).encode(examples(), Census(), show_progress=False)
    assert encode(tmp_path, encoder(tiny_tokenizer, **changed))[0] == plain
    assert len(list(tmp_path.glob("tokens-demo-*"))) == 2


def test_other_examples_get_a_file_of_their_own(tmp_path, tiny_tokenizer):
    encode(tmp_path, encoder(tiny_tokenizer))
    encode(tmp_path, encoder(tiny_tokenizer), examples(50))
    assert len(list(tmp_path.glob("tokens-demo-*"))) == 2


def test_an_example_that_is_refused_leaves_nothing_that_looks_complete(tmp_path, tiny_tokenizer):
    for _ in range(2):
        with pytest.raises(InputError, match="max_seq_len"):
            encode(tmp_path, encoder(tiny_tokenizer, overlong="error"))
    assert not [f for f in tmp_path.glob("tokens-*") if f.suffix != ".partial"]


def test_small_sets_leave_no_file(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "FEWEST_EXAMPLES", 61)
    encode(tmp_path, encoder(tiny_tokenizer))
    assert list(tmp_path.iterdir()) == []
