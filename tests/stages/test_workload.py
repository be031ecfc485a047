"""Steps, tokens and micro-batches of a plan are those that the run computes."""

import pytest

from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.stages.plan import make_plan, reference_config
from sftmix.stages.train import build_data
from sftmix.stages.workload import (
    CountedData,
    published_examples,
    scoring_workload,
    target_examples,
    training_workload,
)

TWO = Device("gpu", "bf16-mixed", "packed", "fsdp", 2)


def counted(config, device=TWO):
    """The workload of the target of a configuration, its data module and its data."""
    data = CountedData(config, reads_reference=False)
    examples = target_examples(config, make_plan(config, device), data)
    module = build_data(config, data.encoded(config.model), examples, device)
    return training_workload(config, device, data, examples), module, data


@pytest.mark.parametrize("recipe", ["ntp", "sftmix"])
def test_the_counts_are_those_of_the_batches_of_the_first_epoch(compose, small_overrides, tmp_path, recipe):
    config = compose(*small_overrides, f"recipe={recipe}", "trainer.micro_batch_tokens=300", f"root={tmp_path}")
    work, module, _ = counted(config)
    batches = [module.steps(rank, 2)[0, k] for rank in (0, 1) for k in range(module.steps_per_epoch)]
    parts = [micro.inputs[0].input_ids.numel() for batch in batches for micro in batch.micro_batches]
    assert work.num_steps == module.steps_per_epoch
    assert work.num_tokens == sum(batch.num_input_tokens for batch in batches) / 2
    assert work.largest == max(parts)
    assert work.num_micro_batches == max(len(batch.micro_batches) for batch in batches) > 1
    assert 0.1 < work.response_share < 0.9
    assert work.longest_unit <= work.largest


def test_limits_of_batches_are_counted(compose, small_overrides, tmp_path):
    config = compose(*small_overrides, "trainer.limit_train_batches=2", "data.epochs=3", f"root={tmp_path}")
    assert counted(config)[0].num_steps == 6


def test_a_scoring_pass_computes_each_checkpoint_on_all_examples(compose, small_overrides, tmp_path):
    config = compose(*small_overrides, f"root={tmp_path}")
    _, _, data = counted(config)
    encoded = data.encoded(config.model)
    tokens = int(encoded.train.lengths.sum() + encoded.val.lengths.sum())
    work = scoring_workload(config, Device("gpu", "bf16-mixed", "packed"), data, 3)
    assert work.num_tokens == 3 * tokens
    assert 0 < work.response_share < 1
    assert work.longest_unit == max(*encoded.train.lengths, *encoded.val.lengths) <= work.largest


def without_hub(monkeypatch):
    def refuse(*_, **__):
        raise InputError("model: could not be read from the hub")

    monkeypatch.setattr("sftmix.stages.workload.check_hub", refuse)


def test_without_data_the_bounds_are_above_what_is_counted(compose, small_overrides, tmp_path, monkeypatch):
    """Rows of the embedded set, as if they were 120 published examples of a data set of the hub."""
    config = compose(*small_overrides, f"root={tmp_path}")
    work, _, _ = counted(config)
    config.data.published = 120
    without_hub(monkeypatch)
    monkeypatch.setattr("sftmix.stages.workload._reads_hub", lambda _: True)
    data = CountedData(config, reads_reference=False)
    assert data.why_unknown == "model: could not be read from the hub"
    bound = training_workload(reference_config(config), TWO, data, None)
    assert bound.is_bound
    assert bound.num_tokens >= work.num_tokens
    assert bound.largest >= work.largest
    assert bound.num_steps == 7  # of 108 examples, as a tenth is held out


def test_bad_input_of_a_local_run_is_still_an_error(compose, small_overrides, tmp_path, monkeypatch):
    without_hub(monkeypatch)
    with pytest.raises(InputError, match="could not be read from the hub"):
        CountedData(compose(*small_overrides, f"root={tmp_path}"), reads_reference=False)


def test_only_pages_that_state_a_number_of_examples_give_one(compose):
    assert published_examples(compose("data=alpaca")) == round(52002 * 0.99)
    assert published_examples(compose("data=alpaca", "data/select=longest", "data.select.k=100")) == 100
    assert published_examples(compose("data=ultrachat")) is None


def test_another_tokenizer_counts_for_a_model_that_cannot_be_read(compose, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = compose(
        "model=llama", "data.demo.num_examples=120", f"plan.tokenizer={tmp_path / 'tokenizer'}", f"root={tmp_path}"
    )
    work, _, data = counted(config)
    assert data.why_unknown is None
    assert work.num_tokens == config.data.epochs * int(data.encoded(config.model).train.lengths.sum())
