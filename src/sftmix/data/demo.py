"""The embedded data set: made by a seeded generator, with planted difficulty.

Three kinds of families, after what the paper found in Alpaca (section 3.2: deterministic grammar tasks are the most
confident, creative and noisy ones the least): *rule* families have one right answer that a pattern gives, *open* ones
have many right answers, *noise* ones a wrong answer or one empty of meaning. The group of an example is `kind/family`.
"""

from random import Random

KINDS = ("rule", "open", "noise")

_ANIMALS = "cat dog bird fish horse cow goat duck fox bear".split()
_COLOURS = "red blue green white black brown pink gray".split()
_PLACES = "park river house garden forest market school beach station bridge".split()
_VERBS = "walk run jump swim come look talk sing drive move".split()
_PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry".split()
_FEELINGS = "happy sad calm brave tired proud quiet kind".split()
_THINGS = "lamp boat clock letter stone flower song window cake coat mirror ladder".split()
_WEATHER = "rain snow wind sun fog storm thunder frost".split()
_TIMES = "today now soon often again alone".split()


def _grammar(r: Random) -> tuple[str, str, str]:
    verb, place, time = r.choice(_VERBS), r.choice(_PLACES), r.choice(_TIMES)
    who = r.choice(("He", "She", "It"))
    return "Correct the grammar.", f"{who} {verb} to the {place} {time}.", f"{who} {verb}s to the {place} {time}."


def _counting(r: Random) -> tuple[str, str, str]:
    first, step = r.randrange(30), r.randrange(1, 4)
    numbers = [str(first + k * step) for k in range(4)]
    return "Go on counting.", " ".join(numbers[:3]), numbers[3] + "."


def _arithmetic(r: Random) -> tuple[str, str, str]:
    a, b = r.randrange(1, 20), r.randrange(1, 20)
    return "Add the numbers.", f"{a} and {b}", f"{a} and {b} make {a + b}."


def _copying(r: Random) -> tuple[str, str, str]:
    text = f"the {r.choice(_COLOURS)} {r.choice(_ANIMALS)} and the {r.choice(_COLOURS)} {r.choice(_ANIMALS)}"
    return "Repeat the words.", text, text


def _story(r: Random) -> tuple[str, str, str]:
    who, other = r.sample(_PEOPLE, 2)
    answer = (
        f"{who} found a {r.choice(_COLOURS)} {r.choice(_THINGS)} by the {r.choice(_PLACES)} and {other} was "
        f"{r.choice(_FEELINGS)}."
    )
    return "Write a short story.", f"about a {r.choice(_ANIMALS)}", answer


def _advice(r: Random) -> tuple[str, str, str]:
    thing, weather = r.choice(_THINGS), r.choice(_WEATHER)
    openings = (f"Take a {thing} along", f"Think of the {weather}", f"Ask {r.choice(_PEOPLE)}", f"Buy a {thing}")
    reasons = (f"it makes you {r.choice(_FEELINGS)}", f"the {weather} may come", f"a {r.choice(_ANIMALS)} would too")
    return (
        "Give a piece of advice.",
        f"for the {r.choice(_PLACES)}",
        f"{r.choice(openings)}, because {r.choice(reasons)}.",
    )


def _wrong(r: Random) -> tuple[str, str, str]:
    """A rule family's question with an answer that has nothing to do with it."""
    instruction, given, _ = r.choice((_grammar, _counting, _arithmetic))(r)
    words = r.sample(_THINGS + _WEATHER + _ANIMALS + _FEELINGS, 4)
    return instruction, given, " ".join(words) + "."


def _gibberish(r: Random) -> tuple[str, str, str]:
    instruction, given, _ = r.choice((_story, _advice, _copying))(r)
    letters = ["".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randrange(2, 6))) for _ in range(3)]
    return instruction, given, " ".join(letters)


FAMILIES = {
    "rule/grammar": (_grammar, 16),
    "rule/counting": (_counting, 10),
    "rule/arithmetic": (_arithmetic, 10),
    "rule/copying": (_copying, 14),
    "open/story": (_story, 16),
    "open/advice": (_advice, 14),
    "noise/wrong": (_wrong, 12),
    "noise/gibberish": (_gibberish, 8),
}


def demo_rows(num_examples: int, seed: int) -> list[dict[str, str]]:
    """Alpaca-shaped rows with a group, no two alike, in a fixed random order: the same for the same seed."""
    r = Random(seed)
    groups = list(FAMILIES)
    weights = [weight for _, weight in FAMILIES.values()]
    rows: dict[tuple[str, str, str], str] = {}
    while len(rows) < num_examples:
        group = r.choices(groups, weights)[0]
        make, _ = FAMILIES[group]
        rows.setdefault(make(r), group)
    return [{"instruction": i, "input": x, "output": y, "group": group} for (i, x, y), group in rows.items()]


def demo_texts(num_examples: int, seed: int) -> list[str]:
    """The set as texts with ChatML-like turns, to train a tokenizer on."""
    return [
        f"<|im_start|>user\n{row['instruction']}\n\n{row['input']}\n<|im_start|>assistant\n{row['output']}\n"
        for row in demo_rows(num_examples, seed)
    ]
