"""What AlpacaEval-2 needs beside a model and a judge: the baseline's answers, the prompt template, the gamed rows."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.embedded import embedded_baseline
from sftmix.evaluation.alpaca_eval.files import BASELINE, GAMED, TEMPLATE, Named, find_file
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, read_gamed
from sftmix.evaluation.alpaca_eval.outputs import Output, read_outputs
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.alpaca_eval.scores import BASELINES, why_no_length_control
from sftmix.evaluation.alpaca_eval.template import DEMO_TEMPLATE, Template, parse_template, read_template
from sftmix.evaluation.results import part_name
from sftmix.evaluation.session import DEMO, Session

SUITE = "alpaca_eval"
BENCHMARK = "AlpacaEval-2"


class Materials(NamedTuple):
    """What answers are compared with, and how.

    Attributes:
        benchmark: what the questions are called in results.
        baseline: its answers; of a limit the first.
        beyond_limit: its other answers.
        baseline_sha256: of the file, or None where they are embedded.
        template: of the judge's prompt.
        gamed: for the length-controlled win rate, or None.
        refused: why there is no length-controlled win rate, or None.
    """

    benchmark: str
    baseline: list[Output]
    beyond_limit: list[Output]
    baseline_sha256: str | None
    template: Template
    gamed: Gamed | None
    refused: str | None


def gather(session: Session, suite: AlpacaEvalConfig) -> Materials:
    """Read what the settings name, or find it among the published files.

    Raises:
        InputError: something is not there, or is something else. Without the gamed rows alone the suite goes on.
    """
    is_demo = session.is_demo and suite.baseline is None
    file = None if is_demo else Path(suite.baseline) if suite.baseline else _find(session, BASELINE, "baseline")
    whole = embedded_baseline() if file is None else read_outputs(file)
    limit = session.config.limit if session.config.limit is not None else len(whole)
    baseline = whole[:limit]
    refused = why_no_length_control(len(baseline), whole[0].generator)
    gamed = None
    if refused is None:
        gamed, refused = find_gamed(session, suite)
    name = DEMO if is_demo else _name(whole)
    return Materials(
        part_name(name, limit, len(whole)),
        baseline,
        whole[limit:],
        hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None,
        _template(session, suite, is_demo),
        gamed,
        refused,
    )


def find_gamed(session: Session, suite: AlpacaEvalConfig) -> tuple[Gamed | None, str | None]:
    """The gamed rows, or why they cannot be had.

    Raises:
        InputError: the file is there and is something else, or the package that wants it is not installed.
    """
    try:
        file = Path(suite.gamed) if suite.gamed else find_file(GAMED, session.bench, session.cache)
    except InputError as error:
        return None, f"{error}; or give it by suite.gamed=FILE"
    if not file.is_file():
        return None, f"suite.gamed={suite.gamed}: no such file, expected df_gamed.csv"
    if find_spec("sklearn") is None:
        raise InputError("suite alpaca_eval: scikit-learn is not installed (pip install 'sftmix[eval]')")
    return read_gamed(file), None


def _name(baseline: list[Output]) -> str:
    """Answers to other questions, or compared with another model's, are another benchmark."""
    generator = baseline[0].generator
    if len(baseline) == NUM_QUESTIONS and generator in BASELINES:
        return BENCHMARK
    return f"{BENCHMARK}, {len(baseline)} questions against {generator or 'an unnamed model'}"


def _template(session: Session, suite: AlpacaEvalConfig, is_demo: bool) -> Template:
    if suite.prompt:
        return read_template(Path(suite.prompt))
    if is_demo:
        return parse_template(DEMO_TEMPLATE, "the embedded template")
    return read_template(_find(session, TEMPLATE, "prompt"))


def _find(session: Session, file: Named, key: str) -> Path:
    try:
        return find_file(file, session.bench, session.cache)
    except InputError as error:
        raise InputError(f"{error}; or give it by suite.{key}=FILE") from None
