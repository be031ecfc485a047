"""suite=alpaca_eval: a judge compares the answers of a model with those of a baseline, and wins are counted."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftmix.errors import ConfigError
from sftmix.evaluation.alpaca_eval.answers import (
    RoundAnswers,
    generate_answers,
    given_answers,
    print_estimate,
)
from sftmix.evaluation.alpaca_eval.judging import PairVerdict, judge_pairs, raw_completion
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, why_approximate
from sftmix.evaluation.alpaca_eval.outputs import (
    Annotation,
    in_order,
    read_annotations,
    read_outputs,
    refuse_other_answers,
    write_annotations,
)
from sftmix.evaluation.alpaca_eval.questions import SUITE, AlpacaQuestions, find_gamed, read_questions
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.alpaca_eval.scores import Scores, score, why_no_length_control
from sftmix.evaluation.generators.answering import holds_special
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.results import Evaluation, plain_name
from sftmix.evaluation.servers import request_settings
from sftmix.evaluation.session import Session


def check(session: Session, suite: AlpacaEvalConfig) -> None:
    """Read all files before a model is loaded or a judge is asked."""
    if suite.annotations is not None:
        _read_judged(session, suite)
        return
    questions = read_questions(session, suite)
    if suite.outputs is not None:
        given_answers(suite.outputs, questions)
    if questions.refused is not None:
        print(f"LC WR       refused: {questions.refused}", flush=True)


def evaluate(session: Session, suite: AlpacaEvalConfig) -> list[Evaluation]:
    """Answer, judge and score. Scores of existing preferences are only printed."""
    if suite.annotations is not None:
        print("\n".join(_rescored(*_read_judged(session, suite))), flush=True)
        return []
    questions = read_questions(session, suite)
    if session.config.dry_run:
        print_estimate(session, suite, questions)
        return []
    if suite.outputs is not None:
        rounds = [given_answers(suite.outputs, questions)]
    else:
        rounds = generate_answers(session, suite, questions)
    return [_judged(session, suite, questions, answers, round) for round, answers in enumerate(rounds, start=1)]


def _read_judged(session: Session, suite: AlpacaEvalConfig) -> tuple[Path, list[Annotation], Gamed | None, str | None]:
    """Return the file of preferences, its content, and the gamed rows or the reason why they are not used."""
    assert suite.annotations is not None
    for key, value in (("limit", session.config.limit), ("suite.prompt", suite.prompt)):
        if value is not None:
            raise ConfigError(f"{key}={value}: suite.annotations are scored as they are, no judge is asked")
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
        refused = f"{file} does not number the questions; suite.baseline=FILE gives their published order"
    gamed = None
    if refused is None:
        gamed, refused = find_gamed(session, suite)
    return file, annotations, gamed, refused


def _rescored(file: Path, annotations: list[Annotation], gamed: Gamed | None, refused: str | None) -> list[str]:
    preferences = [annotation.preference for annotation in annotations]
    found = score([a.pair for a in annotations], preferences, gamed, str(file))
    judged_of = len(preferences) - preferences.count(None), len(preferences)
    lines = [found.win_rate.in_words("win_rate", *judged_of)]
    if found.lc_win_rate is None:
        return [*lines, f"lc_win_rate refused: {refused}"]
    lines.append(found.lc_win_rate.in_words("lc_win_rate", *judged_of))
    served = {a.served_model for a in annotations if a.served_model is not None}
    unserved = set() if served else {a.annotator for a in annotations}
    note = why_approximate(served, unserved)
    return lines if note is None else [*lines, note]


def _judged(
    session: Session, suite: AlpacaEvalConfig, questions: AlpacaQuestions, answers: RoundAnswers, round: int
) -> Evaluation:
    config, pairs = session.config, answers.pairs
    assert config.judge is not None
    with session.judge(SUITE) as judge:
        verdicts = judge_pairs(
            pairs,
            questions.template,
            judge,
            round=round,
            scoring=suite.scoring,
            votes=suite.votes,
            show_progress=config.progress_bar,
            allow_partial=config.allow_partial,
        )
    generators = questions.baseline[0].generator, session.target.name
    name = plain_name("annotations", questions.benchmark, config.judge.name, f"round{round}")
    write_annotations(
        session.folder(SUITE) / f"{name}.json",
        [Annotation(p, generators, v.preference, config.judge.name) for p, v in zip(pairs, verdicts, strict=True)],
        [_extras(verdict) for verdict in verdicts],
    )
    found = score(pairs, [v.preference for v in verdicts], questions.gamed, f"judge {config.judge.name}")
    missing = sum(verdict.preference is None for verdict in verdicts)
    record = _judge_record(verdicts, found)
    rates = {"WR": found.win_rate} | ({} if found.lc_win_rate is None else {"LC WR": found.lc_win_rate})
    lines = [rate.in_words(name, len(pairs) - missing, len(pairs)) for name, rate in rates.items()]
    print(f"round {round:<6}{', '.join(lines)}", flush=True)
    if "note" in record:
        print(f"            {record['note']}", flush=True)
    # In percent. The standard error of a single question is not a number, which JSON cannot hold
    record["standard_errors"] = {
        name: rate.standard_error if math.isfinite(rate.standard_error) else None for name, rate in rates.items()
    }
    special = sum(holds_special(pair.output_2) for pair in pairs)
    reasoning = sum(answer_of(pair.output_2) != pair.output_2 for pair in pairs)
    changed = request_settings(config.judge)
    counts = {
        "questions": len(pairs),
        "missing": missing,
        "identical": sum(answer_of(pair.output_1) == answer_of(pair.output_2) for pair in pairs),
        **({} if answers.num_cut is None else {"cut_by_length": answers.num_cut}),
        **({"holds_special": special} if special else {}),
        **({"reasoning": reasoning} if reasoning else {}),  # answers with reasoning, which is not shown to the judge
    }
    settings = {
        "requested_model": config.judge.model,
        "template_sha256": questions.template.sha256,
        "baseline": generators[0],
        "baseline_sha256": questions.baseline_sha256,
        "scoring": suite.scoring,
        **({"votes": suite.votes} if suite.scoring == "vote" else {}),
        "model": session.target.identity,
        "answers": dict(answers.settings),
        **({"judge_parameters": changed} if changed else {}),
    }
    scores = {name: rate.percent for name, rate in rates.items()}
    wins = {"WR": found.wins, "LC WR": found.lc_wins}
    by_question = {name: wins[name] for name in rates}
    return Evaluation(
        SUITE, config.judge.name, questions.benchmark, round, scores, by_question, counts, record, settings
    )


def _judge_record(verdicts: Sequence[PairVerdict], found: Scores) -> dict[str, Any]:
    """Return the models and dates of the replies, and a note if the length control is approximate."""
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
    """Return the further fields of a verdict in AlpacaEval's files, and the model that judged."""
    raw = [raw_completion(reply) for reply in verdict.replies]
    served_model = verdict.replies[0].served_model if verdict.replies else None
    kept = raw[0] if len(raw) == 1 else raw or None
    return {"raw_completion": kept, "switched": verdict.switched, "served_model": served_model}
