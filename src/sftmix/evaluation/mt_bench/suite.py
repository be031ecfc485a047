"""suite=mt_bench: two turns of 80 questions, answered by the model and rated by a judge (ST, MT, overall)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftmix.errors import InputError
from sftmix.evaluation.generators.answers import share_cut
from sftmix.evaluation.generators.conversation import Answer
from sftmix.evaluation.judging import request_settings
from sftmix.evaluation.mt_bench.conversations import Conversation, converse, kept_conversations
from sftmix.evaluation.mt_bench.embedded import embedded_bench
from sftmix.evaluation.mt_bench.export import answer_rows, export_name, judgment_rows, write_rows
from sftmix.evaluation.mt_bench.files import published_bench
from sftmix.evaluation.mt_bench.judging import MAX_TOKENS, TEMPERATURE, judge_request
from sftmix.evaluation.mt_bench.questions import NUM_TURNS, Bench
from sftmix.evaluation.mt_bench.ratings import read_rating
from sftmix.evaluation.mt_bench.rescore import Rescored, read_judgments, rescore
from sftmix.evaluation.mt_bench.schema import MtBenchConfig
from sftmix.evaluation.mt_bench.scores import FLAWS, Rated, round_counts, round_questions, round_scores
from sftmix.evaluation.results import Evaluation, part_name
from sftmix.evaluation.session import Session
from sftmix.terminal import counted

if TYPE_CHECKING:
    from sftmix.evaluation.judge.call import Reply, Request

NAME = "mt_bench"
MANY_CUT = ": is the chat template the one it was tuned with?"
REPLY_TOKENS = 160  # of a judge's reply, as real ones had on average
MOST_AMBIGUOUS = 0.1  # of a round's answers: ratings that are the first of several different ones in a reply
LEAST_RATED = 0.9  # of a round's answers: a mean over fewer is of other answers than it seems
ASSUMED_CHARACTERS = 1000  # of an answer that is not there yet


def check(session: Session, suite: MtBenchConfig) -> None:
    """Read the files of questions and prompts, or the judgments that are to be re-scored.

    Raises:
        InputError: one of them is lacking or wrong.
    """
    if suite.as_fastchat is not None:
        read_judgments(Path(suite.as_fastchat))
    else:
        _bench(session)


def evaluate(session: Session, suite: MtBenchConfig) -> list[Evaluation]:
    """Ask the model, then the judge; one evaluation a round.

    Raises:
        InputError: replies of the judge are missing, or a round has too few ratings.
    """
    if suite.as_fastchat is not None:
        for scores in rescore(read_judgments(Path(suite.as_fastchat))):
            print(_in_words(scores), flush=True)
        return []
    bench, total = _bench(session)
    benchmark = part_name(_benchmark(bench, suite), session.config.limit, total)
    print(
        f"questions   {len(bench.questions)} of {benchmark}, {counted(suite.rounds, 'round')} of {suite.rounds_of}",
        flush=True,
    )
    if session.config.dry_run:
        _print_estimate(session, suite, bench)
        return []
    conversations = converse(
        bench.questions,
        session.generator,
        session.folder(NAME),
        rounds=suite.rounds if suite.rounds_of == "generation" else 1,
        max_new_tokens=suite.max_new_tokens,
        show_progress=session.config.progress_bar,
    )
    answers = session.folder(NAME) / export_name(benchmark, "answers")
    write_rows(answers, answer_rows(conversations, session.target.name))
    share = share_cut([answer for one in conversations for answer in one.answers])
    print(f"answers     {answers}, {share:.1%} cut by length{MANY_CUT if share > 0.2 else ''}", flush=True)
    return _judge(session, suite, bench, benchmark, conversations)


def _judge(
    session: Session, suite: MtBenchConfig, bench: Bench, benchmark: str, conversations: Sequence[Conversation]
) -> list[Evaluation]:
    rows = [Rated(one, turn, round, None) for one, turn, round in _judged(suite, conversations)]
    requests = _requests(bench, rows)
    with session.judge(NAME) as judge:
        name = judge.name
        replies = judge.ask(
            requests,
            accepts=lambda reply: None,  # a reply without a rating is a reply too: it is kept, and counted
            template_sha256=bench.template_sha256,
            title=f"judge {name}",
            show_progress=session.config.progress_bar,
            allow_partial=session.config.allow_partial,
        )
    rated = [_rated(row, reply) for row, reply in zip(rows, replies, strict=True)]
    judgments = session.folder(NAME) / export_name(benchmark, name, "judgments")
    write_rows(judgments, judgment_rows(rated, requests, replies, session.target.name, name))
    print(f"judgments   {judgments}", flush=True)
    assert session.config.judge is not None
    changed = request_settings(session.config.judge)
    settings = {
        "identity": session.target.identity,
        "generation": dict(session.generator.settings) | {"max_new_tokens": suite.max_new_tokens},
        "rounds_of": suite.rounds_of,
        "mode": "single",
        "judge_parameters": {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS, **changed},
        "template_sha256": bench.template_sha256,
        "files_sha256": dict(bench.files),
    }
    found = []
    for round in range(1, suite.rounds + 1):
        pairs = [(row, reply) for row, reply in zip(rated, replies, strict=True) if row.round == round]
        of_round = [row for row, _ in pairs]
        counts = round_counts(of_round)
        if (cause := _too_few(round, counts, len(of_round))) is not None:
            said = f"judge {name}: {cause}; the replies are in {judgments}"
            if not session.config.allow_partial:
                raise InputError(f"{said}; allow_partial=true scores the others")
            print(said, flush=True)
        if (cause := _too_ambiguous(round, of_round)) is not None:
            said = f"judge {name}: {cause}; the replies are in {judgments}"
            if not session.config.allow_partial:
                raise InputError(f"{said}; allow_partial=true scores by the first rating of each")
            print(said, flush=True)
        if scores := round_scores(of_round):
            about = _about([reply for _, reply in pairs if reply is not None])
            questions = round_questions(of_round)
            evaluation = Evaluation(NAME, name, benchmark, round, scores, questions, counts, about, settings)
            found.append(evaluation)
    return found


def _too_few(round: int, counts: Mapping[str, int], total: int) -> str | None:
    """Return that a round has too few ratings, and why; None if it has enough."""
    if counts["ratings"] >= LEAST_RATED * total:
        return None
    flaws = [f"{number} {name.replace('_', ' ')}" for name in ("missing", *FLAWS) if (number := counts.get(name))]
    least = math.ceil(LEAST_RATED * total)
    return (
        f"{counts['ratings']} of {total} ratings of round {round} count ({', '.join(flaws)}), expected at least {least}"
    )


def _too_ambiguous(round: int, rated: Sequence[Rated]) -> str | None:
    """Return that too many ratings of a round are ambiguous; None if there are few."""
    ambiguous = sum(row.score is not None and row.rating is not None and row.rating.is_ambiguous for row in rated)
    if ambiguous <= MOST_AMBIGUOUS * len(rated):
        return None
    most = math.floor(MOST_AMBIGUOUS * len(rated))
    return (
        f"{ambiguous} of {len(rated)} replies of round {round} hold several different ratings, of which the first is "
        f"taken, expected at most {most}"
    )


def _bench(session: Session) -> tuple[Bench, int]:
    """The questions that are asked, and how many there are without a limit."""
    bench = embedded_bench() if session.is_demo else published_bench(session.bench, session.cache)
    return bench._replace(questions=bench.questions[: session.config.limit]), len(bench.questions)


def _benchmark(bench: Bench, suite: MtBenchConfig) -> str:
    """What the benchmark is called: rounds that repeat the judge alone are no rounds of the other kind."""
    return bench.name if suite.rounds_of == "generation" else f"{bench.name}, rounds of judging"


def _judged(suite: MtBenchConfig, conversations: Sequence[Conversation]) -> list[tuple[Conversation, int, int]]:
    """Which conversation, turn and round of judging: one reply is asked for each."""
    again = range(1, suite.rounds + 1)
    return [
        (one, turn, round)
        for one in conversations
        for round in ([one.round] if suite.rounds_of == "generation" else again)
        for turn in range(1, NUM_TURNS + 1)
    ]


def _requests(bench: Bench, rows: Sequence[Rated]) -> "list[Request]":
    return [
        judge_request(bench, row.conversation.question, row.conversation.judged_texts, row.turn, row.round)
        for row in rows
    ]


def _rated(row: Rated, reply: "Reply | None") -> Rated:
    if reply is None:
        return row
    return row._replace(rating=read_rating(reply.text, reply.finish, row.conversation.judged_texts[: row.turn]))


def _about(replies: "Sequence[Reply]") -> dict[str, Any]:
    """What judged, as the replies say it."""
    said: list[Mapping[str, Any]] = [reply.record for reply in replies]
    return {
        "requested_model": sorted({str(one.get("requested_model")) for one in said}),
        "served_models": sorted({reply.served_model for reply in replies}),
        "system_fingerprint": sorted({str(one["system_fingerprint"]) for one in said if one.get("system_fingerprint")}),
        "date": max(str(one["date"]) for one in said),
    }


def _print_estimate(session: Session, suite: MtBenchConfig, bench: Bench) -> None:
    """Say what judging would cost; answers that are not there under these settings are taken to be of some length."""
    found = kept_conversations(
        bench.questions,
        session.known_settings(),
        session.folder(NAME),
        rounds=suite.rounds if suite.rounds_of == "generation" else 1,
        max_new_tokens=suite.max_new_tokens,
    )
    text = Answer("x" * ASSUMED_CHARACTERS, "length", 0, "")
    assumed = text, text
    conversations = [one if isinstance(one, Conversation) else Conversation(*one, assumed) for one in found]
    if lacking := NUM_TURNS * sum(one.answers is assumed for one in conversations):
        total = NUM_TURNS * len(conversations)
        print(f"answers     {lacking} of {total} are not there yet: {ASSUMED_CHARACTERS:,} characters each are assumed")
    rows = [Rated(one, turn, round, None) for one, turn, round in _judged(suite, conversations)]
    with session.judge(NAME) as judge:
        words = judge.estimate(_requests(bench, rows), REPLY_TOKENS).in_words()
        print(f"judge       {judge.name}: {words}", flush=True)


def _in_words(scores: Rescored) -> str:
    """A model's scores for people."""
    means = ", ".join(f"{column} {mean:.4f} (n={scores.counts[column]})" for column, mean in scores.means.items())
    judge = "" if scores.judge is None else f", judge {scores.judge}"
    left = f"; {scores.dropped} of score -1 left out, {scores.repeated} judged again and counted again"
    return f"{scores.model}{judge}: {means or 'no rating'}{left}"
