"""Find the files of AlpacaEval-2: answers of the baseline, prompt template of the judge, gamed rows."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.embedded import DEMO_TEMPLATE, embedded_baseline
from sftmix.evaluation.alpaca_eval.judging import Template, parse_template, read_template
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, read_gamed
from sftmix.evaluation.alpaca_eval.outputs import Output, read_outputs
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.alpaca_eval.scores import BASELINES, why_no_length_control
from sftmix.evaluation.published import Published, locate
from sftmix.evaluation.results import part_name
from sftmix.evaluation.session import DEMO, Session

SUITE = "alpaca_eval"
BENCHMARK = "AlpacaEval-2"
_HUB = "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/2edc6fad8be6b14ea7230aabfd08188da6b8b814"
_GITHUB = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/15fd513071d389b79dab27fd464800c6fe10c15a"


def _published(name: str, url: str, *also: str, sha256: str | None = None) -> Published:
    """Return a published file that may have other names, or be in the subfolder `alpaca_eval`."""
    return Published(name, url, sha256, (*also, *(f"{SUITE}/{other}" for other in (name, *also))))


BASELINE = _published(
    "gpt4_1106_preview_outputs.json", f"{_HUB}/alpaca_eval_gpt4_baseline.json", "alpaca_eval_gpt4_baseline.json"
)
# A file of the second name has other rows than the published file and gives the same fit.
GAMED = _published("df_gamed.csv", f"{_HUB}/df_gamed.csv", "df_gamed_equivalent.csv")
TEMPLATE = _published(
    "alpaca_eval_clf.txt",
    f"{_GITHUB}/src/alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
    sha256="784227e6dc2832fc08c43d2c8ea3a308e7523780187a1aaad2f85e30bac85f62",
)


class AlpacaQuestions(NamedTuple):
    """The baseline, the judge's prompt and the gamed rows."""

    benchmark: str  # Name of the questions in results
    baseline: list[Output]  # Answers of the baseline, up to the limit
    beyond_limit: list[Output]  # The other answers of the baseline
    baseline_sha256: str | None  # Hash of the file, or None if the answers are embedded
    template: Template  # Prompt of the judge
    gamed: Gamed | None  # For the length-controlled win rate, or None
    refused: str | None  # Why there is no length-controlled win rate, or None


def read_questions(session: Session, suite: AlpacaEvalConfig) -> AlpacaQuestions:
    """Read the files that the config names, or the published files."""
    is_demo = session.is_demo and suite.baseline is None
    file = None if is_demo else Path(suite.baseline) if suite.baseline else _find(session, BASELINE, "baseline")
    whole = embedded_baseline() if file is None else read_outputs(file)
    limit = session.config.limit if session.config.limit is not None else len(whole)
    baseline, generator = whole[:limit], whole[0].generator
    refused = why_no_length_control(len(baseline), generator)
    gamed = None
    if refused is None:
        gamed, refused = find_gamed(session, suite)
    if is_demo:
        name = DEMO
    elif len(whole) == NUM_QUESTIONS and generator in BASELINES:
        name = BENCHMARK
    else:  # other questions, or another baseline, are another benchmark
        name = f"{BENCHMARK}, {len(whole)} questions against {generator or 'an unnamed model'}"
    if suite.prompt:
        template = read_template(Path(suite.prompt))
    elif is_demo:
        template = parse_template(DEMO_TEMPLATE, "the embedded template")
    else:
        template = read_template(_find(session, TEMPLATE, "prompt"))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None
    return AlpacaQuestions(
        part_name(name, limit, len(whole)), baseline, whole[limit:], sha256, template, gamed, refused
    )


def find_gamed(session: Session, suite: AlpacaEvalConfig) -> tuple[Gamed | None, str | None]:
    """Return the gamed rows, or None and the reason.

    Raises:
        InputError: If the file has other content, or scikit-learn is not installed.
    """
    try:
        file = Path(suite.gamed) if suite.gamed else locate(GAMED, session.bench, session.cache)
    except InputError as error:
        return None, f"{error}; suite.gamed=FILE names the file"
    if not file.is_file():
        return None, f"suite.gamed={suite.gamed}: no such file, expected df_gamed.csv"
    if find_spec("sklearn") is None:
        raise InputError("suite alpaca_eval: scikit-learn is not installed (pip install 'sftmix[eval]')")
    return read_gamed(file), None


def _find(session: Session, file: Published, key: str) -> Path:
    try:
        return locate(file, session.bench, session.cache)
    except InputError as error:
        raise InputError(f"{error}; suite.{key}=FILE names the file") from None
