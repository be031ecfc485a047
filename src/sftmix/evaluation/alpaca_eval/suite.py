"""AlpacaEval-2: a model answers, a judge compares its answers with a baseline's, and wins are counted."""

import math
from collections.abc import Sequence
from typing import Any

from sftmix.evaluation.alpaca_eval.annotations import Annotation, write_annotations
from sftmix.evaluation.alpaca_eval.answers import (
    RoundAnswers,
    file_name,
    generate_answers,
    given_answers,
    print_estimate,
)
from sftmix.evaluation.alpaca_eval.judging import PairVerdict, judge_pairs, raw_completion
from sftmix.evaluation.alpaca_eval.length_control import why_approximate
from sftmix.evaluation.alpaca_eval.preference import Rate
from sftmix.evaluation.alpaca_eval.questions import SUITE, Materials, gather
from sftmix.evaluation.alpaca_eval.rescore import line, print_scores, read_judged
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.alpaca_eval.scores import Scores, score
from sftmix.evaluation.generators.control_tokens import holds_special
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.judging import request_settings
from sftmix.evaluation.results import Evaluation
from sftmix.evaluation.session import Session


def check(session: Session, suite: AlpacaEvalConfig) -> None:
    """See that everything is there, before a model is loaded or anybody asked.

    Raises:
        InputError: what is lacking or wrong.
    """
    if suite.annotations is not None:
        read_judged(session, suite)
        return
    materials = gather(session, suite)
    if suite.outputs is not None:
        given_answers(suite.outputs, materials)
    if materials.refused is not None:
        print(f"LC WR       refused: {materials.refused}", flush=True)


def evaluate(session: Session, suite: AlpacaEvalConfig) -> list[Evaluation]:
    """Answer, judge and score; preferences that are there are scored again, and only said.

    Raises:
        InputError: a model cannot answer, or calls of the judge failed.
    """
    if suite.annotations is not None:
        print_scores(read_judged(session, suite))
        return []
    materials = gather(session, suite)
    if session.config.dry_run:
        print_estimate(session, suite, materials)
        return []
    rounds = (
        [given_answers(suite.outputs, materials)]
        if suite.outputs is not None
        else generate_answers(session, suite, materials)
    )
    return [_judged(session, suite, materials, answers, round) for round, answers in enumerate(rounds, start=1)]


def _judged(
    session: Session, suite: AlpacaEvalConfig, materials: Materials, answers: RoundAnswers, round: int
) -> Evaluation:
    config, pairs = session.config, answers.pairs
    assert config.judge is not None
    with session.judge(SUITE) as judge:
        verdicts = judge_pairs(
            pairs,
            materials.template,
            judge,
            round=round,
            scoring=suite.scoring,
            votes=suite.votes,
            show_progress=config.progress_bar,
            allow_partial=config.allow_partial,
        )
    generators = materials.baseline[0].generator, session.target.name
    write_annotations(
        session.folder(SUITE) / file_name("annotations", materials.benchmark, round, config.judge.name),
        [Annotation(p, generators, v.preference, config.judge.name) for p, v in zip(pairs, verdicts, strict=True)],
        [_extras(verdict) for verdict in verdicts],
    )
    found = score(pairs, [v.preference for v in verdicts], materials.gamed, f"judge {config.judge.name}")
    missing = sum(verdict.preference is None for verdict in verdicts)
    record = _judge_record(verdicts, found)
    _print_round(round, found, len(pairs) - missing, len(pairs), record.get("note"))
    special = sum(holds_special(pair.output_2) for pair in pairs)
    reasoning = sum(answer_of(pair.output_2) != pair.output_2 for pair in pairs)
    changed = request_settings(config.judge)
    counts = {
        "questions": len(pairs),
        "missing": missing,
        "identical": sum(answer_of(pair.output_1) == answer_of(pair.output_2) for pair in pairs),
        **({} if answers.num_cut is None else {"cut_by_length": answers.num_cut}),
        **({"holds_special": special} if special else {}),
        **({"reasoning": reasoning} if reasoning else {}),  # answers whose reasoning the judge was not shown
    }
    scores, questions = {"WR": found.win_rate.percent}, {"WR": found.wins}
    errors = {"WR": _error(found.win_rate)}
    if found.lc_win_rate is not None:
        scores["LC WR"], questions["LC WR"] = found.lc_win_rate.percent, found.lc_wins
        errors["LC WR"] = _error(found.lc_win_rate)
    record["standard_errors"] = errors
    settings = {
        "requested_model": config.judge.model,
        "template_sha256": materials.template.sha256,
        "baseline": generators[0],
        "baseline_sha256": materials.baseline_sha256,
        "scoring": suite.scoring,
        **({"votes": suite.votes} if suite.scoring == "vote" else {}),
        "model": session.target.identity,
        "answers": dict(answers.settings),
        **({"judge_parameters": changed} if changed else {}),
    }
    return Evaluation(SUITE, config.judge.name, materials.benchmark, round, scores, questions, counts, record, settings)


def _error(rate: Rate) -> float | None:
    """The standard error in percent; one question has none, and JSON has no word for that but null."""
    return rate.standard_error if math.isfinite(rate.standard_error) else None


def _judge_record(verdicts: Sequence[PairVerdict], found: Scores) -> dict[str, Any]:
    """Who judged, as far as replies tell, and how far the length control can be trusted."""
    replies = [reply for verdict in verdicts for reply in verdict.replies]
    served = sorted({reply.served_model for reply in replies})
    dates = sorted(str(reply.record["date"]) for reply in replies if reply.record.get("date"))
    record: dict[str, Any] = {
        "served_models": served,
        "system_fingerprints": sorted({str(f) for r in replies if (f := r.record.get("system_fingerprint"))}),
        "dates": [dates[0], dates[-1]] if dates else [],
    }
    if found.lc_win_rate is not None and (note := why_approximate(served)) is not None:
        record["note"] = note
    return record


def _extras(verdict: PairVerdict) -> dict[str, Any]:
    """What AlpacaEval keeps of a verdict beside the preference, and what was needed to come to it."""
    raw = [raw_completion(reply) for reply in verdict.replies]
    return {
        "raw_completion": raw[0] if len(raw) == 1 else raw or None,
        "switched": verdict.switched,
        "served_model": verdict.replies[0].served_model if verdict.replies else None,
    }


def _print_round(round: int, found: Scores, num_judged: int, num_questions: int, note: str | None) -> None:
    rates = {"WR": found.win_rate, "LC WR": found.lc_win_rate}
    lines = [line(name, rate, num_judged, num_questions) for name, rate in rates.items() if rate is not None]
    print(f"round {round:<6}{', '.join(lines)}", flush=True)
    if note is not None:
        print(f"            {note}", flush=True)
