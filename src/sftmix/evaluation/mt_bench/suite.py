"""suite=mt_bench: a judge rates the answers of a model to 80 questions of two turns (ST, MT, overall)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Answer, share_cut
from sftmix.evaluation.judge.requests import Reply, Request
from sftmix.evaluation.mt_bench.conversations import Conversation, converse, kept_conversations
from sftmix.evaluation.mt_bench.embedded import embedded_bench
from sftmix.evaluation.mt_bench.questions import (
    JUDGE_MAX_TOKENS,
    JUDGE_TEMPERATURE,
    NUM_TURNS,
    Bench,
    judge_request,
    published_bench,
)
from sftmix.evaluation.mt_bench.ratings import read_rating
from sftmix.evaluation.mt_bench.rescore import read_judgments, rescore
from sftmix.evaluation.mt_bench.schema import MtBenchConfig
from sftmix.evaluation.mt_bench.scores import (
    FLAWS,
    Rated,
    answer_rows,
    judgment_rows,
    round_counts,
    round_questions,
    round_scores,
    write_rows,
)
from sftmix.evaluation.results import Evaluation, part_name, plain_name
from sftmix.evaluation.servers import request_settings
from sftmix.evaluation.session import Session
from sftmix.terminal import counted

NAME = "mt_bench"
MANY_CUT = ": is the chat template the one it was tuned with?"
REPLY_TOKENS = 160  # mean length of a judge's reply in published judgments
MOST_AMBIGUOUS = 0.1  # of a round's answers: ratings that are the first of several different ones in a reply
LEAST_RATED = 0.9  # of a round's answers: a mean over fewer is a mean of other answers
ASSUMED_CHARACTERS = 1000  # of an answer that does not exist yet


def check(session: Session, suite: MtBenchConfig) -> None:
    """Read the files of questions and prompts, or the judgments that are scored."""
    if suite.as_fastchat is not None:
        read_judgments(Path(suite.as_fastchat))
    else:
        _bench(session)


def evaluate(session: Session, suite: MtBenchConfig) -> list[Evaluation]:
    """Ask the model, then the judge; return one evaluation for each round."""
    if suite.as_fastchat is not None:
        for scores in rescore(read_judgments(Path(suite.as_fastchat))):
            print(scores.in_words(), flush=True)
        return []
    bench, total = _bench(session)
    # Rounds that repeat only the judge are never averaged with rounds that repeat the generation
    name = bench.name if suite.rounds_of == "generation" else f"{bench.name}, rounds of judging"
    benchmark = part_name(name, session.config.limit, total)
    print(
        f"questions   {len(bench.questions)} of {benchmark}, {counted(suite.rounds, 'round')} of {suite.rounds_of}",
        flush=True,
    )
    rounds = suite.rounds if suite.rounds_of == "generation" else 1
    if session.config.dry_run:
        _print_estimate(session, suite, bench, rounds)
        return []
    conversations = converse(
        bench.questions,
        session.generator,
        session.folder(NAME),
        rounds=rounds,
        max_new_tokens=suite.max_new_tokens,
        show_progress=session.config.progress_bar,
    )
    answers = session.folder(NAME) / f"{plain_name(benchmark, 'answers')}.jsonl"
    write_rows(answers, answer_rows(conversations, session.target.name))
    share = share_cut([answer for one in conversations for answer in one.answers])
    print(f"answers     {answers}, {share:.1%} cut by length{MANY_CUT if share > 0.2 else ''}", flush=True)
    return _judge(session, suite, bench, benchmark, conversations)


def _judge(
    session: Session, suite: MtBenchConfig, bench: Bench, benchmark: str, conversations: Sequence[Conversation]
) -> list[Evaluation]:
    rows, requests = _requests(suite, bench, conversations)
    with session.judge(NAME) as judge:
        name = judge.name
        replies = judge.ask(
            requests,
            accepts=lambda reply: None,  # a reply without a rating is kept too, and counted
            template_sha256=bench.template_sha256,
            title=f"judge {name}",
            show_progress=session.config.progress_bar,
            allow_partial=session.config.allow_partial,
        )
    rated = [
        row if reply is None else row._replace(rating=read_rating(reply.text, reply.finish, row.judged_texts))
        for row, reply in zip(rows, replies, strict=True)
    ]
    judgments = session.folder(NAME) / f"{plain_name(benchmark, name, 'judgments')}.jsonl"
    write_rows(judgments, judgment_rows(rated, requests, replies, session.target.name, name))
    print(f"judgments   {judgments}", flush=True)
    assert session.config.judge is not None
    parameters = {"temperature": JUDGE_TEMPERATURE, "max_tokens": JUDGE_MAX_TOKENS}
    settings = {
        "identity": session.target.identity,
        "generation": dict(session.generator.settings) | {"max_new_tokens": suite.max_new_tokens},
        "rounds_of": suite.rounds_of,
        "mode": "single",
        "judge_parameters": parameters | request_settings(session.config.judge),
        "template_sha256": bench.template_sha256,
        "files_sha256": dict(bench.files),
    }
    found = []
    for round in range(1, suite.rounds + 1):
        of_round = [row for row in rated if row.round == round]
        counts = round_counts(of_round)
        for cause, scored in (
            (_too_few(round, counts, len(of_round)), "the others"),
            (_too_ambiguous(round, of_round), "by the first rating of each"),
        ):
            if cause is not None:
                message = f"judge {name}: {cause}; the replies are in {judgments}"
                if not session.config.allow_partial:
                    raise InputError(f"{message}; allow_partial=true scores {scored}")
                print(message, flush=True)
        if scores := round_scores(of_round):
            pairs = zip(rated, replies, strict=True)
            about = _about([reply for row, reply in pairs if row.round == round and reply is not None])
            questions = round_questions(of_round)
            found.append(Evaluation(NAME, name, benchmark, round, scores, questions, counts, about, settings))
    return found


def _too_few(round: int, counts: Mapping[str, int], total: int) -> str | None:
    """Return a message if a round has too few ratings, with the reasons; None if it has enough."""
    if counts["ratings"] >= LEAST_RATED * total:
        return None
    flaws = [f"{number} {name.replace('_', ' ')}" for name in ("missing", *FLAWS) if (number := counts.get(name))]
    least = math.ceil(LEAST_RATED * total)
    return (
        f"{counts['ratings']} of {total} ratings of round {round} count ({', '.join(flaws)}), expected at least {least}"
    )


def _too_ambiguous(round: int, rated: Sequence[Rated]) -> str | None:
    """Return a message if too many ratings of a round are ambiguous, or None."""
    ambiguous = sum(row.score is not None and row.rating is not None and row.rating.is_ambiguous for row in rated)
    if ambiguous <= MOST_AMBIGUOUS * len(rated):
        return None
    most = math.floor(MOST_AMBIGUOUS * len(rated))
    return (
        f"{ambiguous} of {len(rated)} replies of round {round} contain several different ratings, of which the first "
        f"counts, expected at most {most}"
    )


def _bench(session: Session) -> tuple[Bench, int]:
    """Return the questions up to the limit, and the number of all questions."""
    bench = embedded_bench() if session.is_demo else published_bench(session.bench, session.cache)
    return bench._replace(questions=bench.questions[: session.config.limit]), len(bench.questions)


def _requests(
    suite: MtBenchConfig, bench: Bench, conversations: Sequence[Conversation]
) -> tuple[list[Rated], list[Request]]:
    """Return the answers to rate in each round of judging, without ratings, and the request for each."""
    rows = [
        Rated(one, turn, round, None)
        for one in conversations
        for round in ([one.round] if suite.rounds_of == "generation" else range(1, suite.rounds + 1))
        for turn in range(1, NUM_TURNS + 1)
    ]
    return rows, [
        judge_request(bench, r.conversation.question, r.conversation.judged_texts, r.turn, r.round) for r in rows
    ]


def _about(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the models and the date of the replies."""
    records: list[Mapping[str, Any]] = [reply.record for reply in replies]
    return {
        "requested_model": sorted({str(one.get("requested_model")) for one in records}),
        "served_models": sorted({reply.served_model for reply in replies}),
        "system_fingerprint": sorted(
            {str(one["system_fingerprint"]) for one in records if one.get("system_fingerprint")}
        ),
        "date": max(str(one["date"]) for one in records),
    }


def _print_estimate(session: Session, suite: MtBenchConfig, bench: Bench, rounds: int) -> None:
    """Print the cost of judging. A length is assumed for answers that do not exist under these settings."""
    folder, known = session.folder(NAME), session.known_settings()
    found = kept_conversations(bench.questions, known, folder, rounds=rounds, max_new_tokens=suite.max_new_tokens)
    text = Answer("x" * ASSUMED_CHARACTERS, "length", 0, "")
    assumed = text, text
    conversations = [one if isinstance(one, Conversation) else Conversation(*one, assumed) for one in found]
    if lacking := NUM_TURNS * sum(one.answers is assumed for one in conversations):
        total = NUM_TURNS * len(conversations)
        print(f"answers     {lacking} of {total} do not exist yet: {ASSUMED_CHARACTERS:,} characters each are assumed")
    with session.judge(NAME) as judge:
        words = judge.estimate(_requests(suite, bench, conversations)[1], REPLY_TOKENS).in_words()
        print(f"judge       {judge.name}: {words}", flush=True)
