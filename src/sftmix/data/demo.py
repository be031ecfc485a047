"""The embedded data set, drawn by a seeded generator, with known difficulty.

It has three kinds of tasks, after what the paper found in Alpaca (section 3.2: deterministic grammar tasks are the most
confident, creative and noisy ones the least). *rule* tasks have one correct answer, *open* tasks have many, and *noise*
tasks have a wrong or meaningless answer. The group of an example is `kind/task`.

With two qualities (Table 4), there are only rule and open tasks, and the group is the quality: `high` has a correct
answer, `low` a wrong, truncated, or meaningless one.
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
    word, thing, place = r.choice(list(_OPPOSITES)), r.choice(_THINGS), r.choice(_PLACES)
    return (
        "Say the opposite.",
        f"The {thing} in the {place} is {word}.",
        f"The {thing} in the {place} is {_OPPOSITES[word]}.",
    )


def _arithmetic(r: Random) -> tuple[str, str, str]:
    a, b = r.randrange(1, 20), r.randrange(1, 20)
    return "Add the numbers.", f"{a} and {b}", f"{a} and {b} make {a + b} in all."


def _copying(r: Random) -> tuple[str, str, str]:
    text = f"the {r.choice(_COLORS)} {r.choice(_ANIMALS)} and the {r.choice(_COLORS)} {r.choice(_ANIMALS)}"
    return "Repeat the words.", text, text


def _story(r: Random) -> tuple[str, str, str]:
    """Random words in a random order."""
    words = {
        "who": r.choice(_PEOPLE),
        "verb": r.choice(_VERBS) + "s",
        "place": r.choice(_PLACES),
        "feeling": r.choice(_FEELINGS),
        "thing": r.choice(_THINGS),
        "weather": r.choice(_WEATHER),
        "animal": r.choice(_ANIMALS),
        "colour": r.choice(_COLORS),
    }
    order = r.sample(list(words), r.randrange(4, 8))
    return (
        "Write a short story.",
        f"about a {r.choice(_ANIMALS)}",
        " ".join(words[kind] for kind in order).capitalize() + ".",
    )


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
        low_fraction: Fraction of rows of low quality. If None, all three kinds of tasks, without qualities.
    """
    if low_fraction is not None:
        return _two_qualities(num_examples, seed, low_fraction)
    r = Random(seed)
    groups = list(TASKS)
    weights = [weight for _, weight in TASKS.values()]
    rows: dict[tuple[str, str, str], str] = {}
    while len(rows) < num_examples:
        group = r.choices(groups, weights)[0]
        rows.setdefault(TASKS[group][0](r), group)
    return [{"instruction": i, "input": x, "output": y, "group": group} for (i, x, y), group in rows.items()]


def _two_qualities(num_examples: int, seed: int, low_fraction: float) -> list[dict[str, str]]:
    """Return rows of the groups `high` and `low`, at least one of each."""
    r = Random(f"quality {seed}")
    num_low = min(max(1, round(low_fraction * num_examples)), num_examples - 1)
    groups = [LOW] * num_low + [HIGH] * (num_examples - num_low)
    r.shuffle(groups)
    tasks = {name: task for name, task in TASKS.items() if not name.startswith("noise/")}
    weights = [weight for _, weight in tasks.values()]
    rows: dict[tuple[str, str, str], str] = {}
    while len(rows) < num_examples:
        name = r.choices(list(tasks), weights)[0]
        group = groups[len(rows)]
        instruction, given, answer = tasks[name][0](r)
        if group == LOW:
            answer = _worse(answer, r, has_one_answer=name.startswith("rule/"))
        rows.setdefault((instruction, given, answer), group)
    return [{"instruction": i, "input": x, "output": y, "group": group} for (i, x, y), group in rows.items()]


def _worse(answer: str, r: Random, *, has_one_answer: bool) -> str:
    """Return the first half of an answer, random letters, or (if only one answer is correct) unrelated words."""
    kind = r.choice(("truncated", "letters", "unrelated") if has_one_answer else ("truncated", "letters"))
    if kind == "truncated":
        words = answer.split()
        return " ".join(words[: len(words) // 2])
    return _letters(r) if kind == "letters" else _unrelated(r)


def demo_texts(num_examples: int, seed: int) -> list[str]:
    """Return the rows as texts in a format like ChatML, to train a tokenizer."""
    return [
        f"<|im_start|>user\n{row['instruction']}\n\n{row['input']}\n<|im_start|>assistant\n{row['output']}\n"
        for row in demo_rows(num_examples, seed)
    ]
