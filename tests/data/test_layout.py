"""Layouts, groups of similar length and of shared prefixes, and the division of a step into micro-batches."""

import itertools
import json

import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import encode_examples
from sftmix.data.census import Census
from sftmix.data.collate import BatchSettings
from sftmix.data.encoding import TEMPLATE_DROPS, Encoder
from sftmix.data.example import Example
from sftmix.data.layout import (
    LAYOUTS,
    cut_by_tokens,
    group_by_length,
    group_shared_prefixes,
    lay_out,
    split_into_microbatches,
)
from sftmix.data.pairing import Step
from sftmix.data.reader import examples_from_rows
from sftmix.data.rows import Row
from sftmix.data.shards import TOKENS, EncodedExamples, token_columns
from sftmix.data.sources import read_file
from sftmix.data.templates import set_template, shipped, template_source
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer
from sftmix.training.scoring import ScoringSettings, score

PAD = 0
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=9)


@given(lengths, st.sampled_from(LAYOUTS))
def test_each_sequence_begins_at_its_start_and_packed_positions_restart(lengths, layout):
    sequences = [[100 * i + k + 1 for k in range(length)] for i, length in enumerate(lengths)]
    inputs, starts = lay_out(sequences, layout, PAD)
    flat = torch.cat([i.input_ids.flatten() for i in inputs]).tolist()
    for ids, start in zip(sequences, starts, strict=True):
        assert flat[start : start + len(ids)] == ids
    assert sum(token != PAD for token in flat) == sum(lengths)
    if layout == "packed":
        (packed,) = inputs
        assert len(flat) == sum(lengths)
        assert packed.position_ids.tolist() == [[k for length in lengths for k in range(length)]]
    else:
        assert all(i.position_ids is None for i in inputs)


@given(lengths, st.sampled_from([0, 10, 100]))
def test_no_other_cut_into_groups_costs_less(lengths, group_cost):
    def cost(groups):
        return sum(len(g) * max(lengths[i] for i in g) + group_cost for g in groups)

    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    every_cut = (
        [order[a:b] for a, b in itertools.pairwise((0, *edges, len(order)))]
        for number in range(len(order))
        for edges in itertools.combinations(range(1, len(order)), number)
    )
    groups = group_by_length(lengths, group_cost)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    assert cost(groups) == min(map(cost, every_cut))


def test_if_a_forward_pass_costs_nothing_there_is_no_padding():
    groups = group_by_length([5, 3, 5, 9], group_cost=0)
    assert all(len({[5, 3, 5, 9][i] for i in group}) == 1 for group in groups)


def test_batches_are_cut_by_their_padded_tokens():
    batches = cut_by_tokens([5, 1, 9, 2, 30], 20)
    assert batches == [[1, 3, 0], [2], [4]]


def test_the_embedded_set_is_packed_without_padding(compose):
    """The share of padding in the body, counted over the steps of an epoch of the embedded data set."""
    from sftmix.data.pairing import SamplerSettings, StepSampler
    from sftmix.stages.context import RunContext
    from sftmix.training.datamodule import StepDataset

    config = compose("data.demo.num_examples=400")
    encoded = RunContext(config).encoded(config.model)
    halves = [i % 2 == 0 for i in range(len(encoded.train))]
    sampler = StepSampler(len(encoded.train), halves, SamplerSettings(global_batch_size=32, seed=0))

    def padding(layout):
        weights = [1.0] * len(encoded.train)
        steps = StepDataset(sampler, encoded.train, weights, BatchSettings(layout, 8192, PAD))
        batches = [steps[0, k] for k in range(sampler.steps_per_epoch)]
        run = sum(i.input_ids.numel() for b in batches for m in b.micro_batches for i in m.inputs)
        positions = sum(len(m.positions) for b in batches for m in b.micro_batches)
        assert positions == sum(e.num_response_tokens for e in encoded.train), "head rows equal response tokens"
        return 1 - sum(b.num_input_tokens for b in batches) / run

    assert padding("packed") < 0.01
    assert padding("grouped") <= padding("padded")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_step_of_alpaca(shared, layout):
    """32 real examples under Alpaca's prompt: padding of the body."""
    from sftmix.data.census import Census
    from sftmix.data.encoding import Encoder
    from sftmix.data.reader import examples_from_rows
    from sftmix.data.sources import read_file
    from sftmix.data.templates import set_template, template_source
    from sftmix.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(shared / "tokenizers" / "mistral_v1"), None, None)
    set_template(tokenizer, template_source("alpaca"))
    rows = read_file(shared / "data" / "alpaca" / "alpaca_data.json")
    examples = examples_from_rows(rows, Census(), 32)
    encoded = encode_examples(Encoder(tokenizer, 512, "drop"), examples, Census())
    inputs, _ = lay_out([e.input_ids for e in encoded], layout, PAD)
    share = 1 - sum(len(e.input_ids) for e in encoded) / sum(i.input_ids.numel() for i in inputs)
    low, high = {"padded": (0.3, 0.8), "grouped": (0, 0.1), "packed": (0, 0)}[layout]
    assert low <= share <= high


def dialogue(number, turns):
    messages = []
    for k in range(turns):
        messages.append({"role": "user", "content": f"Question {k} of {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {k}, {'yes ' * k}and no."})
    return {"messages": messages}


def encode(tokenizer, examples: list[Example], max_seq_len=2048):
    census = Census()
    fitted = Encoder(tokenizer, max_seq_len, "drop").fit(examples, census)
    return EncodedExamples(pyarrow.table(token_columns(fitted, examples, 0), schema=TOKENS)), census.as_dict()


