"""Paired differences of held-out losses, by hand and beside the ratio estimate; settings that differ."""

import math

import numpy as np
import pytest
from scipy.stats import t

from sftmix.provenance.runs import ExampleLosses
from sftmix.reports.tables.columns import difference_of_losses, mixed_settings


def losses(rng, num_examples, shift):
    """Two runs over the same examples of unequal length."""
    tokens = {str(i): int(n) for i, n in enumerate(rng.integers(1, 40, num_examples))}
    theirs = {i: float(rng.gamma(2.0) * n) for i, n in tokens.items()}
    ours = {i: nll + float(rng.normal(shift, 0.3)) * tokens[i] for i, nll in theirs.items()}
    return ExampleLosses(ours, tokens), ExampleLosses(theirs, tokens)


def test_the_interval_of_one_seed_is_that_of_the_ratio_estimate():
    """The standard error of a ratio, by hand (Cochran 1977, section 6.3), with the quantile of Student's t."""
    ours, theirs = losses(np.random.default_rng(1), 400, -0.05)
    found = difference_of_losses([(ours, theirs)])
    ids, tokens = list(ours.nll), sum(ours.num_tokens.values())
    mean = sum(ours.nll[i] - theirs.nll[i] for i in ids) / tokens
    rest = [ours.nll[i] - theirs.nll[i] - mean * ours.num_tokens[i] for i in ids]
    half = t.ppf(0.975, 399) * math.sqrt(sum(r * r for r in rest) * 400 / 399) / tokens
    assert found.mean == pytest.approx(mean)
    assert found.of_seeds == pytest.approx([mean])
    assert found.num_examples == 400
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        ours, theirs = losses(rng, 60, 0.02)
        found = difference_of_losses([(ours, theirs)])
        covered += found.low < 0.02 < found.high
    assert 0.88 < covered / 200 < 0.99


def test_several_seeds_are_averaged_example_by_example():
    """By hand: two examples of 2 and 3 tokens, two seeds."""
    tokens = {"a": 2, "b": 3}
    first = ExampleLosses({"a": 4.0, "b": 6.0}, tokens), ExampleLosses({"a": 5.0, "b": 6.0}, tokens)
    second = ExampleLosses({"a": 4.0, "b": 9.0}, tokens), ExampleLosses({"a": 4.0, "b": 6.0}, tokens)
    found = difference_of_losses([first, second])
    assert found.of_seeds == pytest.approx([-0.2, 0.6])
    assert found.mean == pytest.approx(0.2)
    assert found.low < -0.25, "beyond a alone: two seeds that differ by 0.8 say little of a third"
    assert found.high > 0.5, "beyond b alone"
    assert difference_of_losses([first]).low < -0.5, "below a alone, the lowest of all draws: two examples say little"


def test_one_example_has_no_interval():
    one = ExampleLosses({"a": 1.0}, {"a": 1}), ExampleLosses({"a": 2.0}, {"a": 1})
    found = difference_of_losses([one])
    assert found.mean == -1.0
    assert math.isnan(found.low)


def test_all_that_names_the_weights_may_differ_at_any_depth():
    one = {"model": "a", "identity": "1", "generation": {"model": "1"}, "answers": {"outputs": "a.json", "sha256": "1"}}
    other = {"model": "b", "identity": "2", "generation": {"model": "2"}, "answers": {"outputs": "b", "sha256": "2"}}
    assert mixed_settings([one, other, one]) is None


def test_a_hash_of_the_questions_or_of_a_template_is_no_name_of_weights():
    one = {"files_sha256": {"question.jsonl": "0123456789abcdef01"}, "requested_model": "m"}
    other = {"files_sha256": {"question.jsonl": "fedcba9876543210ff"}, "requested_model": "n"}
    assert mixed_settings([one, other]) == (
        "evaluated under other settings: files_sha256.question.jsonl (01234567.., fedcba98..), requested_model (m, n)"
    )


def test_a_key_that_one_of_them_lacks_is_a_difference():
    assert mixed_settings([{"seed": 0}, {}]) == "evaluated under other settings: seed (0, absent)"
    assert mixed_settings([{"seed": 0}, {"seed": 0}]) is None
    assert mixed_settings([{}, {}]) is mixed_settings([]) is None


def test_none_and_lists_are_values():
    assert mixed_settings([{"template": None, "stop_ids": [1, 2]}, {"template": "x", "stop_ids": [1]}]) == (
        "evaluated under other settings: template (x, null), stop_ids ([1, 2], [1])"
    )
