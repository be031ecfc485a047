"""The answers that AlpacaEval-2 judges: generated round by round, or from a file; and what judging them would cost."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.evaluation.alpaca_eval.judging import MAX_TOKENS, requests_of
from sftmix.evaluation.alpaca_eval.outputs import Output, Pair, paired, read_outputs, write_outputs
from sftmix.evaluation.alpaca_eval.questions import SUITE, Materials
from sftmix.evaluation.alpaca_eval.schema import AlpacaEvalConfig
from sftmix.evaluation.generators.conversation import Prompt, Turn
from sftmix.evaluation.session import Session


class RoundAnswers(NamedTuple):
    """A model's answers in one round.

    Attributes:
        pairs: with the baseline's.
        num_cut: by length; None where they were given.
        settings: what they depend on.
    """

    pairs: list[Pair]
    num_cut: int | None
    settings: Mapping[str, Any]


def given_answers(outputs: str, materials: Materials) -> RoundAnswers:
    """Answers of a file: there is one round of them.

    Raises:
        InputError: it cannot be read, or is of other questions.
    """
    file = Path(outputs)
    beyond = {output.instruction for output in materials.beyond_limit}
    there = [output for output in read_outputs(file) if output.instruction not in beyond]
    settings = {"outputs": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return RoundAnswers(paired(materials.baseline, there, file), None, settings)


def generate_answers(session: Session, suite: AlpacaEvalConfig, materials: Materials) -> list[RoundAnswers]:
    """Each round's answers, written in AlpacaEval's form.

    Raises:
        InputError: the model cannot be read, or cannot answer.
    """
    from sftmix.evaluation.generators.answers import answer_all

    prompts = _prompts(suite, materials)
    generator, folder = session.generator, session.folder(SUITE)
    settings = {**generator.settings, "temperature": suite.temperature, "max_new_tokens": suite.max_new_tokens}
    answers = answer_all(prompts, generator, folder, title="answering", show_progress=session.config.progress_bar)
    rounds, n = [], len(materials.baseline)
    for round in range(1, suite.rounds + 1):
        here = answers[(round - 1) * n : round * n]
        outputs = [
            Output(b.instruction, a.text, session.target.name, b.dataset)
            for b, a in zip(materials.baseline, here, strict=True)
        ]
        file = folder / file_name("outputs", materials.benchmark, round)
        write_outputs(file, outputs)
        num_cut = sum(answer.finish == "length" for answer in here)
        rounds.append(RoundAnswers(paired(materials.baseline, outputs, file), num_cut, settings))
    cut = sum(answer.finish == "length" for answer in answers)
    print(f"answers     {len(answers):,}, {cut:,} cut at {suite.max_new_tokens:,} tokens", flush=True)
    return rounds


def _prompts(suite: AlpacaEvalConfig, materials: Materials) -> list[Prompt]:
    """What a model is asked, round by round."""
    return [
        Prompt(str(i), 1, round, (Turn("user", b.instruction),), suite.temperature, suite.max_new_tokens)
        for round in range(1, suite.rounds + 1)
        for i, b in enumerate(materials.baseline)
    ]


def print_estimate(session: Session, suite: AlpacaEvalConfig, materials: Materials) -> None:
    """Say what judging would cost; answers that are not there under these settings are taken to be as the baseline's.

    Raises:
        InputError: answers that were given cannot be read, or another process writes its own.
    """
    if suite.outputs is not None:
        rounds = [given_answers(suite.outputs, materials).pairs]
    else:
        from sftmix.evaluation.generators.answers import kept_answers

        kept = kept_answers(_prompts(suite, materials), session.known_settings(), session.folder(SUITE))
        if lacking := kept.count(None):
            print(
                f"answers     {lacking:,} of {len(kept):,} are not there yet: the baseline's lengths are assumed",
                flush=True,
            )
        answers = iter(kept)
        rounds = [
            [
                Pair(i, b.instruction, b.output, f"{b.output} " if (answer := next(answers)) is None else answer.text)
                for i, b in enumerate(materials.baseline)
            ]
            for _ in range(suite.rounds)
        ]
    with session.judge(SUITE) as judge:
        requests = [
            request
            for round, pairs in enumerate(rounds, start=1)
            for pair in pairs
            for request in requests_of(pair, materials.template, round=round, scoring=suite.scoring, votes=suite.votes)
        ]
        print(f"{SUITE}: judge {judge.name}: {judge.estimate(requests, MAX_TOKENS).in_words()}", flush=True)


def file_name(what: str, benchmark: str, round: int, *more: str) -> str:
    """What a round's file is called."""
    parts = (what, benchmark, *more, f"round{round}")
    return "--".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts) + ".json"
