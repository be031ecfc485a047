"""Losses of runs and their differences: by hand, by numpy, and beside the ratio estimate."""

import math

import numpy as np
import pytest
from scipy.stats import t

from sftmix.artifacts.tables import write_table
from sftmix.errors import InputError
from sftmix.reports.held_out import (
    HeldOutLoss,
    difference_over_seeds,
    mean_and_sd,
    read_halves,
    read_held_out,
)
from sftmix.reports.runs import damage_of


def losses(rng, num_examples, shift):
    """Two runs over the same examples of unequal length."""
    tokens = {str(i): int(n) for i, n in enumerate(rng.integers(1, 40, num_examples))}
    theirs = {i: float(rng.gamma(2.0) * n) for i, n in tokens.items()}
    ours = {i: nll + float(rng.normal(shift, 0.3)) * tokens[i] for i, nll in theirs.items()}
    return HeldOutLoss(ours, tokens), HeldOutLoss(theirs, tokens)


def test_the_interval_of_one_seed_is_that_of_the_ratio_estimate():
    """The standard error of a ratio, by hand (Cochran 1977, section 6.3), with the quantile of Student's t."""
    ours, theirs = losses(np.random.default_rng(1), 400, -0.05)
    found = difference_over_seeds([(ours, theirs)])
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
        found = difference_over_seeds([(ours, theirs)])
        covered += found.low < 0.02 < found.high
    assert 0.88 < covered / 200 < 0.99


def test_several_seeds_are_averaged_example_by_example():
    """By hand: two examples of 2 and 3 tokens, two seeds."""
    tokens = {"a": 2, "b": 3}
    first = HeldOutLoss({"a": 4.0, "b": 6.0}, tokens), HeldOutLoss({"a": 5.0, "b": 6.0}, tokens)
    second = HeldOutLoss({"a": 4.0, "b": 9.0}, tokens), HeldOutLoss({"a": 4.0, "b": 6.0}, tokens)
    found = difference_over_seeds([first, second])
    assert found.of_seeds == pytest.approx([-0.2, 0.6])
    assert found.mean == pytest.approx(0.2)
    assert found.low < -0.25, "beyond a alone: two seeds that differ by 0.8 say little of a third"
    assert found.high > 0.5, "beyond b alone"
    assert difference_over_seeds([first]).low < -0.5, "below a alone, the lowest of all draws: two examples say little"


def test_one_example_has_no_interval():
    one = HeldOutLoss({"a": 1.0}, {"a": 1}), HeldOutLoss({"a": 2.0}, {"a": 1})
    found = difference_over_seeds([one])
    assert found.mean == -1.0
    assert math.isnan(found.low)


def test_mean_and_standard_deviation():
    values = [1.0, 2.0, 4.0, 8.5]
    assert mean_and_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_and_sd([3.0]) == (3.0, None)


def test_files_that_are_something_else_are_told(tmp_path):
    assert read_halves(tmp_path) == {}
    for read, name in ((read_held_out, "val.parquet"), (read_halves, "split.parquet")):
        write_table(tmp_path / name, {"example_id": ["a"], "part": ["val"]})
        with pytest.raises(InputError, match=rf"{name}: no column"):
            read(tmp_path)
        (tmp_path / name).write_text("torn")
        with pytest.raises(InputError, match=rf"{name}: .*expected a parquet file"):
            read(tmp_path)
    with pytest.raises(InputError, match=r"val\.parquet: .*expected a parquet file"):
        read_held_out(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "split.parquet", "val.parquet"])
def test_damage_of_each_file_that_a_table_reads_is_found_before_the_table_is_made(made, name):
    run = made.run("sftmix", 1.0)
    assert damage_of(run) is None
    (run / name).write_bytes(b"x")
    assert name in str(damage_of(run))
