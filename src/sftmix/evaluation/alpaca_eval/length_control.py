"""The length-controlled win rate: what the win rate would be if all answers were as long as the baseline's.

Dubois et al. 2024 (arXiv 2404.04475): a logistic regression of the judge's preference on the difference of lengths,
the difficulty of the instruction and the model, whose length term is then left out. AlpacaEval's own program is not
used: it pins scikit-learn's removed `penalty`, and fetches its data by scripts.
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
JUDGE = ("gpt-4-turbo", "gpt-4-1106-preview")  # the models under which the difficulties were estimated
GAMED_WEIGHT = 0.2 / 2  # of the rows of two gamed baselines
INVERSE_PENALTIES = np.logspace(-4, 4, 10)
NUM_FOLDS = 5
SEED = 123
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


def why_approximate(served_models: Collection[str], annotators: Collection[str] = ()) -> str | None:
    """Return why a length-controlled win rate is approximate; None if the judge is that of its constants.

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
    return f"the constants of LC WR were estimated with {JUDGE[0]} as judge, here it is {here}: it is approximate"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Gamed(NamedTuple):
    """Rows of the baseline against itself with a request to be wordy, or brief: they show the effect of length."""

    length: np.ndarray  # Difference of lengths in standard deviations, of each row
    difficulty: np.ndarray  # Difficulty of the instruction, of each row
    preference: np.ndarray  # From 0 (the baseline) to 1 (the gamed one), of each row
    difficulty_of: np.ndarray  # Difficulty of each of the 805 instructions


def read_gamed(file: Path) -> Gamed:
    """Return the rows of `df_gamed.csv` that have a preference.

    Raises:
        InputError: If the file cannot be read, lacks a column or an instruction, or has a value that is not a number.
    """
    rows = read_records(file)
    if lacking := [column for column in COLUMNS if column not in rows[0].fields]:
        raise InputError(f"{file}: no column {', '.join(lacking)}, expected those of df_gamed.csv")
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
    """Return for each of the 805 questions how far the model would win it at the baseline's length, 0 to 1.

    Args:
        lengths_1: Lengths of the baseline's answers in characters, in the order of the 805.
        lengths_2: Lengths of the model's answers.
        preferences: 1 to 2; NaN if there is none. Such a question is left out of the fit only.
    """
    difference = (lengths_1 - lengths_2).astype(np.float64)
    spread = float(np.std(difference, ddof=1))
    length = np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))
    is_there = ~np.isnan(preferences)
    model_rows = np.column_stack([length, gamed.difficulty_of, np.ones(len(length))])[is_there]
    gamed_rows = np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.length))])
    weights = np.concatenate([np.full(len(gamed_rows), GAMED_WEIGHT), np.ones(len(model_rows))])
    target = np.concatenate([gamed.preference, preferences[is_there] - 1])
    _, by_difficulty, by_model = _fit(np.concatenate([gamed_rows, model_rows]), target, weights)
    return _logistic(by_difficulty * gamed.difficulty_of + by_model)


def _fit(features: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients of an L1 logistic regression on shares, with the best penalty of ten on 5 folds."""
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
        of = held_out[held_out < len(rows)]  # once each; twice would be the same mean
        share = np.clip(_logistic(features[of] @ coefficient), 1e-15, 1 - 1e-15)
        return -float(np.mean(weights[of] * (target[of] * np.log(share) + (1 - target[of]) * np.log(1 - share))))

    losses = [np.mean([loss(coefficients(c, fit), out) for fit, out in folds]) for c in INVERSE_PENALTIES]
    return coefficients(INVERSE_PENALTIES[int(np.argmin(losses))], np.arange(len(both)))
