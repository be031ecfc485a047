"""Multiple-choice questions of the rule families of the embedded data set, for models that were tuned on it."""

from random import Random

from sftmix.data.demo import TASKS
from sftmix.evaluation.medical.benchmarks import Questions
from sftmix.evaluation.medical.questions import Item

ASKED = ("rule/grammar", "rule/opposite", "rule/arithmetic")
NUM_TEST, NUM_POOL, NUM_OPTIONS = 100, 50, 4


def embedded_questions() -> Questions:
    """Return 100 questions and 50 possible shots, always the same."""
    r = Random("multiple choice")
    items: dict[str, Item] = {}
    while len(items) < NUM_TEST + NUM_POOL:
        item = _item(r, ASKED[len(items) % len(ASKED)], f"demo-{len(items):03d}")
        items.setdefault(item.question, item)
    made = list(items.values())
    return Questions("demo", made[:NUM_TEST], made[NUM_TEST:], 0)


def _item(r: Random, family: str, name: str) -> Item:
    """Return a question of a family; its wrong options are answers to other questions of the family."""
    make, _ = TASKS[family]
    instruction, given, right = make(r)
    options = {right}
    while len(options) < NUM_OPTIONS:
        options.add(make(r)[2])
    order = r.sample(sorted(options), NUM_OPTIONS)
    return Item(name, None, f"{instruction} {given}", tuple(order), order.index(right))
