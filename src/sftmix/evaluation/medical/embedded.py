"""Multiple-choice questions of the embedded data set's rule families, for a model that knows nothing else."""

from random import Random

from sftmix.data.demo import TASKS
from sftmix.evaluation.medical.benchmarks import Questions
from sftmix.evaluation.medical.questions import Item

ASKED = ("rule/grammar", "rule/opposite", "rule/arithmetic")
NUM_TEST, NUM_POOL, NUM_OPTIONS = 100, 50, 4


def embedded_questions() -> Questions:
    """100 questions and 50 others that may be shots: the same at every call."""
    r = Random("multiple choice")
    rows: dict[str, Item] = {}
    while len(rows) < NUM_TEST + NUM_POOL:
        row = _question(r, ASKED[len(rows) % len(ASKED)], f"demo-{len(rows):03d}")
        rows.setdefault(row.question, row)
    made = list(rows.values())
    return Questions("demo", made[:NUM_TEST], made[NUM_TEST:], 0)


def _question(r: Random, family: str, name: str) -> Item:
    """A question of a family; the wrong options are answers to others of it."""
    make, _ = TASKS[family]
    instruction, given, right = make(r)
    options = {right}
    while len(options) < NUM_OPTIONS:
        options.add(make(r)[2])
    order = r.sample(sorted(options), NUM_OPTIONS)
    return Item(name, None, f"{instruction} {given}", tuple(order), order.index(right))
