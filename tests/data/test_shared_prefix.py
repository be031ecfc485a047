"""Turns of a dialogue in one sequence: the same scores as turn by turn, wherever the ids allow it."""

import json

import pytest
import torch

from sftmix.data.census import Census
from sftmix.data.encoding import TEMPLATE_DROPS, Encoder
from sftmix.data.example import Example
from sftmix.data.reader import examples_from_rows
from sftmix.data.rows import Row
from sftmix.data.shards import EncodedExamples, Examples, token_columns
from sftmix.data.shared_prefix import turns_in_one
from sftmix.data.sources import read_file
from sftmix.data.templates import set_template, shipped, template_source
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer
from sftmix.training.scoring import score


def dialogue(number, turns):
    messages = []
    for k in range(turns):
        messages.append({"role": "user", "content": f"Question {k} of {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {k}, {'yes ' * k}and no."})
    return {"messages": messages}


def encode(tokenizer, examples: list[Example], max_seq_len=2048):
    census = Census()
    fitted = Encoder(tokenizer, max_seq_len, "drop").fit(examples, census)
    return EncodedExamples.of_columns(token_columns(fitted, examples, 0)), census.as_dict()


def examples_of(*fields):
    return examples_from_rows([Row(f"row {i}", i, f, "f") for i, f in enumerate(fields, start=1)], Census())


@pytest.mark.parametrize("template", shipped())
def test_every_template_lets_the_turns_of_a_dialogue_share_a_sequence(tiny_tokenizer, template):
    set_template(tiny_tokenizer, template_source(template))
    encoded, census = encode(tiny_tokenizer, examples_of(dialogue(1, 3), dialogue(2, 1), dialogue(3, 2)))
    assert turns_in_one(encoded) == [[0, 1, 2], [3], [4, 5]]
    assert not census["noted"]


def test_a_template_that_drops_the_history_is_noted_and_scored_turn_by_turn(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% set kept = messages[-1:] if add_generation_prompt else messages[-2:] %}"
        "{% for m in kept %}{{ '[' + m.role + ']' + m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    encoded, census = encode(tiny_tokenizer, examples_of(dialogue(1, 3)))
    assert turns_in_one(encoded) == [[0], [1], [2]]
    assert census["noted"] == {TEMPLATE_DROPS: {"count": 2, "places": ["f row 1", "f row 1"]}}


def test_a_turn_whose_oldest_turns_are_gone_ends_the_run(tiny_tokenizer):
    set_template(tiny_tokenizer, template_source("chatml"))
    whole, _ = encode(tiny_tokenizer, examples_of(dialogue(1, 3)))
    encoded, census = encode(tiny_tokenizer, examples_of(dialogue(1, 3)), int(whole.lengths[-1]) - 1)
    assert turns_in_one(encoded) == [[0, 1], [2]]
    assert census["rows"] == {"total": 1, "kept": 0, "shortened": 1, "dropped": 0}


def nats(lm, encoded, runs, folder):
    return score(
        lm,
        encoded,
        runs,
        folder=folder,
        title="",
        device=torch.device("cpu"),
        bfloat16=False,
        layout="grouped",
        batch_tokens=4096,
        pad_token_id=0,
        show_progress=False,
    )


def test_real_dialogues_score_the_same_in_one_forward_as_turn_by_turn(shared, tmp_path):
    """LIMA's 30 dialogues of several turns under stories260K, whose context of 512 cuts the longest."""
    folder = shared / "models" / "stories260K"
    tokenizer = load_tokenizer(str(folder), None, None)
    set_template(tokenizer, template_source("chatml"))
    lines = (shared / "data/multiturn/lima.jsonl").read_text().splitlines()
    (tmp_path / "several.jsonl").write_text("\n".join(line for line in lines if len(json.loads(line)["messages"]) > 2))
    examples = examples_from_rows(read_file(tmp_path / "several.jsonl"), Census())
    encoded, _ = encode(tokenizer, examples, max_seq_len=8192)
    short = encoded.select(encoded.lengths <= 512)
    runs = turns_in_one(short)
    assert len(runs) < len(short)
    lm = SFTMixLM(load_causal_lm(str(folder), None))
    together = nats(lm, short, runs, tmp_path / "together")
    apart = nats(lm, short, [[i] for i in range(len(short))], tmp_path / "apart")
    assert together == pytest.approx(apart, rel=1e-5)


def test_twenty_messages_are_kept_with_their_history(shared):
    examples = Examples.of(examples_from_rows(read_file(shared / "data/multiturn/lima.jsonl"), Census()))
    longest = max(examples, key=lambda e: len(e.messages))
    assert len(longest.messages) == 19
    assert [m.role for m in longest.messages[:3]] == ["user", "assistant", "user"]
