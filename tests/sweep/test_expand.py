"""The runs of a sweep, expanded with Hydra's own parser of overrides."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sftmix.sweep.jobs import expand

MU = {"recipe.mixup.mu": "0.1,0.2,0.5"}
QUALITY = [["recipe=ntp", "data.groups=[high]"], ["recipe=ntp"], ["recipe=sftmix", "split.by=group"]]


def expanded(arguments, params=(), rows=()):
    return expand(arguments, dict(params), rows, OverridesParser.create().parse_overrides)


def test_a_grid_gives_a_row_a_value():
    common, rows = expanded(["ablation=mu", "model=tiny"], MU)
    assert common == ("ablation=mu", "model=tiny")
    assert rows == [("recipe.mixup.mu=0.1",), ("recipe.mixup.mu=0.2",), ("recipe.mixup.mu=0.5",)]


def test_what_the_command_line_sweeps_over_multiplies_the_grid():
    _, rows = expanded(["ablation=mu", "seed=1,2"], MU)
    assert len(rows) == 6
    assert rows[0] == ("recipe.mixup.mu=0.1", "seed=1")
    assert len(expanded(["seed=range(0,4)"], MU)[1]) == 12


def test_a_key_of_the_command_line_takes_the_place_of_the_grids():
    assert expanded(["recipe.mixup.mu=0.7"], MU) == (("recipe.mixup.mu=0.7",), [()])
    assert expanded(["recipe.mixup.mu=0.7,0.9"], MU)[1] == [("recipe.mixup.mu=0.7",), ("recipe.mixup.mu=0.9",)]


def test_listed_rows_meet_the_grid_and_what_is_swept_over():
    assert [list(row) for row in expanded([], (), QUALITY)[1]] == QUALITY
    _, rows = expanded(["seed=1,2"], (), QUALITY)
    assert len(rows) == 6
    assert ("recipe=ntp", "data.groups=[high]", "seed=2") in rows


def test_rows_that_become_equal_are_one():
    _, rows = expanded(["data.groups=null", "recipe=ntp"], (), QUALITY)
    assert rows == [(), ("split.by=group",)]


def test_groups_and_values_with_commas_stay_whole():
    _, rows = expanded(["recipe=ntp,sftmix", "optimizer.betas=[0.9,0.99]", "data/select=longest,random"])
    assert len(rows) == 4
    assert rows[0] == ("recipe=ntp", "data/select=longest")


def test_an_interval_has_no_rows():
    with pytest.raises(HydraException, match="an interval has no values"):
        expanded(["recipe.mixup.mu=interval(0,1)"])
