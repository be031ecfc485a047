"""Preferences that are there, scored again: no model is loaded and nobody is asked."""

import math
from pathlib import Path
from typing import NamedTuple

from sftmix.errors import ConfigError
from sftmix.evaluation.alpaca_eval.annotations import (
    Annotation,
    in_order,
    read_annotations,
    refuse_other_answers,
)
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, why_approximate
from sftmix.evaluation.alpaca_eval.outputs import read_outputs
from sftmix.evaluation.alpaca_eval.preference import Rate
from sftmix.evaluation.alpaca_eval.questions import find_gamed
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.alpaca_eval.scores import score, why_no_length_control
from sftmix.evaluation.session import Session


class Rescoring(NamedTuple):
    """Preferences of a file.

    Attributes:
        file: they are from.
        annotations: in the questions' order, where that is known.
        gamed: for the length-controlled win rate, or None.
        refused: why there is none, or None.
    """

    file: Path
    annotations: list[Annotation]
    gamed: Gamed | None
    refused: str | None


def read_judged(session: Session, suite: AlpacaEvalConfig) -> Rescoring:
    """The preferences that the settings name, compared with the answers that they are said to be of.

    Raises:
        InputError: a file cannot be read, or they are of other questions or answers.
    """
    assert suite.annotations is not None
    for key, value in (("limit", session.config.limit), ("suite.prompt", suite.prompt)):
        if value is not None:
            raise ConfigError(f"{key}={value}: suite.annotations are scored as they are, nothing is asked")
    file = Path(suite.annotations)
    annotations = read_annotations(file)
    if suite.outputs:
        of = Path(suite.outputs)
        refuse_other_answers(annotations, read_outputs(of), file, of)
    if suite.baseline:
        of = Path(suite.baseline)
        annotations = in_order(annotations, read_outputs(of), file, of)
    refused = why_no_length_control(len(annotations), annotations[0].generators[0])
    annotations = sorted(annotations, key=lambda annotation: annotation.pair.index)
    if refused is None and [a.pair.index for a in annotations] != list(range(NUM_QUESTIONS)):
        refused = f"{file} does not say which question is which; suite.baseline=FILE, in the published order, does"
    gamed = None
    if refused is None:
        gamed, refused = find_gamed(session, suite)
    return Rescoring(file, annotations, gamed, refused)


def print_scores(judged: Rescoring) -> None:
    """Say the scores, with four digits.

    Raises:
        InputError: there is no preference.
    """
    preferences = [annotation.preference for annotation in judged.annotations]
    found = score([a.pair for a in judged.annotations], preferences, judged.gamed, str(judged.file))
    judged_of = len(preferences) - preferences.count(None), len(preferences)
    print(line("win_rate", found.win_rate, *judged_of), flush=True)
    if found.lc_win_rate is not None:
        print(line("lc_win_rate", found.lc_win_rate, *judged_of), flush=True)
        served = {a.served_model for a in judged.annotations if a.served_model is not None}
        unserved = set() if served else {a.annotator for a in judged.annotations}
        if (note := why_approximate(served, unserved)) is not None:
            print(note, flush=True)
    else:
        print(f"lc_win_rate refused: {judged.refused}", flush=True)


def line(name: str, rate: Rate, num_judged: int, num_questions: int) -> str:
    """A rate for people.

    Args:
        name: of it.
        rate: in percent.
        num_judged: pairs that have a preference.
        num_questions: pairs.
    """
    part = "" if num_judged == num_questions else f", {num_judged:,} of {num_questions:,} judged"
    error = f"standard error {rate.standard_error:.4f}, " if math.isfinite(rate.standard_error) else ""  # of one: none
    return f"{name} {rate.percent:.4f} ({error}n {rate.n:,}{part})"
