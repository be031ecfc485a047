"""Which NTP runs keep the C checkpoints that score."""

from types import SimpleNamespace

import pytest

from builders import random_examples
from sftmix.data.shards import EncodedExamples
from sftmix.stages import reference
from sftmix.stages.plan import reference_config
from sftmix.stages.reference import checkpoint_folders, has_checkpoints, write_ntp

NTP = ("recipe=ntp", "recipe.global_batch_size=16")


@pytest.fixture
def num_kept(compose, small_overrides, monkeypatch):
    """Return how many checkpoints an NTP run of a config keeps."""
    kept = []
    monkeypatch.setattr(reference, "tune", lambda *arguments: kept.append(arguments[5]))

    def num_kept(*overrides, num_examples=108, as_reference=False):
        config = compose(*small_overrides, *overrides)
        context = SimpleNamespace(
            encoded=lambda _: SimpleNamespace(train=EncodedExamples.of(random_examples(num_examples)))
        )
        write_ntp(None, reference_config(config) if as_reference else config, context, None)
        return kept.pop()

    return num_kept


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 2),
        (("seed=1",), 1),
        (("seed=1", "reference.seed=1"), 2),
        (("recipe.ntp.weight=0.5",), 1),
        (("recipe.neftune_alpha=5", "recipe.name=neftune"), 1),
        (("data.num_checkpoints=3",), 3),
    ],
)
def test_only_a_run_that_can_be_the_reference_keeps_checkpoints(num_kept, overrides, expected):
    assert num_kept(*NTP, *overrides) == expected


@pytest.mark.parametrize("overrides", [(), ("seed=1",), ("model@reference.model=tiny", "reference.model.lr=0.5")])
def test_a_reference_keeps_checkpoints_whatever_the_target_is(num_kept, overrides):
    assert num_kept(*overrides, as_reference=True) == 2


def test_a_baseline_of_fewer_steps_than_checkpoints_keeps_its_model_only(num_kept):
    assert num_kept(*NTP, "data.num_checkpoints=7", num_examples=97) == 7
    assert num_kept(*NTP, "data.num_checkpoints=7", num_examples=96) == 1


@pytest.mark.parametrize("last", ["model", "adapter"])
def test_the_last_checkpoint_is_the_model_or_its_adapter(tmp_path, last):
    for folder in {"model", last, "checkpoints/step-000010", "checkpoints/step-000002"}:
        (tmp_path / folder).mkdir(parents=True)
    names = ["step-000002", "step-000010", last]
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == names
    assert has_checkpoints(tmp_path, 3)
    assert not has_checkpoints(tmp_path, 2)
