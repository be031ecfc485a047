"""Generate or read the answers that AlpacaEval-2 judges, and estimate the cost of judging them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.data.example import Message
from sftmix.evaluation.alpaca_eval.judging import MAX_TOKENS, requests_of
from sftmix.evaluation.alpaca_eval.outputs import Output, Pair, paired, read_outputs, write_outputs
from sftmix.evaluation.alpaca_eval.questions import SUITE, AlpacaQuestions
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.generators.answering import Prompt, answer_all, kept_answers
from sftmix.evaluation.results import plain_name
from sftmix.evaluation.session import Session


class RoundAnswers(NamedTuple):
    """A model's answers in one round, with the baseline's."""

    pairs: list[Pair]
    num_cut: int | None  # Number of answers that were cut by length; None if the answers are from a file
    settings: Mapping[str, Any]  # Settings that the answers depend on


def given_answers(outputs: str, questions: AlpacaQuestions) -> RoundAnswers:
    """Return the answers of a file as one round."""
    file = Path(outputs)
    beyond = {output.instruction for output in questions.beyond_limit}
    there = [output for output in read_outputs(file) if output.instruction not in beyond]
    settings = {"outputs": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return RoundAnswers(paired(questions.baseline, there, file), None, settings)


def generate_answers(session: Session, suite: AlpacaEvalConfig, questions: AlpacaQuestions) -> list[RoundAnswers]:
    """Return the answers of each round, and write them in AlpacaEval's form."""
    prompts, generator, folder = _prompts(suite, questions), session.generator, session.folder(SUITE)
    settings = {**generator.settings, "temperature": suite.temperature, "max_new_tokens": suite.max_new_tokens}
    answers = answer_all(prompts, generator, folder, title="answering", show_progress=session.config.progress_bar)
    rounds, n = [], len(questions.baseline)
    for round in range(1, suite.rounds + 1):
        here = answers[(round - 1) * n : round * n]
        outputs = [
            Output(b.instruction, a.text, session.target.name, b.dataset)
            for b, a in zip(questions.baseline, here, strict=True)
        ]
        file = folder / f"{plain_name('outputs', questions.benchmark, f'round{round}')}.json"
        write_outputs(file, outputs)
        num_cut = sum(answer.finish == "length" for answer in here)
        rounds.append(RoundAnswers(paired(questions.baseline, outputs, file), num_cut, settings))
    cut = sum(answer.finish == "length" for answer in answers)
    print(f"answers     {len(answers):,}, {cut:,} cut at {suite.max_new_tokens:,} tokens", flush=True)
    return rounds


def _prompts(suite: AlpacaEvalConfig, questions: AlpacaQuestions) -> list[Prompt]:
    return [
        Prompt(str(i), 1, round, (Message("user", b.instruction),), suite.temperature, suite.max_new_tokens)
        for round in range(1, suite.rounds + 1)
        for i, b in enumerate(questions.baseline)
    ]


def print_estimate(session: Session, suite: AlpacaEvalConfig, questions: AlpacaQuestions) -> None:
    """Print the cost of judging. Answers that do not exist yet are assumed to be as long as the baseline's."""
    if suite.outputs is not None:
        rounds = [given_answers(suite.outputs, questions).pairs]
    else:
        kept = kept_answers(_prompts(suite, questions), session.known_settings(), session.folder(SUITE))
        if lacking := kept.count(None):
            print(
                f"answers     {lacking:,} of {len(kept):,} do not exist yet: the baseline's lengths are assumed",
                flush=True,
            )
        answers = iter(kept)
        rounds = [
            [
                Pair(i, b.instruction, b.output, f"{b.output} " if (answer := next(answers)) is None else answer.text)
                for i, b in enumerate(questions.baseline)
            ]
            for _ in range(suite.rounds)
        ]
    with session.judge(SUITE) as judge:
        requests = [
            request
            for round, pairs in enumerate(rounds, start=1)
            for pair in pairs
            for request in requests_of(pair, questions.template, round=round, scoring=suite.scoring, votes=suite.votes)
        ]
        print(f"{SUITE}: judge {judge.name}: {judge.estimate(requests, MAX_TOKENS).in_words()}", flush=True)
