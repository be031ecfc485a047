"""Preferences by AlpacaEval's rules: hand-computed, and recomputed from real raw replies of a judge."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftmix.evaluation.alpaca_eval.scores import first_share, is_switched, preference_of, rate_of


def test_a_little_case_agrees_with_a_computation_by_hand():
    found = rate_of(np.asarray([1.0, 2.0, 1.5, 1.25]) - 1)
    assert found.percent == pytest.approx(100 * (0 + 1 + 0.5 + 0.25) / 4)
    spread = math.sqrt(sum((x - 0.4375) ** 2 for x in (0, 1, 0.5, 0.25)) / 3)
    assert found.standard_error == pytest.approx(100 * spread / 2)
    assert found.n == 4


def test_a_verdict_belongs_to_the_answer_that_was_shown_in_its_place():
    assert preference_of(1.0, switched=False) == 1  # m is the baseline
    assert preference_of(1.0, switched=True) == 2  # m is the model
    assert preference_of(0.25, switched=False) == 1.75
    assert preference_of(0.25, switched=True) == 1.25


def test_the_preference_is_a_share_of_the_two_verdicts_only():
    logprobs = {"m": math.log(0.3), "M": math.log(0.1), "The": math.log(0.6)}
    assert first_share(logprobs) == pytest.approx(0.75)
    assert first_share({"m": -0.1, "The": -3.0}) == 1
    assert first_share({"M": -0.1, "The": -3.0}) == 0
    assert first_share({"The": -0.1, " m": -3.0}) is None
    assert first_share({"m": -9999.0, "M": -9999.0}) == 0.5


@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_a_share_is_one_whatever_the_log_probabilities(first, second):
    share = first_share({"m": first, "M": second})
    assert 0 <= share <= 1
    assert share + first_share({"m": second, "M": first}) == pytest.approx(1)


def test_the_order_depends_on_the_instruction_only_and_is_balanced():
    orders = [is_switched(f"instruction {i}") for i in range(2000)]
    assert orders == [is_switched(f"instruction {i}") for i in range(2000)]
    assert 900 < sum(orders) < 1100


def test_the_805_preferences_follow_from_the_raw_replies(shared):
    file = shared / "data" / "bench" / "alpaca_eval" / "vicuna-7b-v1.5_annotations.json"
    records = json.loads(file.read_text(encoding="utf-8"))
    published, ours = [], []
    for record in records:
        published.append(float(record["preference"]))
        if record["raw_completion"] is None:
            assert record["output_1"] == record["output_2"]
            ours.append(1.5)
            continue
        likeliest = record["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
        share = first_share({token["token"]: token["logprob"] for token in likeliest})
        ours.append(preference_of(share, is_switched(record["instruction"])))
    assert len(ours) == 805
    assert np.abs(np.asarray(ours) - np.asarray(published)).max() < 1e-9
