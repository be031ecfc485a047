"""What comes between the data and the trainer: held-out batches by length, the next item prepared ahead."""

import threading

import pytest
import torch

from sftmix.data.collate import BatchSettings
from sftmix.data.encoding import EncodedExample
from sftmix.data.shards import EncodedExamples
from sftmix.training.datamodule import Ahead, HeldOut


class Items:
    """Numbers; keeps which thread asked for each, and fails at one of them."""

    def __init__(self, number, fails_at=None):
        self.number, self.fails_at, self.asked = number, fails_at, []

    def __len__(self):
        return self.number

    def __getitem__(self, k):
        self.asked.append((k, threading.current_thread()))
        if k == self.fails_at:
            raise ValueError(f"item {k}")
        return torch.tensor(k)


@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_item_comes_once_and_in_order(number):
    assert [int(item) for item in Ahead(Items(number), range(number), pin_memory=False)] == list(range(number))


def test_the_next_item_is_prepared_while_one_is_worked_on():
    items = Items(5)
    ahead = iter(Ahead(items, range(len(items)), pin_memory=False))
    next(ahead)
    next(ahead)
    deadline = threading.Event()
    while len(items.asked) < 3 and not deadline.wait(0.01):
        pass
    assert [k for k, _ in items.asked] == [0, 1, 2], "one ahead, and no more"
    assert all(thread is not threading.main_thread() for _, thread in items.asked)


def test_an_error_of_the_thread_is_raised_where_the_item_is_wanted():
    ahead = iter(Ahead(Items(5, fails_at=2), range(5), pin_memory=False))
    assert int(next(ahead)) == 0
    assert int(next(ahead)) == 1
    with pytest.raises(ValueError, match="item 2"):
        next(ahead)


def test_held_out_examples_come_shortest_first_and_their_order_is_known():
    lengths = [9, 3, 30, 4, 12]
    encoded = [EncodedExample(str(i), tuple(range(100 * i, 100 * i + n)), 1) for i, n in enumerate(lengths)]
    held_out = HeldOut(EncodedExamples.of(encoded), BatchSettings("grouped", 24, pad_token_id=0))
    assert held_out.order == [1, 3, 0, 4, 2]
    batches = [held_out[k] for k in range(len(held_out))]
    firsts = [
        int(label) - 1
        for b in batches
        for e in range(b.num_examples)
        for label in b.labels[b.example_of_position == e][:1]
    ]
    assert [first // 100 for first in firsts] == held_out.order
