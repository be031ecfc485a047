"""A few embedded instructions with answers: the suite can be tried where no file is at hand."""

from sftmix.data.demo import demo_rows
from sftmix.evaluation.alpaca_eval.outputs import Output

NUM_QUESTIONS = 20
SEED = 805  # none of a training set's, which are drawn by others
GENERATOR, DATASET = "embedded", "demo"


def embedded_baseline() -> list[Output]:
    """Instructions of the embedded families that make sense, with their answers as the baseline's."""
    outputs: dict[str, Output] = {}
    for row in demo_rows(4 * NUM_QUESTIONS, SEED):
        if not row["group"].startswith("noise/"):
            instruction = f"{row['instruction']}\n\n{row['input']}"
            outputs.setdefault(instruction, Output(instruction, row["output"], GENERATOR, DATASET))
    return list(outputs.values())[:NUM_QUESTIONS]
