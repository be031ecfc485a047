"""A call of `eval.py`: everything is checked first, then the suites run in turn; results are written and printed."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.refusals import ANSWERED, JUDGED, check_settings, only_scores, reads_files, suites_of
from sftmix.evaluation.results import EVALUATION, Evaluation, write_evaluations
from sftmix.evaluation.schema import EvalConfig
from sftmix.evaluation.servers import check_judge
from sftmix.evaluation.session import DEMO, Session
from sftmix.evaluation.target import author_of, find_target
from sftmix.reports.page import Block, Cell, ReportPage, write_pages
from sftmix.reports.tables.columns import mean_cell


def run_suites(config: EvalConfig, given: Sequence[str] = ()) -> int:
    """Run the suites of a config and return the exit code."""
    suites = suites_of(config.suite)
    check_settings(config, suites, given)
    needs_model = not all(map(reads_files, suites.values()))
    root, suite = Path(config.root), config.suite
    target = find_target(config.run, config.revision, root) if needs_model else None
    if isinstance(suite, AlpacaEvalConfig) and suite.outputs is not None and not only_scores(suite):
        target = author_of(Path(suite.outputs), root)
    session = Session(config, target)
    if len(suites) > 1 and target is not None and target.run is None:
        print(f"offline     left out: {target.name} is a model alone, its held-out data are not known", flush=True)
        suites = {name: suite for name, suite in suites.items() if name != "offline"}
    modules = {name: import_module(f"sftmix.evaluation.{name}.suite") for name in suites}
    _check_all(session, suites, modules)
    if needs_model:  # what the model may lack, before it is read
        if not session.is_served or not set(suites) <= set(JUDGED):
            _ = session.device
        if any(name in ANSWERED for name in suites):
            session.check_answering()
    found: list[Evaluation] = []
    with nullcontext() if target is None or config.dry_run else session.alone(suites):
        for name, suite in suites.items():
            if len(suites) > 1:
                print(f"\n{name}", flush=True)
            evaluations = modules[name].evaluate(session, suite)
            if evaluations and target is not None:
                about = {"subject": target.name, "sftmix": version("sftmix")}
                evaluations = [replace(e, record={**about, **e.record}) for e in evaluations]
                folder = target.folder / EVALUATION
                for said in write_evaluations(folder, evaluations):
                    print(said, flush=True)
                print(f"written: {folder}", flush=True)
            found += [e for e in evaluations if e.suite != "offline"]  # offline prints its own page
    if found:
        print("\n" + write_pages([scores_page(session.target.name, found)], "text"), flush=True)
    return 0


def _check_all(session: Session, suites: Mapping[str, Any], modules: Mapping[str, Any]) -> None:
    """Raise one InputError for everything that the suites lack."""
    lacking: list[InputError] = []
    for name, suite in suites.items():
        try:
            if name in JUDGED and not only_scores(suite):
                check_judge(session.config.judge, name, session.config.dry_run)
            modules[name].check(session, suite)
        except InputError as error:
            if str(error) not in map(str, lacking):
                lacking.append(error)
    if len(lacking) == 1:
        raise lacking[0]
    if lacking:
        raise InputError("; and ".join(map(str, lacking)))


def scores_page(name: str, evaluations: Sequence[Evaluation]) -> ReportPage:
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
                cells = Cell(benchmark), Cell(column), mean_cell(values, 2), Cell(str(len(values)))
                block.rows.append(cells)
            sums = [sum(e.counts.get(count, 0) for e in rounds) for count in counts]
            counted.rows.append((Cell(benchmark), *(Cell(f"{total:,}") for total in sums)))
        page.blocks += [block, counted]
    if any(e.round > 1 for e in evaluations):
        page.notes.append("mean ± standard deviation over rounds")
    if any(e.suite == "medical" for e in evaluations):
        page.notes.append("free: the right letter is the likeliest of all tokens, not of the letters alone")
    if any(e.judge == "fake" for e in evaluations):
        page.notes.append("judge fake rates by a hash: its scores say nothing about the model")
    if any(e.benchmark.startswith(DEMO) for e in evaluations):
        page.notes.append("benchmark demo are embedded questions: no published score is of them")
    return page
