"""The batches of a rank: steps from the position of the loop, and held-out batches by length."""

from types import SimpleNamespace

import pytest

from sftmix.data.collate import BatchSettings
from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.training.datamodule import StepDataset, StepLoader, ValidationLoader


def encoded(lengths):
    return EncodedExamples.of(
        [EncodedExample(str(i), tuple(range(100 * i, 100 * i + n)), 1) for i, n in enumerate(lengths)]
    )


def trainer(epoch, ready):
    """Return the attributes of a Trainer that a loader reads."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready))
    return SimpleNamespace(
        overfit_batches=0,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("epoch", "ready"), [(0, 0), (1, 0), (1, 2), (1, 3)])
def test_a_loader_yields_the_steps_of_the_epoch_from_the_loops_position(epoch, ready, num_workers):
    sampler = StepSampler(12, [i % 2 == 0 for i in range(12)], SamplerSettings(global_batch_size=4, seed=0))
    steps = StepDataset(sampler, encoded([5] * 12), [1.0] * 12, BatchSettings("padded", 64, 0))
    loader = StepLoader(steps, trainer(epoch, ready), pin_memory=False, num_workers=num_workers)
    assert len(loader) == 3, "the length is that of a whole epoch"
    members = [set(batch.micro_batches[0].examples) for batch in loader]
    assert members == [set(step.examples) for step in sampler.epoch(epoch)[ready:]]


def test_every_rank_has_as_many_held_out_batches_and_all_ranks_together_have_all():
    settings = BatchSettings("padded", 5, 0)
    shares = [list(ValidationLoader(encoded([5] * 5), settings, rank, 2, pin_memory=False)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    assert {i for share in shares for batch in share for i in batch.examples} == set(range(5))


def test_held_out_batches_come_shortest_first_and_name_their_examples():
    settings = BatchSettings("grouped", 24, 0)
    batches = list(ValidationLoader(encoded([9, 3, 30, 4, 12]), settings, 0, 1, pin_memory=False))
    assert [i for batch in batches for i in batch.examples] == [1, 3, 0, 4, 2]
    for batch in batches:
        for k, example in enumerate(batch.examples):
            first = int(batch.labels[batch.example_of_position == k][0])
            assert first == 100 * example + 1
