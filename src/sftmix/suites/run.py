"""A call of `eval.py`: everything checked first, then one suite after the other, their results written and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from sftmix.errors import ConfigError, InputError
from sftmix.eval_config import AllSuites, AlpacaEval, EvalConfig, Human, MtBench
from sftmix.evaluation.results import EVALUATION, Evaluation, write_evaluations
from sftmix.reports.groups import figure
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.suites.answering import SERVED, check_answering
from sftmix.suites.judging import check_judge
from sftmix.suites.subject import Subject, author_of, find_subject
from sftmix.suites.work import DEMO, Work

JUDGED = ("mt_bench", "alpaca_eval")
ANSWERED = (*JUDGED, "offline")  # questions that the model answers in words


def run_suites(config: EvalConfig) -> int:
    """Run the suites that are asked for; the exit code.

    Raises:
        InputError: something is lacking or wrong; nothing was asked then.
    """
    suites = _suites(config.suite)
    _check_settings(config, suites)
    wants_model = not all(map(_reads_files, suites.values()))
    root = _root(config)
    subject = find_subject(config.run, config.revision, root) if wants_model else _author(config.suite, root)
    work = Work(config, subject)
    modules = {name: import_module(f"sftmix.suites.{name}") for name in suites}
    if wants_model and any(name in ANSWERED for name in suites):
        check_answering(work)
    for name, suite in suites.items():
        if name in JUDGED and not _only_scores(suite):
            check_judge(config.judge, name, config.dry_run)
        modules[name].check(work, suite)
    found: list[Evaluation] = []
    for name, suite in suites.items():
        if len(suites) > 1:
            print(f"\n{name}", flush=True)
        evaluations = modules[name].evaluate(work, suite)
        if evaluations and subject is not None:
            folder = subject.folder / EVALUATION
            write_evaluations(folder, evaluations)
            print(f"written: {folder}", flush=True)
        found += [e for e in evaluations if e.suite != "offline"]  # it has shown a page of its own
    if found:
        print("\n" + write_pages([scores_page(work.subject.name, found)], "text"), flush=True)
    return 0


def scores_page(name: str, evaluations: Sequence[Evaluation]) -> Page:
    """The scores of a model: mean and standard deviation over rounds, never over judges."""
    page = Page(name, [name], [])
    together: dict[tuple[str, str | None], dict[str, list[Evaluation]]] = {}
    for e in evaluations:
        together.setdefault((e.suite, e.judge), {}).setdefault(e.benchmark, []).append(e)
    for (suite, judge), benchmarks in together.items():
        columns = list(dict.fromkeys(c for rounds in benchmarks.values() for e in rounds for c in e.scores))
        title = suite if judge is None else f"{suite}, judge {judge}"
        block = Block(title, ("score",), tuple(benchmarks))
        for column in columns:
            cells = (_score([e.scores[column] for e in r if column in e.scores]) for r in benchmarks.values())
            block.rows.append((Cell(column), *cells))
        counts = list(dict.fromkeys(c for rounds in benchmarks.values() for e in rounds for c in e.counts))
        for count in counts:
            sums = (sum(e.counts.get(count, 0) for e in r) for r in benchmarks.values())
            block.rows.append((Cell(f"n: {count.replace('_', ' ')}"), *(Cell(f"{total:,}") for total in sums)))
        page.blocks.append(block)
    if any(e.round > 1 for e in evaluations):
        page.notes.append("mean ± standard deviation over rounds; counts are sums over rounds")
    if any(e.judge == "fake" for e in evaluations):
        page.notes.append("judge fake rates by a hash: its scores say nothing about the model")
    if any(e.benchmark == DEMO or e.benchmark.startswith(f"{DEMO},") for e in evaluations):
        page.notes.append("benchmark demo are embedded questions: no published score is of them")
    return page


def _score(values: Sequence[float]) -> Cell:
    return figure(values, 4) if values else Cell()


def _suites(suite: Any) -> Mapping[str, Any]:
    if isinstance(suite, AllSuites):
        return {f.name: getattr(suite, f.name) for f in fields(suite) if f.name != "name"}
    return {suite.name: suite}


def _reads_files(suite: Any) -> bool:
    """Whether a suite scores files that are there, and wants no model."""
    match suite:
        case MtBench():
            return suite.as_fastchat is not None
        case AlpacaEval():
            return suite.annotations is not None or suite.outputs is not None
        case Human():
            return True
    return False


def _author(suite: Any, root: Path) -> Subject | None:
    """Whose answers a suite reads and has judged; None where it only scores."""
    if isinstance(suite, AlpacaEval) and suite.outputs is not None and not _only_scores(suite):
        return author_of(Path(suite.outputs).expanduser(), root)
    return None


def _check_settings(config: EvalConfig, suites: Mapping[str, Any]) -> None:
    """Refuse settings that cannot take effect."""
    is_human = "human" in suites
    if config.judge is not None and not any(name in JUDGED and not _only_scores(s) for name, s in suites.items()):
        raise ConfigError(f"judge={config.judge.name}: suite {config.suite.name} asks no judge here")
    for key in ("a", "b"):
        if (getattr(config, key) is not None) != is_human and not (is_human and config.suite.judgments):
            said = "has no value, expected a run or a file of answers" if is_human else "is of suite=human alone"
            raise ConfigError(f"{key}={getattr(config, key)}: {said}" if not is_human else f"{key} {said}")
    if config.run is not None and all(map(_reads_files, suites.values())):
        raise ConfigError(f"run={config.run}: suite {config.suite.name} reads files here, no model answers")
    if config.generate.backend == SERVED and not any(name in ANSWERED for name in suites):
        raise ConfigError(f"generate=openai: suite {config.suite.name} asks no server for answers")
    if config.revision is not None and config.run is None:
        raise ConfigError(f"revision={config.revision}: it is of run=, which has no value")
    if config.bench not in ("auto", DEMO) and not Path(config.bench).expanduser().is_dir():
        raise InputError(f"bench={config.bench}: no such folder, expected one with the published question files")


def _only_scores(suite: Any) -> bool:
    """Whether a suite re-scores judgments that are there."""
    return getattr(suite, "annotations", None) is not None or getattr(suite, "as_fastchat", None) is not None


def _root(config: EvalConfig) -> Path:
    return Path(config.root).expanduser()
