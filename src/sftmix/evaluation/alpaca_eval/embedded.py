"""A few embedded instructions with answers: the suite can be tried where no file is at hand."""

from sftmix.data.demo import demo_rows
from sftmix.evaluation.alpaca_eval.outputs import Output

NUM_QUESTIONS = 20
SEED = 805  # no example of a training set that is made by another one, but for chance


def embedded_baseline() -> list[Output]:
    """Instructions of the embedded families that make sense, with their answers as the baseline's."""
    rows = [row for row in demo_rows(4 * NUM_QUESTIONS, SEED) if not row["group"].startswith("noise/")]
    return [
        Output(f"{row['instruction']}\n\n{row['input']}", row["output"], "embedded", "demo")
        for row in rows[:NUM_QUESTIONS]
    ]
