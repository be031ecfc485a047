"""Scores of the examples that are no confidence are refused with the row that is wrong."""

from pathlib import Path

import pyarrow as pa
import pytest

from builders import scores_of
from sftmix.errors import InputError
from sftmix.stages.scores import check_scores


@pytest.mark.parametrize(
    ("scores", "use", "says"),
    [
        (
            scores_of(nll=[-3.0] * 20),
            None,
            r"row 1 \(example 0{16}, checkpoint 1\) has nll=-3\.0, and 19 more of 20 rows .*negate",
        ),
        (
            scores_of([(7, "nll", -0.01)]),
            None,
            r"row 7 \(example 0+3, checkpoint 1\) has nll=-0\.01; expected .*at least 0",
        ),
        (scores_of([(7, "nll", -0.01)]), 1, "row 7 "),
        (scores_of([(8, "nll", float("nan"))]), None, "row 8 .* has nll=nan; expected .*finite"),
        (scores_of([(8, "nll", float("inf"))]), None, "row 8 .* has nll=inf; expected .*finite"),
        (scores_of([(8, "nll", float("-inf"))]), None, "row 8 .* has nll=-inf; expected .*finite"),
        (scores_of([(3, "num_tokens", 0)]), None, "row 3 .* has num_tokens=0; expected at least 1 token"),
        (scores_of([(3, "num_tokens", -4)]), None, "row 3 .* has num_tokens=-4"),
        (scores_of(repeat=(5,)), None, "rows 5 and 21 both have example 0+2 under checkpoint 1"),
        (scores_of([(6, "checkpoint", 1)]), None, "rows 5 and 6 both have example 0+2 under checkpoint 1"),
        (scores_of(drop=(6,)), None, r"row 5 \(example 0+2, .* scored under each of the 2 checkpoints"),
        (scores_of(drop=(6,)), 1, "row 5 .* scored under each of the 1 checkpoints"),
        (scores_of(checkpoint=[1, 3] * 10), None, "row 2 .* has checkpoint=3, and 9 more .* numbered from 1 to 2"),
        (scores_of(checkpoint=[0, 1] * 10), None, "row 1 .* has checkpoint=0, and 9 more"),
        (scores_of(drop=range(1, 21)), None, "no rows"),
        (scores_of(nll=["1.0"] * 20), None, "column nll has the type string, expected numbers or integers"),
        (scores_of(checkpoint=[1.0, 2.0] * 10), None, "column checkpoint has the type double, expected integers"),
        (scores_of(example_id=list(range(20))), None, "column example_id has the type int64, expected text"),
        (scores_of([(4, "nll", None)]), None, "row 4 has no nll; the column has 1 empty cells"),
    ],
)
def test_scores_that_are_not_negative_log_likelihoods_are_refused_with_their_row(scores, use, says):
    table = pa.table({k: pa.array(v, pa.float64() if k == "nll" and not v else None) for k, v in scores.items()})
    with pytest.raises(InputError, match=rf"^c\.parquet: {says}") as caught:
        check_scores(Path("c.parquet"), table, use)
    assert "\n" not in str(caught.value)


def test_scores_of_every_example_under_every_used_checkpoint_pass():
    check_scores(Path("c.parquet"), pa.table(scores_of()), None)
    check_scores(Path("c.parquet"), pa.table(scores_of(checkpoints=3)), [1, 3])
