"""The cost of a run with its split, in runs of the baseline."""

from dataclasses import replace

import pytest

from sftmix.config.model import Lora
from sftmix.distributed.device import Device
from sftmix.stages.context import RunContext
from sftmix.stages.cost import Sizes, TokensOfPass, pipeline_cost
from sftmix.stages.plan import make_plan
from sftmix.stages.requirements import counted_cost
from sftmix.stages.workload import CountedData

CPU = Device("cpu", "32-true", "grouped")


@pytest.fixture(scope="module")
def of_paper(compose):
    """3 epochs of Alpaca and 5 checkpoints."""
    return compose("model=mistral", "data=alpaca")


def cost_of(config, *more):
    return pipeline_cost(config, make_plan(config, CPU), *more)


def test_the_cost_of_each_split_source_follows_from_its_passes(of_paper):
    """An epoch takes three passes, forward and backward, and scoring takes one for each checkpoint."""
    config, confidence, split = of_paper, of_paper.confidence, of_paper.split
    shorter = replace(config, reference=replace(config.reference, epochs=1))
    assert cost_of(config) == pytest.approx((9 / 9, 5 / 9, 9 / 9))
    assert cost_of(shorter) == pytest.approx((3 / 9, 5 / 9, 9 / 9))
    assert cost_of(replace(config, confidence=replace(confidence, from_="base"))) == pytest.approx((0, 1 / 9, 9 / 9))
    assert cost_of(replace(config, confidence=replace(confidence, from_="first_epoch"))) == (0, 0, 1)
    assert cost_of(replace(config, split=replace(split, by="random"))) == (0, 0, 1)
    assert cost_of(config).in_words == "2.56 NTP runs (reference 1.00, scoring 0.56, target 1.00)"


def test_ir_dro_takes_one_more_pass_and_a_step_of_adapters_one_less(of_paper):
    recipe = of_paper.recipe
    weighed = replace(of_paper, recipe=replace(recipe, ntp=replace(recipe.ntp, dro_temperature=1.0)))
    assert cost_of(weighed) == pytest.approx((9 / 9, 5 / 9, 12 / 9))
    recorded = replace(weighed.recipe.ntp, dro_losses="previous_epoch")
    assert cost_of(replace(weighed, recipe=replace(recipe, ntp=recorded))) == cost_of(of_paper)
    model = replace(of_paper.model, lora=Lora(r=16, alpha=32, dropout=0.0, target_modules="all-linear", lr_factor=10))
    adapted = replace(of_paper, model=model, reference=replace(of_paper.reference, model=model))
    assert cost_of(adapted) == pytest.approx((6 / 6, 5 / 6, 6 / 6))


def test_a_smaller_reference_with_another_tokenizer_counts_by_its_size_and_tokens(of_paper):
    model = replace(of_paper.model, path="owner/smaller")
    config = replace(of_paper, reference=replace(of_paper.reference, model=model))
    assert cost_of(config) is None
    faster = replace(of_paper, reference=replace(of_paper.reference, model=replace(of_paper.model, lr=1.0)))
    assert cost_of(faster) == cost_of(of_paper)
    found = cost_of(config, TokensOfPass(100, 120, 126), (Sizes(70, 70), Sizes(7, 7)))
    assert found == pytest.approx((0.1 * 1.20, 0.1 * 5 / 9 * 1.26, 1))


def test_a_plan_counts_the_tokens_that_are_trained_on_and_scored(small_run):
    config, plan = small_run
    encoded = RunContext(config).encoded(config.model)
    trained, held_out = (sum(len(e.input_ids) for e in part) for part in (encoded.train, encoded.val))
    assert held_out > 0
    found = counted_cost(config, plan, CountedData(config, reads_reference=False))
    assert found == pytest.approx((1, 2 * (trained + held_out) / (3 * trained), 1))