def examples_of(*fields):
    return examples_from_rows([Row(f"row {i}", i, f, "f") for i, f in enumerate(fields, start=1)], Census())


@pytest.mark.parametrize("template", shipped())
def test_every_template_lets_the_turns_of_a_dialogue_share_a_sequence(tiny_tokenizer, template):
    set_template(tiny_tokenizer, template_source(template))
    encoded, census = encode(tiny_tokenizer, examples_of(dialogue(1, 3), dialogue(2, 1), dialogue(3, 2)))
    assert group_shared_prefixes(encoded) == [[0, 1, 2], [3], [4, 5]]
    assert not census["noted"]


def test_a_template_that_drops_the_history_is_noted_and_scored_turn_by_turn(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% set kept = messages[-1:] if add_generation_prompt else messages[-2:] %}"
        "{% for m in kept %}{{ '[' + m.role + ']' + m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    encoded, census = encode(tiny_tokenizer, examples_of(dialogue(1, 3)))
    assert group_shared_prefixes(encoded) == [[0], [1], [2]]
    assert census["noted"] == {TEMPLATE_DROPS: {"count": 2, "places": ["f row 1", "f row 1"]}}


def test_a_turn_whose_oldest_turns_are_gone_ends_the_run(tiny_tokenizer):
    set_template(tiny_tokenizer, template_source("chatml"))
    whole, _ = encode(tiny_tokenizer, examples_of(dialogue(1, 3)))
    encoded, census = encode(tiny_tokenizer, examples_of(dialogue(1, 3)), int(whole.lengths[-1]) - 1)
    assert group_shared_prefixes(encoded) == [[0, 1], [2]]
    assert census["rows"] == {"total": 1, "kept": 0, "shortened": 1, "dropped": 0}


def nats(lm, encoded, runs, folder):
    batches = BatchSettings("grouped", micro_batch_tokens=4096, pad_token_id=0)
    return score(lm, encoded, runs, ScoringSettings(folder, batches, torch.device("cpu")))


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
    runs = group_shared_prefixes(short)
    assert len(runs) < len(short)
    lm = SFTMixLM(load_causal_lm(str(folder), None))
    together = nats(lm, short, runs, tmp_path / "together")
    apart = nats(lm, short, [[i] for i in range(len(short))], tmp_path / "apart")
    assert together == pytest.approx(apart, rel=1e-5)


def test_twenty_messages_are_kept_with_their_history(shared):
    examples = examples_from_rows(read_file(shared / "data/multiturn/lima.jsonl"), Census())
    longest = max(examples, key=lambda e: len(e.messages))
    assert len(longest.messages) == 19
    assert [m.role for m in longest.messages[:3]] == ["user", "assistant", "user"]


steps = st.tuples(st.integers(0, 8), st.integers(0, 5)).filter(any)


def step_of(pairs, unpaired):
    return Step(
        tuple(range(pairs)),
        tuple(range(pairs, 2 * pairs)),
        tuple(k / 10 for k in range(pairs)),
        tuple(range(2 * pairs, 2 * pairs + unpaired)),
    )


@given(
    steps,
    st.lists(st.integers(1, 50), min_size=21, max_size=21),
    st.integers(1, 200),
    st.booleans(),
    st.integers(1, 5),
)
def test_each_pair_is_in_one_micro_batch_and_the_budget_holds(counts, lengths, budget, padded, world_size):
    step = step_of(*counts)
    ranks = split_into_microbatches(
        step, dict(enumerate(lengths)), micro_batch_tokens=budget, padded=padded, world_size=world_size
    )
    assert len(ranks) == world_size
    assert len({len(parts) for parts in ranks}) == 1, "the same number of micro-batches on every rank"
    parts = list(itertools.chain(*ranks))
    pairs = [p for part in parts for p in zip(part.confident, part.unconfident, part.lam, strict=True)]
    assert sorted(pairs) == sorted(zip(step.confident, step.unconfident, step.lam, strict=True))
    assert sorted(i for part in parts for i in part.unpaired) == sorted(step.unpaired)
    for part in parts:
        tokens = [lengths[i] for i in part.examples]
        size = len(tokens) * max(tokens, default=0) if padded else sum(tokens)
        units = len(part.lam) + len(part.unpaired)
        assert units <= 1 or size <= budget
    if world_size == 1:
        assert all(part.examples for part in parts), "a single rank has no empty micro-batch"


@given(st.lists(st.integers(1, 50), min_size=32, max_size=32), st.integers(2, 8))
def test_token_counts_of_ranks_balance(lengths, world_size):
    """Assigned largest first to the least loaded rank, two ranks differ by at most the largest pair."""
    ranks = split_into_microbatches(
        step_of(16, 0), dict(enumerate(lengths)), micro_batch_tokens=10**6, padded=False, world_size=world_size
    )
    loads = [sum(lengths[i] for part in parts for i in part.examples) for parts in ranks]
    assert max(loads) - min(loads) <= max(lengths[k] + lengths[16 + k] for k in range(16))


def test_micro_batches_are_as_few_as_the_budget_allows_and_about_equal():
    lengths = dict.fromkeys(range(16), 10)
    (parts,) = split_into_microbatches(step_of(8, 0), lengths, micro_batch_tokens=100, padded=False)
    assert [len(part.examples) for part in parts] == [8, 8]


def test_the_same_step_is_divided_the_same_way_again():
    lengths = {i: (7 * i) % 13 + 1 for i in range(16)}
    first, second = (
        split_into_microbatches(step_of(8, 0), lengths, micro_batch_tokens=40, padded=True, world_size=3)
        for _ in range(2)
    )
    assert first == second
