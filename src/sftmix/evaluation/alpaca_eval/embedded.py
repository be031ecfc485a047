"""Embedded instructions, baseline answers and a judge's prompt, to try the suite without any file."""

from sftmix.data.demo import demo_rows
from sftmix.evaluation.alpaca_eval.judging import END, START
from sftmix.evaluation.alpaca_eval.outputs import Output

NUM_QUESTIONS = 20
SEED = 805  # training sets are drawn with other seeds
GENERATOR, DATASET = "embedded", "demo"

DEMO_TEMPLATE = f"""\
{START}system
You compare two answers to a request.
{END}
{START}user
Request: {{instruction}}

Answer m: {{output_1}}

Answer M: {{output_2}}

Which answer is better? Reply by its letter alone: m or M.
{END}"""


def embedded_baseline() -> list[Output]:
    """Return instructions of the embedded families, without noise, with their answers as the baseline."""
    outputs: dict[str, Output] = {}
    for row in demo_rows(4 * NUM_QUESTIONS, SEED):
        if not row["group"].startswith("noise/"):
            instruction = f"{row['instruction']}\n\n{row['input']}"
            outputs.setdefault(instruction, Output(instruction, row["output"], GENERATOR, DATASET))
    return list(outputs.values())[:NUM_QUESTIONS]
