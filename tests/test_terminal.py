"""Numbers with their nouns; what a terminal would act on is tested with the look at the data."""

from sftmix.terminal import counted


def test_one_of_a_thing_has_no_s():
    assert [counted(n, "row") for n in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]
    assert counted(1, "row", 4) == "   1 row"
