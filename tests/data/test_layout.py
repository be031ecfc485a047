"""Layouts: nothing is lost, little is padded, and the cheapest cut into groups is found."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sftmix.data.layout import LAYOUTS, cut_by_tokens, group_by_length, lay_out

PAD = 0
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=9)


@given(lengths, st.sampled_from(LAYOUTS))
def test_each_sequence_stands_where_it_is_said_to(lengths, layout):
    sequences = [[100 * i + k + 1 for k in range(length)] for i, length in enumerate(lengths)]
    inputs, starts = lay_out(sequences, layout, PAD)
    flat = torch.cat([i.input_ids.flatten() for i in inputs]).tolist()
    for ids, start in zip(sequences, starts, strict=True):
        assert flat[start : start + len(ids)] == ids
    assert sum(token != PAD for token in flat) == sum(lengths)
    if layout == "packed":
        assert len(flat) == sum(lengths)


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


def test_where_a_forward_costs_nothing_there_is_no_padding():
    groups = group_by_length([5, 3, 5, 9], group_cost=0)
    assert all(len({[5, 3, 5, 9][i] for i in group}) == 1 for group in groups)


def test_batches_are_cut_by_their_padded_tokens():
    batches = cut_by_tokens([5, 1, 9, 2, 30], 20)
    assert batches == [[1, 3, 0], [2], [4]]


def test_the_embedded_set_is_packed_without_padding(compose):
    """The share of padding in the body, counted over the steps of an epoch of the embedded data set."""
    from sftmix.data.collate import BatchSettings
    from sftmix.data.pairing import SamplerSettings, StepSampler
    from sftmix.stages.context import RunContext
    from sftmix.training.datamodule import RunSteps

    config = compose("data.demo.num_examples=400")
    encoded = RunContext(config).encoded(config.model)
    halves = [i % 2 == 0 for i in range(len(encoded.train))]
    sampler = StepSampler(len(encoded.train), halves, SamplerSettings(global_batch_size=32, seed=0))

    def padding(layout):
        weights = [1.0] * len(encoded.train)
        steps = RunSteps(sampler, encoded.train, weights, BatchSettings(layout, 8192, PAD), epochs=1)
        batches = [steps[k] for k in range(len(steps))]
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
    encoded = Encoder(tokenizer, 512, "drop").encode(examples, Census())
    inputs, _ = lay_out([e.input_ids for e in encoded], layout, PAD)
    share = 1 - sum(len(e.input_ids) for e in encoded) / sum(i.input_ids.numel() for i in inputs)
    low, high = {"padded": (0.3, 0.8), "grouped": (0, 0.1), "packed": (0, 0)}[layout]
    assert low <= share <= high
