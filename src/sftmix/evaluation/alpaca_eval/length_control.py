"""The length-controlled win rate: the win rate as if all answers were as long as the baseline's.

Dubois et al. 2024 (arXiv 2404.04475): a logistic regression of the judge's preference on the difference of lengths,
the difficulty of the instruction, and the model. The win rate is predicted without the length term. AlpacaEval's own
program is not used, because it needs an argument that scikit-learn has removed, and runs scripts to fetch data.
"""

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sftmix.errors import InputError
from sftmix.evaluation.published import read_records

NUM_QUESTIONS = 805
JUDGE = ("gpt-4-turbo", "gpt-4-1106-preview")  # judges with which the difficulties were estimated
GAMED_WEIGHT = 0.2 / 2  # of a row of one of the two gamed baselines
INVERSE_PENALTIES = np.logspace(-4, 4, 10)
NUM_FOLDS = 5
SEED = 123
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


def why_approximate(served_models: Collection[str], annotators: Collection[str] = ()) -> str | None:
    """Return why a length-controlled win rate is approximate; None if its constants were estimated with this judge.

    Args:
        served_models: Models that judged.
        annotators: Names of judges whose model is not known, such as weighted_alpaca_eval_gpt4_turbo.
    """
    named = [_plain(model) for model in JUDGE]
    others = {model for model in served_models if model not in JUDGE}
    others |= {name for name in annotators if not any(model in _plain(name) for model in named)}
    if not others:
        return None
    here = ", ".join(sorted(name or "unnamed" for name in others))
    return f"LC WR is approximate: its constants were estimated with the judge {JUDGE[0]}, here the judge is {here}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Gamed(NamedTuple):
    """Comparisons of the baseline with itself asked to be verbose or concise. They show the effect of length."""

    length: np.ndarray  # Difference of lengths in standard deviations, by row
    difficulty: np.ndarray  # Difficulty of the instruction, by row
    preference: np.ndarray  # From 0 (the baseline) to 1 (the verbose or concise answer), by row
    difficulty_of: np.ndarray  # Difficulty of each of the 805 instructions


def read_gamed(file: Path) -> Gamed:
    """Return the rows of `df_gamed.csv` that have a preference.

    Raises:
        InputError: If the file cannot be read, lacks a column or an instruction, or has a wrong value.
    """
    rows = read_records(file)
    if lacking := [column for column in COLUMNS if column not in rows[0].fields]:
        raise InputError(f"{file}: no column {', '.join(lacking)}, expected the columns of df_gamed.csv")
    difficulty_of: dict[int, float] = {}
    kept = []
    for row in rows:
        fields = row.fields
        try:
            index, length, difficulty = int(fields[COLUMNS[0]]), float(fields[COLUMNS[2]]), float(fields[COLUMNS[3]])
            preference = float(fields[COLUMNS[1]] or "nan")
        except ValueError:
            raise InputError(f"{row.where}: has a value that is not a number") from None
        if fields[COLUMNS[4]] != "False":
            raise InputError(f"{row.where}: not_gamed_baseline is {fields[COLUMNS[4]]}, expected False")
        difficulty_of.setdefault(index, difficulty)
        if not math.isnan(preference):
            kept.append((length, difficulty, preference))
    if sorted(difficulty_of) != list(range(NUM_QUESTIONS)):
        raise InputError(f"{file}: has {len(difficulty_of):,} instructions, expected {NUM_QUESTIONS}, counted from 0")
    columns = np.asarray(kept, dtype=np.float64).reshape(-1, 3).T
    difficulties = np.asarray([difficulty_of[i] for i in range(NUM_QUESTIONS)])
    is_finite = np.isfinite(columns).all() and np.isfinite(difficulties).all()
    if not is_finite or ((columns[2] < 0) | (columns[2] > 1)).any():
        raise InputError(f"{file}: has a preference outside 0 to 1, or a length or difficulty that is not a number")
    return Gamed(columns[0], columns[1], columns[2], difficulties)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))  # no overflow on either side


def length_controlled_shares(
    lengths_1: np.ndarray, lengths_2: np.ndarray, preferences: np.ndarray, gamed: Gamed
) -> np.ndarray:
    """Return the probability that the model wins at the baseline's length, 0 to 1, for each of the 805 questions.

    Args:
        lengths_1: Lengths of the baseline's answers in characters, in the order of the 805.
        lengths_2: Lengths of the model's answers.
        preferences: 1 to 2, or NaN. A question without a preference is left out of the fit only.
    """
    difference = (lengths_1 - lengths_2).astype(np.float64)
    spread = float(np.std(difference, ddof=1))
    length = np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))
    has_preference = ~np.isnan(preferences)
    model_rows = np.column_stack([length, gamed.difficulty_of, np.ones(len(length))])[has_preference]
    gamed_rows = np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.length))])
    weights = np.concatenate([np.full(len(gamed_rows), GAMED_WEIGHT), np.ones(len(model_rows))])
    target = np.concatenate([gamed.preference, preferences[has_preference] - 1])
    _, by_difficulty, by_model = _fit(np.concatenate([gamed_rows, model_rows]), target, weights)
    return _logistic(by_difficulty * gamed.difficulty_of + by_model)


def _fit(features: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients of an L1 logistic regression, with the best of ten penalties in cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    rows = np.arange(len(features))
    both = np.concatenate([rows, rows])  # each row twice, as won and as lost, always in the same fold
    folds = list(GroupKFold(n_splits=NUM_FOLDS).split(both, groups=both))

    def coefficients(penalty: float, chosen: np.ndarray) -> np.ndarray:
        model = LogisticRegression(
            C=penalty, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=SEED, max_iter=1000
        )
        labels = (chosen < len(rows)).astype(int)
        of = both[chosen]
        model.fit(features[of], labels, sample_weight=weights[of] * np.where(labels == 1, target[of], 1 - target[of]))
        return np.asarray(model.coef_[0])

    def loss(coefficient: np.ndarray, held_out: np.ndarray) -> float:
        of = held_out[held_out < len(rows)]  # each row once: twice would give the same mean
        share = np.clip(_logistic(features[of] @ coefficient), 1e-15, 1 - 1e-15)
        return -float(np.mean(weights[of] * (target[of] * np.log(share) + (1 - target[of]) * np.log(1 - share))))

    losses = [np.mean([loss(coefficients(c, fit), out) for fit, out in folds]) for c in INVERSE_PENALTIES]
    return coefficients(INVERSE_PENALTIES[int(np.argmin(losses))], np.arange(len(both)))
