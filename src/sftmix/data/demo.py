"""Draw the embedded data set with a seeded generator.

A *rule* task has one correct answer, an *open* task has many, and a *noise* task has a wrong or meaningless answer. (In
Alpaca, grammar tasks are the most confident examples; creative and noisy tasks are the least confident: paper, section
3.2.) With two qualities (Table 4), there are only rule and open tasks.
"""

from random import Random

from sftmix.data.response_replacement import HIGH, LOW

_ANIMALS = "cat dog bird fish horse cow goat duck fox bear".split()
_COLORS = "red blue green white black brown pink gray".split()
_PLACES = "park river house garden forest market school beach station bridge".split()
_VERBS = "walk run jump swim come look talk sing drive move".split()
_PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry".split()
_FEELINGS = "happy sad calm brave tired proud quiet kind".split()
_THINGS = "lamp boat clock letter stone flower song window cake coat mirror ladder".split()
_WEATHER = "rain snow wind sun fog storm thunder frost".split()
_TIMES = "today now soon often again alone".split()
_OPPOSITES = dict(zip("hot big old wet dark full".split(), "cold small new dry bright empty".split(), strict=True))


def _grammar(r: Random) -> tuple[str, str, str]:
    verb, place, time = r.choice(_VERBS), r.choice(_PLACES), r.choice(_TIMES)
    who = r.choice(("He", "She", "It"))
    return "Correct the grammar.", f"{who} {verb} to the {place} {time}.", f"{who} {verb}s to the {place} {time}."


def _opposite(r: Random) -> tuple[str, str, str]:
    word = r.choice(list(_OPPOSITES))
    begin = f"The {r.choice(_THINGS)} in the {r.choice(_PLACES)} is"
    return "Say the opposite.", f"{begin} {word}.", f"{begin} {_OPPOSITES[word]}."


def _arithmetic(r: Random) -> tuple[str, str, str]:
    a, b = r.randrange(1, 20), r.randrange(1, 20)
    return "Add the numbers.", f"{a} and {b}", f"{a} and {b} make {a + b} in all."


def _copying(r: Random) -> tuple[str, str, str]:
    text = f"the {r.choice(_COLORS)} {r.choice(_ANIMALS)} and the {r.choice(_COLORS)} {r.choice(_ANIMALS)}"
    return "Repeat the words.", text, text


def _story(r: Random) -> tuple[str, str, str]:
    """Random words in a random order."""
    words = [r.choice(_PEOPLE), r.choice(_VERBS) + "s"]
    words += [r.choice(some) for some in (_PLACES, _FEELINGS, _THINGS, _WEATHER, _ANIMALS, _COLORS)]
    story = " ".join(r.sample(words, r.randrange(4, 8))).capitalize() + "."
    return "Write a short story.", f"about a {r.choice(_ANIMALS)}", story


def _advice(r: Random) -> tuple[str, str, str]:
    verb, other = r.sample(_VERBS, 2)
    first = r.choice((f"{verb} with {r.choice(_PEOPLE)}", f"take a {r.choice(_THINGS)}", f"be {r.choice(_FEELINGS)}"))
    then = r.choice((f"{other} {r.choice(_TIMES)}", f"mind the {r.choice(_WEATHER)}", f"feed a {r.choice(_ANIMALS)}"))
    joined = r.choice((f"{first}, {then}", f"{then} or {first}", f"{first} and {then}", first, then))
    return "Give a piece of advice.", f"for the {r.choice(_PLACES)}", joined.capitalize() + r.choice((".", "!"))


def _wrong(r: Random) -> tuple[str, str, str]:
    """A rule task with an unrelated answer."""
    instruction, given, _ = r.choice((_grammar, _opposite, _arithmetic))(r)
    return instruction, given, _unrelated(r)


def _gibberish(r: Random) -> tuple[str, str, str]:
    """A task of any kind, answered by random letters."""
    instruction, given, _ = r.choice((_story, _advice, _copying))(r)
    return instruction, given, _letters(r)


def _unrelated(r: Random) -> str:
    return " ".join(r.sample(_THINGS + _WEATHER + _ANIMALS + _FEELINGS, 4)) + "."


def _letters(r: Random) -> str:
    return " ".join("".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randrange(2, 6))) for _ in range(3))


TASKS = {
    "rule/grammar": (_grammar, 16),
    "rule/opposite": (_opposite, 14),
    "rule/arithmetic": (_arithmetic, 6),
    "rule/copying": (_copying, 14),
    "open/story": (_story, 16),
    "open/advice": (_advice, 14),
    "noise/wrong": (_wrong, 12),
    "noise/gibberish": (_gibberish, 8),
}


def demo_rows(num_examples: int, seed: int, low_fraction: float | None = None) -> list[dict[str, str]]:
    """Return different rows in Alpaca's schema with a group, in random order. The seed determines everything.

    Args:
        low_fraction: Fraction of rows of low quality. The group is then `high` if the answer is correct, and `low` if
            it is wrong, truncated or meaningless. If None, the group is `kind/task`.
    """
    r, tasks, qualities = Random(seed), TASKS, list[str]()
    if low_fraction is not None:
        r = Random(f"quality {seed}")
        num_low = min(max(1, round(low_fraction * num_examples)), num_examples - 1)
        qualities = [LOW] * num_low + [HIGH] * (num_examples - num_low)
        r.shuffle(qualities)
        tasks = {name: task for name, task in TASKS.items() if not name.startswith("noise/")}
    weights = [weight for _, weight in tasks.values()]
    rows: dict[tuple[str, str, str], str] = {}
    while len(rows) < num_examples:
        name = r.choices(list(tasks), weights)[0]
        group = qualities[len(rows)] if qualities else name
        instruction, given, answer = tasks[name][0](r)
        if group == LOW:  # the first half of the answer, random letters, or (if only one answer is correct) other words
            kinds = ("truncated", "letters", "unrelated") if name.startswith("rule/") else ("truncated", "letters")
            kind, words = r.choice(kinds), answer.split()
            truncated = " ".join(words[: len(words) // 2])
            answer = truncated if kind == "truncated" else _letters(r) if kind == "letters" else _unrelated(r)
        rows.setdefault((instruction, given, answer), group)
    return [{"instruction": i, "input": x, "output": y, "group": group} for (i, x, y), group in rows.items()]


def demo_texts(num_examples: int, seed: int) -> list[str]:
    """Return the rows as texts in a format like ChatML, to train a tokenizer."""
    return [
        f"<|im_start|>user\n{row['instruction']}\n\n{row['input']}\n<|im_start|>assistant\n{row['output']}\n"
        for row in demo_rows(num_examples, seed)
    ]
