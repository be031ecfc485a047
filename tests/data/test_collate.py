"""The tensors of a step: rows, labels, pairs, and counts that do not depend on how the step is cut."""

import pytest
import torch

from sftmix.data.collate import collate_examples, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.example import Example
from sftmix.data.pairing import Step

PAD = 99


def encoded(num_prompt, num_response, first):
    ids = tuple(range(first, first + num_prompt + num_response))
    return EncodedExample(Example(str(first), (), "", "", 0, "", ""), ids, num_prompt)


EXAMPLES = [encoded(2, 3, 10), encoded(1, 2, 20), encoded(3, 1, 30), encoded(2, 4, 40), encoded(1, 1, 50)]
STEP = Step(confident=(0, 2), unconfident=(1, 3), lam=(0.25, 0.75), singles=(4,))


def collate(size, weights=(1.0,) * 5):
    return collate_step(STEP, EXAMPLES, weights, micro_batch_size=size, pad_token_id=PAD)


def test_rows_are_the_positions_that_predict_response_tokens():
    batch = collate_examples(EXAMPLES[:2], PAD)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.rows.tolist() == [1, 2, 3, 5, 6]
    assert batch.labels.tolist() == [12, 13, 14, 21, 22]
    assert batch.examples.tolist() == [0, 0, 0, 1, 1]
    assert len(batch.lam) == 0


def test_partners_meet_token_by_token_over_the_shorter_response():
    (micro,) = collate(32).micro_batches
    confident, unconfident = micro.labels[micro.confident], micro.labels[micro.unconfident]
    met = sorted(zip(confident.tolist(), unconfident.tolist(), micro.lam.tolist(), strict=True))
    assert met == [(12, 21, 0.25), (13, 22, 0.25), (33, 42, 0.75)]


@pytest.mark.parametrize("size", [2, 4, 5, 32])
def test_the_counts_of_a_step_do_not_depend_on_how_it_is_cut(size):
    batch = collate(size)
    assert (batch.num_tokens, batch.num_mixed, batch.num_input_tokens) == (11, 3, 20)
    assert batch.ntp_weight == 11.0
    assert batch.lam_mean == 0.5
    labels = sorted(label for micro in batch.micro_batches for label in micro.labels.tolist())
    assert labels == [12, 13, 14, 21, 22, 33, 42, 43, 44, 45, 51]
    assert sum(len(micro.lam) for micro in batch.micro_batches) == 3
    assert all(len(micro.input_ids) <= size for micro in batch.micro_batches)


def test_weights_follow_their_examples_rows():
    batch = collate(2, weights=(1.0, 0.0, 1.0, 0.0, 0.5))
    weights = {}
    for micro in batch.micro_batches:
        weights.update(zip(micro.labels.tolist(), micro.weights.tolist(), strict=True))
    assert weights[12] == 1.0
    assert weights[21] == weights[45] == 0.0
    assert weights[51] == 0.5
    assert batch.ntp_weight == 3 + 1 + 0.5


def test_padding_is_neither_row_nor_label():
    for micro in collate(32).micro_batches:
        assert micro.attention_mask.flatten()[micro.rows].all()
        assert PAD not in micro.labels
        assert torch.equal(micro.input_ids == PAD, micro.attention_mask == 0)
