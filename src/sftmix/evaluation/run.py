"""A call of `eval.py`: everything is checked first, then the suites run in turn; results are written and printed."""

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.refusals import check_settings, suites_of
from sftmix.evaluation.results import EVALUATION, Evaluation, write_evaluations
from sftmix.evaluation.schema import EvalConfig
from sftmix.evaluation.servers import check_judge
from sftmix.evaluation.session import DEMO, Session
from sftmix.evaluation.suite_config import SuiteConfig
from sftmix.evaluation.target import Target, author_of, find_target
from sftmix.reports.page import Block, Cell, ReportPage, write_pages
from sftmix.reports.tables.columns import mean_cell


def run_suites(config: EvalConfig, given: Sequence[str] = ()) -> int:
    """Run the suites of a config and return the exit code."""
    suites = suites_of(config.suite)
    check_settings(config, suites, given)
    target = _target_of(config, suites)
    if len(suites) > 1 and target is not None:
        suites = _applicable(suites, target)
    session = Session(config, target)
    modules = {name: import_module(f"sftmix.evaluation.{name}.suite") for name in suites}
    _check_all(session, suites, modules)
    if any(suite.needs_run for suite in suites.values()):  # what the model may lack, before it is read
        _check_model(session, suites)
    found: list[Evaluation] = []
    with nullcontext() if target is None or config.dry_run else session.locked(suites), closing(session):
        for name, suite in suites.items():
            if len(suites) > 1:
                print(f"\n{name}", flush=True)
            evaluations = []
            for evaluation in modules[name].evaluate(session, suite):
                evaluations.append(evaluation if target is None else _written(evaluation, target))
            if evaluations and target is not None:
                print(f"written: {target.folder / EVALUATION}", flush=True)
            if not suite.prints_scores:
                found += evaluations
    if found:
        print("\n" + write_pages([scores_page(session.target.name, found, suites)], "text"), flush=True)
    return 0


def _written(evaluation: Evaluation, target: Target) -> Evaluation:
    """Write an evaluation at once, since the suite may be stopped before its next one; return it as written."""
    about = {"subject": target.name, "sftmix": version("sftmix")}
    evaluation = replace(evaluation, record={**about, **evaluation.record})
    for line in write_evaluations(target.folder / EVALUATION, [evaluation]):
        print(line, flush=True)
    return evaluation


def _target_of(config: EvalConfig, suites: Mapping[str, SuiteConfig]) -> Target | None:
    """Return the model that is evaluated, or the author of existing answers; None if judgments are scored."""
    root = Path(config.root)
    if any(suite.needs_run for suite in suites.values()):
        return find_target(config.run, config.revision, root)
    for suite in suites.values():
        if suite.has_answers and not suite.scores_judgments:
            return author_of(Path(getattr(suite, str(suite.answers_from))), root)
    return None


def _applicable(suites: Mapping[str, SuiteConfig], target: Target) -> Mapping[str, SuiteConfig]:
    """Return the suites of several that can evaluate a model; print why the others are left out."""
    reasons = {name: suite.why_left_out(target) for name, suite in suites.items()}
    for name, why in reasons.items():
        if why is not None:
            print(f"{name:11} left out: {why}", flush=True)
    return {name: suite for name, suite in suites.items() if reasons[name] is None}


def _check_model(session: Session, suites: Mapping[str, SuiteConfig]) -> None:
    """Check that the model can compute here if it has to, and that it can answer if a suite needs answers."""
    if any(suite.computes_here(is_served=session.is_served) for suite in suites.values()):
        _ = session.num_devices
    if any("generate" in suite.reads for suite in suites.values()):
        session.check_answering()


def _check_all(session: Session, suites: Mapping[str, SuiteConfig], modules: Mapping[str, Any]) -> None:
    """Raise one InputError for everything that the suites lack."""
    lacking: list[InputError] = []
    for name, suite in suites.items():
        try:
            if suite.needs_judge:
                check_judge(session.config.judge, name, session.config.dry_run)
            modules[name].check(session, suite)
        except InputError as error:
            if str(error) not in map(str, lacking):
                lacking.append(error)
    if len(lacking) == 1:
        raise lacking[0]
    if lacking:
        raise InputError("; and ".join(map(str, lacking)))


def scores_page(name: str, evaluations: Sequence[Evaluation], suites: Mapping[str, SuiteConfig]) -> ReportPage:
    """Return the scores of a model: mean and standard deviation over rounds, never over judges."""
    page = ReportPage(name, [name], [])
    together: dict[tuple[str, str | None], dict[str, list[Evaluation]]] = {}
    for e in evaluations:
        together.setdefault((e.suite, e.judge), {}).setdefault(e.benchmark, []).append(e)
    for (suite, judge), benchmarks in together.items():
        title = suite if judge is None else f"{suite}, judge {judge}"
        block = Block(title, ("benchmark", "score"), ("mean", "rounds"))
        counts = list(dict.fromkeys(c for rounds in benchmarks.values() for e in rounds for c in e.counts))
        counted = Block("counts, over all rounds", ("benchmark",), tuple(c.replace("_", " ") for c in counts))
        for benchmark, rounds in benchmarks.items():
            for column in dict.fromkeys(c for e in rounds for c in e.scores):
                values = [e.scores[column] for e in rounds if column in e.scores]
                cells = Cell(benchmark), Cell(column), mean_cell(values, suites[suite].decimals), Cell(str(len(values)))
                block.rows.append(cells)
            sums = [sum(e.counts.get(count, 0) for e in rounds) for count in counts]
            counted.rows.append((Cell(benchmark), *(Cell(f"{total:,}") for total in sums)))
        page.blocks += [block, counted]
    if any(e.round > 1 for e in evaluations):
        page.notes.append("mean ± standard deviation over rounds")
    page.notes += [note for suite in suites.values() for note in suite.notes]
    if any(e.judge == "fake" for e in evaluations):
        page.notes.append("judge fake rates by a hash: its scores say nothing about the model")
    if any(e.benchmark.startswith(DEMO) for e in evaluations):
        page.notes.append(
            "benchmark demo: the questions are embedded in the program, no published score belongs to them"
        )
    return page
