"""The tensors of a step: positions, labels, pairs, and counts that do not depend on how the step is divided."""

import pytest
import torch

from sftmix.data.collate import BatchSettings, collate_dialogues, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import LAYOUTS
from sftmix.data.pairing import Step

PAD = 99


def encoded(num_prompt, num_response, first):
    ids = tuple(range(first, first + num_prompt + num_response))
    return EncodedExample(str(first), ids, num_prompt)


EXAMPLES = [encoded(2, 3, 10), encoded(1, 2, 20), encoded(3, 1, 30), encoded(2, 4, 40), encoded(1, 1, 50)]
STEP = Step(confident=(0, 2), unconfident=(1, 3), lam=(0.25, 0.75), unpaired=(4,))


def collate(layout="grouped", tokens=100, weights=(1.0,) * 5, prompt_weight=0.0, **ranks):
    return collate_step(STEP, EXAMPLES, weights, BatchSettings(layout, tokens, PAD, prompt_weight), **ranks)


def flat(micro):
    return torch.cat([i.input_ids.flatten() for i in micro.inputs])


def mixed_labels(batch):
    """Return (label of the confident example, label of its partner, lam) of all mixed positions."""
    triples = []
    for micro in batch.micro_batches:
        p = len(micro.lam)
        triples += zip(micro.labels[:p].tolist(), micro.labels[p : 2 * p].tolist(), micro.lam.tolist(), strict=True)
    return sorted(triples)


def test_the_head_runs_on_the_positions_that_predict_response_tokens():
    batch = collate_dialogues([[e] for e in EXAMPLES[:2]], "padded", PAD)
    ((input_ids, position_ids, *_),) = batch.inputs
    assert input_ids.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, PAD, PAD]]
    assert position_ids is None
    assert batch.positions.tolist() == [1, 2, 3, 5, 6]
    assert batch.labels.tolist() == [12, 13, 14, 21, 22]
    assert batch.example_of_position.tolist() == [0, 0, 0, 1, 1]
    assert len(batch.lam) == 0


def test_a_packed_batch_has_no_padding_and_its_position_ids_restart():
    batch = collate_dialogues([[e] for e in EXAMPLES[:2]], "packed", PAD)
    ((input_ids, position_ids, *_),) = batch.inputs
    assert input_ids.tolist() == [[10, 11, 12, 13, 14, 20, 21, 22]]
    assert position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.positions.tolist() == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 8, 13, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_each_position_holds_the_token_before_its_label_in_its_own_example(layout, tokens, world_size):
    """All ids of the examples differ and ascend by one, so the token before a label is the label minus one."""
    labels = []
    for rank in range(world_size):
        for micro in collate(layout, tokens, rank=rank, world_size=world_size).micro_batches:
            assert torch.equal(flat(micro)[micro.positions], micro.labels - 1)
            labels += micro.labels.tolist()
    assert sorted(labels) == [12, 13, 14, 21, 22, 33, 42, 43, 44, 45, 51], "each response token is predicted once"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 13, 100])
def test_partners_are_mixed_token_by_token_over_the_shorter_response(layout, tokens):
    assert mixed_labels(collate(layout, tokens)) == [(12, 21, 0.25), (13, 22, 0.25), (33, 42, 0.75)]


@pytest.mark.parametrize("tokens", [1, 8, 13, 100])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_counts_of_a_step_do_not_depend_on_how_it_is_divided(tokens, rank):
    batch = collate(tokens=tokens, rank=rank, world_size=2)
    assert (batch.num_tokens, batch.num_mixed, batch.num_input_tokens) == (11, 3, 20)
    assert batch.ntp_weight == 11.0
    assert batch.lam_mean == 0.5


def test_a_rank_without_examples_still_runs_the_body():
    batches = [collate(tokens=1, rank=rank, world_size=4) for rank in range(4)]
    assert {len(batch.micro_batches) for batch in batches} == {1}
    (empty,) = (b.micro_batches[0] for b in batches if not len(b.micro_batches[0].positions))
    assert flat(empty).tolist() == [PAD]
    assert len(empty.labels) == len(empty.lam) == empty.num_examples == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_each_position_names_its_example_and_response_positions_come_first(layout, prompt_weight):
    for micro in collate(layout, 13, prompt_weight=prompt_weight).micro_batches:
        labels = {i: set(EXAMPLES[i].input_ids) for i in micro.examples}
        own = [micro.examples[k] for k in micro.example_of_position.tolist()]
        assert all(label in labels[i] for i, label in zip(own, micro.labels.tolist(), strict=True))
        is_response = [
            label in EXAMPLES[i].input_ids[EXAMPLES[i].num_prompt_tokens :]
            for i, label in zip(own, micro.labels.tolist(), strict=True)
        ]
        assert is_response == sorted(is_response, reverse=True)
        assert micro.num_response_positions == sum(is_response)


def test_each_position_has_the_weight_of_its_example():
    batch = collate(tokens=1, weights=(1.0, 0.0, 1.0, 0.0, 0.5))
    weights = {}
    for micro in batch.micro_batches:
        weights.update(zip(micro.labels.tolist(), micro.weights.tolist(), strict=True))
    assert weights[12] == 1.0
    assert weights[21] == weights[45] == 0.0
    assert weights[51] == 0.5
    assert batch.ntp_weight == 3 + 1 + 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 13, 100])
@pytest.mark.parametrize("world_size", [1, 2])
def test_prompt_tokens_that_carry_loss_are_not_mixed(layout, tokens, world_size):
    """By hand: prompts of 2, 1, 3, 2 and 1 tokens, predicted from the second token on, at half the example's weight."""
    weights, pairs = {}, []
    for rank in range(world_size):
        batch = collate(layout, tokens, (1.0, 1.0, 0.5, 1.0, 1.0), prompt_weight=0.5, rank=rank, world_size=world_size)
        assert batch.num_tokens == 11 + 4
        assert batch.ntp_weight == 10.5 + 0.5 * (1 + 0.5 * 2 + 1)
        pairs += mixed_labels(batch)
        for micro in batch.micro_batches:
            assert torch.equal(flat(micro)[micro.positions], micro.labels - 1)
            weights.update(zip(micro.labels.tolist(), micro.weights.tolist(), strict=True))
    assert {label: weights.pop(label) for label in (11, 31, 32, 41)} == {11: 0.5, 31: 0.25, 32: 0.25, 41: 0.5}
    assert sorted(weights) == [12, 13, 14, 21, 22, 33, 42, 43, 44, 45, 51]
    assert sorted(pairs) == [(12, 21, 0.25), (13, 22, 0.25), (33, 42, 0.75)]


def test_prompt_tokens_of_weight_0_are_not_computed_but_count_in_n():
    batch = collate(weights=(0.0,) * 5, prompt_weight=1.0)
    assert batch.num_tokens == 15
    assert sum(len(micro.positions) for micro in batch.micro_batches) == 11


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_span_of_each_example_holds_its_tokens(layout):
    for micro in collate(layout, 13).micro_batches:
        for i, (start, length) in zip(micro.examples, micro.spans, strict=True):
            assert tuple(flat(micro)[start : start + length].tolist()) == EXAMPLES[i].input_ids


def test_padding_is_neither_a_position_nor_a_label():
    for layout in LAYOUTS:
        for micro in collate(layout).micro_batches:
            assert PAD not in flat(micro)[micro.positions]
            assert PAD not in micro.labels
            assert (PAD in flat(micro)) == (layout != "packed")
