"""suite=medical: MedQA, MedQA-5, PubMedQA and MedMCQA, three-shot (Table 2)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.paired import mean_and_sd
from sftmix.artifacts.hashes import fingerprint
from sftmix.data.templates import template_source
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import open_journal
from sftmix.evaluation.medical.benchmarks import Questions, read_questions
from sftmix.evaluation.medical.embedded import embedded_questions
from sftmix.evaluation.medical.hub_sets import LOCAL_COPY, HubSet, hub_set
from sftmix.evaluation.medical.prompts import MedicalPrompt, draw_shots, finished_prompt
from sftmix.evaluation.medical.questions import LETTERS, Item, rows_sha256
from sftmix.evaluation.medical.schema import MEDICAL, MedicalConfig
from sftmix.evaluation.medical.scorer import (
    USUAL_TOKENS,
    Scored,
    Scorer,
    chance_of_letters,
    chat_renderer,
    prompts_sha256,
    puts_bos,
)
from sftmix.evaluation.results import Evaluation, part_name, wilson_interval
from sftmix.evaluation.session import Session
from sftmix.hub import check_on_hub
from sftmix.models.loading import precision
from sftmix.stages.inputs import pinned_commit
from sftmix.terminal import counted

KEY = "suite.template"
FITTING = ", those that fit"  # behind a column's name: without the questions that are too long for the model
SD = "of a sample (n - 1); BioMistral's is the population's (n)"
POOL = "train"  # default origin of the shots
PUBLISHED = "expected bench=FOLDER with the published files beside it"


class Scoring(NamedTuple):
    """A scorer, the function that renders a prompt as a chat, and what a score depends on beside the prompt."""

    scorer: Scorer
    as_chat: Callable[[str], str] | None
    settings: dict[str, Any]


def check(session: Session, suite: MedicalConfig) -> None:
    """Check what the suite needs, before a model is loaded."""
    if session.is_demo:
        _check_embedded(suite)
    for package in ("lm_eval", "scipy"):
        if find_spec(package) is None:
            raise InputError(f"suite=medical: it needs {package}, pip install 'sftmix[eval]'")
    if suite.template is not None:
        template_source(suite.template, KEY)
    for questions in _questions(session, suite):
        draw_shots(questions.name, 1, questions.test[0].id, questions.pool, suite.num_shots)


def evaluate(session: Session, suite: MedicalConfig) -> list[Evaluation]:
    """Score every benchmark in every round, and print accuracies against chance.

    The standard deviation over rounds is that of a sample (n - 1), as in all reports. BioMistral prints the
    population's (n), which is smaller: over three rounds by the factor sqrt(2/3).
    """
    benchmarks = list(_questions(session, suite))
    if session.config.dry_run:
        for questions in benchmarks:
            num_asked = len(questions.test[: session.config.limit])
            print(f"{questions.name:12}{counted(suite.rounds, 'round')} of {counted(num_asked, 'question')}, no judge")
        return []
    found = []
    with _scoring(session, suite) as scoring:
        for questions in benchmarks:
            rounds = [_round(session, suite, questions, round, scoring) for round in range(1, suite.rounds + 1)]
            print(_summary(questions.test[: session.config.limit], rounds), flush=True)
            found += rounds
    return found


def _check_embedded(suite: MedicalConfig) -> None:
    """Refuse a setting that has no effect on embedded questions."""
    if set(suite.benchmarks) != set(MEDICAL):
        raise InputError(f"suite.benchmarks=[{','.join(suite.benchmarks)}]: embedded questions are asked, {PUBLISHED}")
    if suite.pool != POOL:
        raise InputError(f"suite.pool={suite.pool}: embedded questions have embedded shots, {PUBLISHED}")
    if suite.hub is not None:
        raise InputError(f"suite.hub={_written(suite.hub)}: embedded questions are asked, {PUBLISHED}")


def _questions(session: Session, suite: MedicalConfig) -> list[Questions]:
    if session.is_demo:
        return [embedded_questions()]
    sets = _hub_sets(session, suite)
    return [read_questions(name, suite.pool, session.bench, session.cache, sets.get(name)) for name in suite.benchmarks]


def _hub_sets(session: Session, suite: MedicalConfig) -> dict[str, HubSet]:
    """Return the data sets that are read through `datasets`; those of the hub at a commit."""
    given = suite.hub or {}
    if unasked := [name for name in given if name not in suite.benchmarks]:
        raise InputError(f"suite.hub={_written(given)}: {', '.join(unasked)} is not among suite.benchmarks")
    found = {name: hub_set(path, f"suite.hub.{name}") for name, path in given.items()}
    for name, source in found.items():
        if not source.is_folder:
            commit = source.commit or pinned_commit(Path(session.config.root), source.path, LOCAL_COPY)
            check_on_hub("dataset", source.path, commit, LOCAL_COPY)
            found[name] = source._replace(commit=commit)
    return found


def _written(sets: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {path}" for name, path in sets.items()) + "}"


@contextmanager
def _scoring(session: Session, suite: MedicalConfig) -> Iterator[Scoring]:
    from sftmix.evaluation.generators.fitting import template_sha256, with_template
    from sftmix.evaluation.lm_eval.model import JournaledLM, ScoringOptions, why_no_reply

    tokenizer = session.tokenizer
    as_chat = None
    if suite.template is not None:
        tokenizer = with_template(tokenizer, suite.template, KEY)
        as_chat = chat_renderer(tokenizer, f"{KEY}={suite.template}")
    adds_bos = as_chat is None and puts_bos(tokenizer)  # a rendered chat has it already
    settings = {
        "model": session.target.identity,
        **precision(session.dtype, session.device),
        "adds_bos": adds_bos,
        "template_sha256": None if as_chat is None else template_sha256(tokenizer),
        "lm_eval": version("lm-eval"),
    }
    positions = getattr(session.pool.empty_model.config.get_text_config(), "max_position_embeddings", None)
    options = ScoringOptions(suite.batch_size, positions or USUAL_TOKENS, adds_bos, seed=0)
    show_progress = session.config.progress_bar
    with open_journal(session.folder("medical") / f"requests-{fingerprint(settings)}.jsonl", why_no_reply) as journal:
        lm = JournaledLM(
            session.pool, journal, options, tokenizer=tokenizer, title="medical", show_progress=show_progress
        )
        yield Scoring(Scorer(lm), as_chat, settings)


def _round(session: Session, suite: MedicalConfig, questions: Questions, round: int, scoring: Scoring) -> Evaluation:
    scorer, as_chat, settings = scoring
    benchmark = questions.name.partition(",")[0]  # shots keep their keys if a part of the test gives them
    finish = partial(finished_prompt, num_tokens=scorer.num_tokens, max_tokens=scorer.max_tokens, as_chat=as_chat)
    asked = questions.test[: session.config.limit]
    prompts = [finish(item, draw_shots(benchmark, round, item.id, questions.pool, suite.num_shots)) for item in asked]
    scores = scorer.score(prompts, f"{questions.name}, round {round}")
    by_question = _by_question("accuracy" if session.is_demo else benchmark, prompts, scores)
    return Evaluation(
        suite="medical",
        judge=None,
        benchmark=part_name(questions.name, session.config.limit, len(questions.test)),
        round=round,
        scores={name: mean_and_sd(list(values.values()))[0] for name, values in by_question.items()},
        questions=by_question,
        counts={
            "questions": len(prompts),
            "shots_cut": sum(p.num_cut_shots > 0 for p in prompts),
            "context_cut": sum(p.num_cut_words > 0 and p.fits for p in prompts),
            "too_long": sum(not p.fits for p in prompts),
        },
        record={
            "chance_of_letters": chance_of_letters(prompts, scores),
            "prompts_sha256": prompts_sha256(prompts),
            "source": questions.source,
            "pool_repeats": questions.num_repeats,
            "sd_over_rounds": SD,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        settings={
            **settings,
            "max_tokens": scorer.max_tokens,
            "num_shots": suite.num_shots,
            "pool": len(questions.pool),
            "pool_left_out": questions.num_left_out,
            "questions_sha256": rows_sha256([*questions.test, *questions.pool]),
        },
    )


def _by_question(
    column: str, prompts: Sequence[MedicalPrompt], scores: Sequence[Scored | None]
) -> dict[str, dict[str, float]]:
    """Return 100 for each right answer, else 0 (also if the question is too long), among the letters and freely.

    If some questions are too long, there is another column of those that fit.
    """
    pairs = list(zip(prompts, scores, strict=True))
    found = {
        column: {p.id: 100.0 * (s is not None and s.is_right) for p, s in pairs},
        f"{column} free": {p.id: 100.0 * (s is not None and s.is_right_free) for p, s in pairs},
    }
    fitting = {p.id: 100.0 * s.is_right for p, s in pairs if s is not None}
    return found | ({f"{column}{FITTING}": fitting} if 0 < len(fitting) < len(pairs) else {})


def _summary(asked: Sequence[Item], rounds: Sequence[Evaluation]) -> str:
    """Return one line: the accuracy beside chance, the commonest letter, and the chance of the chosen letters.

    Rounds ask the same questions, so the interval of their mean is that of one round.
    """

    def mean(column: str) -> float:
        return mean_and_sd([e.scores[column] for e in rounds])[0]

    column, free, *fitting = rounds[0].scores
    accuracy, sd = mean_and_sd([e.scores[column] for e in rounds])
    low, high = wilson_interval(round(accuracy / 100 * len(asked)), len(asked))
    chance = 100 * sum(1 / len(item.options) for item in asked) / len(asked)
    letter, count = Counter(LETTERS[item.answer] for item in asked).most_common(1)[0]
    spread = "" if sd is None else f" ± {sd:.1f} over {counted(len(rounds), 'round')}"
    too_long = rounds[0].counts["too_long"]
    without = "".join(f"; {mean(name):.1f}% of the {len(asked) - too_long:,} that fit" for name in fitting)
    return (
        f"{rounds[0].benchmark}: {accuracy:.1f}%{spread}, 95% interval {low:.1f} to {high:.1f} "
        f"({counted(len(asked), 'question')}); chance {chance:.1f}, always {letter} {100 * count / len(asked):.1f}, "
        f"by the letters it picks {mean_and_sd([e.record['chance_of_letters'] for e in rounds])[0]:.1f}; "
        f"free {mean(free):.1f}"
        + (f"; {too_long:,} too long for the model, counted as wrong{without}" if too_long else "")
    )
