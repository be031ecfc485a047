"""The embedded set: the same for the same seed, no two rows alike, every family there."""

from sftmix.data.demo import FAMILIES, KINDS, demo_rows


def test_the_set_is_the_same_for_the_same_seed():
    assert demo_rows(200, 0) == demo_rows(200, 0)
    assert demo_rows(200, 0) != demo_rows(200, 1)


def test_no_two_rows_are_alike_and_every_family_is_there():
    rows = demo_rows(2000, 0)
    assert len({tuple(row.values()) for row in rows}) == 2000
    assert {row["group"] for row in rows} == set(FAMILIES)
    assert {group.split("/")[0] for group in FAMILIES} == set(KINDS)


def test_rule_families_have_the_answer_that_the_rule_gives():
    rows = demo_rows(2000, 0)
    for row in rows:
        if row["group"] == "rule/copying":
            assert row["output"] == row["input"]
        if row["group"] == "rule/arithmetic":
            a, b = row["input"].split(" and ")
            assert row["output"] == f"{a} and {b} make {int(a) + int(b)} in all."


def test_no_wrong_answer_is_right_by_accident():
    """A wrong answer never equals the right one of the same question."""
    rows = demo_rows(2000, 0)
    right = {(row["instruction"], row["input"]): row["output"] for row in rows if row["group"].startswith("rule/")}
    wrong = [row for row in rows if row["group"].startswith("noise/")]
    assert all(right.get((row["instruction"], row["input"])) != row["output"] for row in wrong)
