"""Terms with odds against scipy, and the rules for creative, noisy and unanswerable examples."""

import pytest
from scipy.stats.contingency import odds_ratio as scipy_odds_ratio

from sftmix.analysis.root_verbs import root_of
from sftmix.analysis.topics import (
    Text,
    is_creative,
    is_noisy,
    is_unanswerable,
    most_frequent,
    most_frequent_verbs,
    odds_ratio,
    shares_by_rule,
    terms_of,
)


def text(instruction, response="A response."):
    return Text(instruction, response, root_of(instruction))


def test_the_odds_ratio_is_nearly_that_of_scipy_for_large_counts():
    expected = scipy_odds_ratio([[3000, 7000], [2000, 8000]], kind="sample")
    found = odds_ratio(3000, 10_000, 2000, 10_000)
    assert found.value == pytest.approx(expected.statistic, rel=1e-3)
    interval = expected.confidence_interval()
    assert found[1:3] == pytest.approx((interval.low, interval.high), rel=1e-3)


def test_the_odds_ratio_of_a_term_that_one_side_lacks_is_finite():
    found = odds_ratio(0, 10, 10, 10)
    assert found.value == pytest.approx((0.5 / 10.5) * (0.5 / 10.5))
    assert 0 < found.low < found.high < 1


def test_terms_are_ranked_by_what_tells_the_sides_apart():
    confident = ["Correct the grammar error"] * 6 + ["Name a planet"] * 4
    unconfident = ["Compose a gloomy poem"] * 8 + ["Name a planet"] * 2
    ours, theirs = terms_of(confident, unconfident, 3)
    assert {"grammar", "correct", "correct grammar"} & {term.term for term in ours}
    assert (ours[0].confident, ours[0].unconfident) == (6, 0)
    assert ours[0].odds.low > 1
    assert {"poem", "compose", "gloomy"} & {term.term for term in theirs}
    assert all(term.odds.value < 1 for term in theirs)


def test_without_a_shared_term_there_is_an_error():
    with pytest.raises(ValueError, match="no term is in 3 instructions"):
        terms_of(["alpha", "beta"], ["gamma", "delta"], 5)


@pytest.mark.parametrize(
    ("rule", "example", "holds"),
    [
        (is_creative, text("Write a short story about a fox"), True),
        (is_creative, text("Write the number 3 in words"), False),
        (is_creative, text("Summarize the story"), False),
        (is_noisy, text("Name it", ""), True),
        (is_noisy, text("Name it", "<nooutput>"), True),
        (is_noisy, text("Classify. Noinput", "N/A"), True),
        (is_noisy, text("Repeat this", "repeat this "), True),
        (is_noisy, text("#$%&!?#$ %&!?#$%", "!!!!"), True),
        (is_noisy, text("Name a na\u00efve hero", "Candide"), False),
        (is_unanswerable, text("Describe this image"), True),
        (is_unanswerable, text("Who won?", "I'm sorry, there is not enough information."), True),
        (is_unanswerable, text("Describe an image of your choice"), False),
    ],
)
def test_a_rule_holds(rule, example, holds):
    assert rule(example) is holds


def test_shares_count_each_kind():
    shares = shares_by_rule([text("Write a poem"), text("Write a poem", ""), text("Add 2 and 3"), text("Add 1 and 1")])
    assert {name: share.value for name, share in shares.items()} == {"creative": 0.5, "noisy": 0.25, "unanswerable": 0}


def test_frequencies_are_ordered_by_count_then_name():
    roots = [root_of(t) for t in ("Write a poem", "Write a poem", "Name a color", "Add a verb", "What is it?")]
    assert most_frequent(roots, 3) == [("write poem", 2), ("add verb", 1), ("name color", 1)]
    assert ("what ...?", 1) in most_frequent_verbs(roots, 9)
