"""Whether two sets of hidden states lie apart: a linear probe on held-out examples, and the silhouette on a plane."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.proportions import Estimate, proportion

FOLDS = 5
SHUFFLES = 5
PENALTY = 0.01  # scikit-learn's C: inverse strength of the squared penalty on the standardized states
FEWEST = 2 * FOLDS  # examples of each label that a probe needs

Labels = NDArray[np.bool_]
States = NDArray[np.floating[Any]]


class Separation(NamedTuple):
    """How far the confident and the unconfident examples lie apart, beside what length and chance give."""

    num_examples: int
    num_pairs: int  # Pairs of equal length
    probe: Estimate  # Held-out accuracy of the linear probe on the hidden states
    matched: Estimate | None  # The same over pairs of equal length; None if there are too few
    length_only: Estimate  # Held-out accuracy of a probe that only sees the length
    shuffled: tuple[float, float]  # Lowest and highest accuracy of the probe for shuffled labels
    length_split: Estimate  # Held-out accuracy of the probe for the longer against the shorter half


def separation(states: States, is_confident: Labels, num_tokens: NDArray[np.int64], seed: int = 0) -> Separation:
    """Return the separation of confident and unconfident examples by their hidden states.

    Args:
        states: Hidden states `[example, dim]`.
        num_tokens: Response tokens `[example]`.

    Raises:
        ValueError: If there are too few examples of one label.
    """
    generator = np.random.default_rng(seed)
    shuffled = [probe_accuracy(states, generator.permutation(is_confident), seed=seed).value for _ in range(SHUFFLES)]
    length = np.log(num_tokens.astype(np.float64))
    pairs = pairs_of_equal_length(is_confident, num_tokens, seed)
    members, matched = pairs.ravel(), None
    if len(pairs) >= FEWEST:
        units = np.repeat(np.arange(len(pairs)), 2)
        matched = probe_accuracy(states[members], is_confident[members], units=units, seed=seed)
    return Separation(
        len(states),
        len(pairs),
        probe_accuracy(states, is_confident, seed=seed),
        matched,
        probe_accuracy(np.stack([length, length**2], axis=1), is_confident, seed=seed),
        (min(shuffled), max(shuffled)),
        probe_accuracy(states, longer_half(num_tokens, seed), seed=seed),
    )


def probe_accuracy(
    states: States, labels: Labels, *, units: NDArray[np.int64] | None = None, seed: int = 0
) -> Estimate:
    """Return the held-out accuracy of a linear probe, with Wilson's interval over the units.

    The probe is a logistic regression with a squared penalty on standardized states. Each example is predicted once, by
    the probe of the folds that the example is not in. Mean and standard deviation of the states are of those folds too.

    Args:
        units: Unit of each example, such as a pair with one example of each label. A unit is never divided between
            folds, and the interval counts units. If None, each example is a unit and the folds are stratified.

    Raises:
        ValueError: If there are too few examples of one label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fewest = min(int(labels.sum()), int((~labels).sum()))
    if fewest < FEWEST:
        raise ValueError(f"{fewest} examples of one label, expected at least {FEWEST} for {FOLDS} folds")
    if units is None:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(states, labels)
    else:
        folds = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(states, labels, units)
    right = np.zeros(len(labels), dtype=bool)
    for train, test in folds:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
        right[test] = probe.fit(states[train], labels[train]).predict(states[test]) == labels[test]
    num_units = len(labels) if units is None else len(np.unique(units))
    return proportion(right.mean() * num_units, num_units)


def pairs_of_equal_length(is_confident: Labels, num_tokens: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """Return as many pairs (confident, unconfident) of the same number of response tokens as there are, at random.

    The result has the shape `[pair, 2]` and holds indices of examples. No example is in two pairs.
    """
    generator = np.random.default_rng(seed)
    pairs = []
    for length in np.unique(num_tokens):
        confident, unconfident = (
            generator.permutation(np.flatnonzero((num_tokens == length) & (is_confident == label)))
            for label in (True, False)
        )
        number = min(len(confident), len(unconfident))
        pairs.append(np.stack([confident[:number], unconfident[:number]], axis=1))
    return np.concatenate(pairs)


def longer_half(num_tokens: NDArray[np.int64], seed: int = 0) -> Labels:
    """Return which examples are in the longer half. Examples of equal length are ordered at random."""
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.permutation(len(num_tokens)), -num_tokens))
    is_longer = np.zeros(len(num_tokens), dtype=bool)
    is_longer[order[: len(order) // 2]] = True
    return is_longer


def plane(states: States, seed: int = 0) -> NDArray[np.float64]:
    """Return the t-SNE of hidden states, `[example, 2]`: perplexity 30 or a third of the examples, from the PCA."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(states) - 1) / 3)
    drawn: NDArray[np.float64] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(states)
    return drawn


def silhouettes(points: NDArray[np.float64], labels: Sequence[Labels]) -> list[float]:
    """Return the mean silhouette (-1 to 1, 0 if sets overlap) of points under each labelling."""
    from sklearn.metrics import silhouette_score

    return [float(silhouette_score(points, each)) for each in labels]
