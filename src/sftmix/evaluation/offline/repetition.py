"""How much answers repeat themselves; words are what white space separates."""

from collections.abc import Iterable


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words of a text, in their order."""
    words = text.split()
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Share of different n-grams among all n-grams of some texts together, 0 to 1 (Li et al., 2016).

    It falls with the length of the texts, so it compares models that were asked the same. None where no text has n
    words.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else None


def repetition(text: str, n: int = 4) -> float | None:
    """Share of a text's n-grams that stood in it before, 0 to 1; None where it has fewer than n words."""
    found = ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else None
