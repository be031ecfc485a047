"""What the most and the least confident examples are about: terms with odds, and shares of kinds by stated rules."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sftmix.analysis.proportions import NORMAL_QUANTILE, Estimate, proportion
from sftmix.analysis.root_verbs import Root

FEWEST_INSTRUCTIONS = 3  # that have a term
MOST_WORDS = 2  # of a term

CREATIVE_VERBS = frozenset(
    "write compose create generate invent imagine brainstorm design craft make tell come suggest produce devise draft "
    "construct develop".split()
)
CREATIVE_NOUNS = re.compile(
    r"\b(?:stor(?:y|ies)|poems?|haikus?|sonnets?|limericks?|lyrics?|songs?|raps?|jokes?|riddles?|puns?|slogans?|"
    r"taglines?|mottos?|tales?|fables?|novels?|scripts?|scenes?|plots?|dialogues?|monologues?|characters?|metaphors?|"
    r"similes?|captions?|fiction(?:al)?|poetry|ballads?|verses?|blog posts?|tweets?|ads?|advertisements?|jingles?)\b",
    re.I,
)
PLACEHOLDER = re.compile(r"<\s*no\s*(?:in|out)put\s*>|^\s*(?:n/?a|none|no (?:in|out)put)\s*[.!]?\s*$", re.I)
ABSENT = re.compile(
    r"\b(?:attached|this (?:image|picture|photo|photograph|painting|video|audio|song|recording|link|url|website|chart|"
    r"graph|diagram)|the (?:image|picture|photo|photograph|video|audio) (?:below|above|attached)|today's (?:weather|"
    r"news|date)|current (?:weather|time|temperature|stock price))\b",
    re.I,
)
REFUSAL = re.compile(
    r"\b(?:as an ai|i(?: a|')m (?:sorry|unable|not able)|i (?:can ?not|can't|am unable|do not have (?:access|enough)|"
    r"don't have (?:access|enough))|(?:is|are) not possible to|impossible to (?:say|answer|determine|know)|"
    r"cannot be (?:answered|determined)|not enough (?:information|context)|insufficient (?:information|context))\b",
    re.I,
)


class Text(NamedTuple):
    """What a rule reads."""

    instruction: str
    response: str
    root: Root


class Rule(NamedTuple):
    """A kind of example, and the rule that assigns it."""

    name: str
    states: str  # The rule in words
    holds: Callable[[Text], bool]


def is_creative(text: Text) -> bool:
    """Return whether a verb of making has a creative noun in the instruction."""
    return text.root.verb in CREATIVE_VERBS and CREATIVE_NOUNS.search(text.instruction) is not None


def is_noisy(text: Text) -> bool:
    """Return whether a text is damaged, a placeholder, empty, or its response repeats the instruction."""
    both, response = f"{text.instruction}\n{text.response}", text.response.strip()
    letters = sum(c.isalnum() or c.isspace() for c in both)
    return (
        not response
        or PLACEHOLDER.search(text.instruction) is not None
        or PLACEHOLDER.search(response) is not None
        or "\ufffd" in both
        or "Ã" in both
        or letters < 0.6 * len(both)
        or response.casefold() == text.instruction.strip().casefold()
    )


def is_unanswerable(text: Text) -> bool:
    """Return whether the instruction needs what is not in it, or the response declines."""
    return ABSENT.search(text.instruction) is not None or REFUSAL.search(text.response) is not None


RULES = (
    Rule(
        "creative",
        "the root verb is one of making (write, create, compose, ...) and the instruction has a creative "
        "noun (story, poem, slogan, ...)",
        is_creative,
    ),
    Rule(
        "noisy",
        "no response, a placeholder (<noinput>, n/a), a damaged character, under 60% letters, digits and "
        "spaces, or a response that repeats the instruction",
        is_noisy,
    ),
    Rule(
        "unanswerable",
        "the instruction refers to what is not in it (an image, a link, the current weather), or the "
        "response declines (I cannot, not enough information, ...)",
        is_unanswerable,
    ),
)


class Term(NamedTuple):
    """A term of the instructions of two sets."""

    term: str
    confident: int  # Confident instructions that have it
    unconfident: int
    odds: Estimate  # Odds ratio of confident against unconfident
    difference: float  # Of the mean TF-IDF weight, confident minus unconfident


def terms_of(confident: Sequence[str], unconfident: Sequence[str], number: int) -> tuple[list[Term], list[Term]]:
    """Return the terms that tell confident instructions from unconfident ones, and the reverse, the strongest first.

    Terms are words and pairs of words without stop words. They are ranked by the difference of the mean TF-IDF weight.
    The odds ratio counts the instructions that have a term (`odds_ratio`).

    Raises:
        ValueError: If no term is in enough instructions.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = min(FEWEST_INSTRUCTIONS, len(confident) + len(unconfident))
    vectorizer = TfidfVectorizer(stop_words="english", ngram_range=(1, MOST_WORDS), min_df=least)
    try:
        weights = vectorizer.fit_transform([*confident, *unconfident])
    except ValueError:
        raise ValueError(f"no term is in {least} instructions") from None
    first, second = weights[: len(confident)], weights[len(confident) :]
    difference = np.asarray(first.mean(axis=0) - second.mean(axis=0)).ravel()
    counts = [np.asarray((part > 0).sum(axis=0)).ravel() for part in (first, second)]
    names = vectorizer.get_feature_names_out()

    def term(index: int) -> Term:
        c, u = int(counts[0][index]), int(counts[1][index])
        odds = odds_ratio(c, len(confident), u, len(unconfident))
        return Term(str(names[index]), c, u, odds, float(difference[index]))

    order = np.argsort(-difference, kind="stable")
    return (
        [term(k) for k in order[:number] if difference[k] > 0],
        [term(k) for k in order[::-1][:number] if difference[k] < 0],
    )


def odds_ratio(one: int, of_one: int, other: int, of_other: int) -> Estimate:
    """Return the odds ratio of two shares: 1/2 added to each count (Haldane 1956), normal interval.

    Args:
        one: Number of the first set that have a property, of `of_one`.
        other: The same of the second set.
    """
    cells = [one + 0.5, of_one - one + 0.5, other + 0.5, of_other - other + 0.5]
    log = math.log(cells[0] * cells[3] / (cells[1] * cells[2]))
    half = NORMAL_QUANTILE * math.sqrt(sum(1 / cell for cell in cells))
    return Estimate(math.exp(log), math.exp(log - half), math.exp(log + half), of_one + of_other)


def shares_by_rule(texts: Sequence[Text]) -> dict[str, Estimate]:
    """Return the share of the texts of each kind. A text may be of several kinds, or of none."""
    return {rule.name: proportion(sum(map(rule.holds, texts)), len(texts)) for rule in RULES}


def most_frequent(roots: Sequence[Root], number: int) -> list[tuple[str, int]]:
    """Return the most frequent pairs of verb and object with their counts. Ties are in alphabetical order."""
    counts = Counter(map(str, roots))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]


def most_frequent_verbs(roots: Sequence[Root], number: int) -> list[tuple[str, int]]:
    """Return the most frequent root verbs with their counts; a question word has a question mark."""
    counts = Counter(f"{root.verb} ...?" if root.is_question else root.verb or "(no word)" for root in roots)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]
