"""The statistics of judgments, against hand-computed and published examples."""

import math

import pytest
from scipy.stats import t

from sftmix.evaluation.human.judgments import Judgment
from sftmix.evaluation.human.tally import krippendorff_alpha, share_of, tally_judgments


def judgments_of(outcomes, annotator=1, choices=None):
    choices = choices or ["tie" if o == "tie" else "left" for o in outcomes]
    rows = zip(outcomes, choices, strict=True)
    return [Judgment(annotator, f"item {i}", choice, o, float(i)) for i, (o, choice) in enumerate(rows)]


def wilson(count, total, z=1.959963984540054):
    p, spread = count / total, z * z / total
    half = z * math.sqrt(p * (1 - p) / total + spread / (4 * total))
    return (p + spread / 2 - half) / (1 + spread), (p + spread / 2 + half) / (1 + spread)


def test_ninety_forty_seventy_of_two_hundred_is_as_computed_by_hand():
    tally = tally_judgments(judgments_of(["win"] * 90 + ["tie"] * 40 + ["lose"] * 70))
    assert [tally.outcomes[o].percent for o in ("win", "tie", "lose")] == [45.0, 20.0, 35.0]
    assert tally.decided.percent == 56.25
    assert (tally.decided.low, tally.decided.high) == pytest.approx([100 * x for x in wilson(90, 160)])
    assert (round(tally.decided.low, 1), round(tally.decided.high, 1)) == (48.5, 63.7)
    exact = 2 * sum(math.comb(160, k) for k in range(90, 161)) / 2**160
    assert tally.sign_p == pytest.approx(exact)
    assert round(tally.sign_p, 2) == 0.13
    assert tally.lead == 10.0
    error = 100 * math.sqrt((0.45 + 0.35 - 0.1**2) / 200)
    assert tally.lead_interval == pytest.approx((10 - 1.96 * error, 10 + 1.96 * error), abs=0.6)
    assert tally.verdict.words == "no clear difference"
    assert "no clear difference on these examples" in tally.verdict.reason
    assert tally.median_seconds == 99.5


def test_the_papers_counts_are_distinguished():
    tally = tally_judgments(judgments_of(["win"] * 85 + ["tie"] * 62 + ["lose"] * 53))
    assert [round(tally.outcomes[o].percent, 1) for o in ("win", "tie", "lose")] == [42.5, 31.0, 26.5]
    assert "one seed: better on these examples" in tally.verdict.reason
    assert tally.sign_p < 0.01


def test_shares_of_none_and_of_all_have_intervals_within_bounds():
    none, every = share_of(0, 5), share_of(5, 5)
    assert (none.low, every.high) == pytest.approx((0, 100))
    assert none.high == pytest.approx(100 * wilson(0, 5)[1])
    assert every.low == pytest.approx(100 * wilson(5, 5)[0])


def test_judging_everything_twice_alike_does_not_make_it_surer():
    outcomes = ["win"] * 30 + ["tie"] * 10 + ["lose"] * 20
    once = tally_judgments(judgments_of(outcomes))
    twice = tally_judgments(judgments_of(outcomes) + judgments_of(outcomes, 2))
    assert twice.lead_interval == once.lead_interval
    assert (twice.sign_p, twice.sign_items) == (once.sign_p, 50)
    assert (twice.num_items, twice.num_doubled) == (60, 60)
    assert twice.alpha == pytest.approx(1)
    assert [tuple(kappa) for kappa in twice.kappas] == [(1, 2, 60, pytest.approx(1))]


def test_alpha_is_one_minus_observed_over_expected_disagreement_also_where_some_judge_less():
    units = ["1 1 1", "2 2 3 2", "3 3 3 3", "3 3 3 3", "2 2 2 2", "1 2 3", "1 1 2 1", "2 2 2 2"]
    names = dict(zip("123", ("win", "tie", "lose"), strict=True))
    items = [{k: names[v] for k, v in enumerate(unit.split())} for unit in units]
    total, within, totals = 0, 0.0, dict.fromkeys("123", 0)
    for unit in (u.split() for u in units):
        total += len(unit)
        within += sum(x != y for x in unit for y in unit) / (len(unit) - 1)
        for value in unit:
            totals[value] += 1
    between = sum(totals[x] * totals[y] for x in totals for y in totals if x != y)
    assert krippendorff_alpha(items) == pytest.approx(1 - (total - 1) * within / between)


def test_kappa_is_cohens_by_hand():
    # 20 of 50 both win, 15 both lose, 5 and 10 off the diagonal: observed 0.7, expected 0.5, kappa 0.4.
    first = ["win"] * 25 + ["lose"] * 25
    second = ["win"] * 20 + ["lose"] * 5 + ["win"] * 10 + ["lose"] * 15
    tally = tally_judgments(judgments_of(first) + judgments_of(second, 2))
    assert tally.kappas[0].value == pytest.approx(0.4)


def test_side_bias_is_the_share_of_left_among_choices():
    outcomes, choices = ["win", "lose", "lose", "tie"], ["left", "left", "right", "tie"]
    tally = tally_judgments(judgments_of(outcomes, choices=choices))
    assert tally.left[:2] == (2, 3)


def test_metrics_that_cannot_be_computed_are_left_out():
    ties = tally_judgments(judgments_of(["tie", "tie"]) + judgments_of(["tie", "tie"], 2))
    assert (ties.decided, ties.left, ties.alpha, ties.kappas[0].value) == (None, None, None, None)
    assert (ties.sign_p, ties.sign_items, ties.lead, ties.verdict.is_different) == (1.0, 0, 0.0, False)
    one = tally_judgments(judgments_of(["win"]))
    assert (one.lead, one.lead_interval, one.alpha, one.kappas) == (100.0, None, None, [])
    assert one.verdict.in_full == "no clear difference (1 example, at least 20 are needed)"


def test_the_interval_is_over_items_with_all_their_judgments():
    """20 items with 3 equal judgments each: Student's interval over 20 items, not over 60 judgments."""
    outcomes = ["win"] * 10 + ["lose"] * 10
    tally = tally_judgments([j for annotator in (1, 2, 3) for j in judgments_of(outcomes, annotator)])
    half = 100 * t.ppf(0.975, 19) * math.sqrt(20 / 19 / 20)
    assert tally.lead_interval == pytest.approx((-half, half))
