"""`suite=medical`: MedQA, MedQA-5, PubMedQA and MedMCQA, three-shot (Table 2)."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftmix.analysis.paired import mean_and_sd
from sftmix.artifacts.hashes import fingerprint
from sftmix.data.templates import template_source
from sftmix.errors import InputError
from sftmix.evaluation.medical.benchmarks import Questions, read_questions
from sftmix.evaluation.medical.embedded import embedded_questions
from sftmix.evaluation.medical.hub import LOCAL_COPY, HubSet, hub_set
from sftmix.evaluation.medical.prompts import MedicalPrompt, draw_shots, finished_prompt
from sftmix.evaluation.medical.questions import LETTERS, Item, rows_sha256
from sftmix.evaluation.medical.schema import MEDICAL, MedicalConfig
from sftmix.evaluation.results import Evaluation, part_name
from sftmix.evaluation.session import Session
from sftmix.hub import check_on_hub
from sftmix.stages.inputs import pinned_commit
from sftmix.terminal import counted

if TYPE_CHECKING:
    from sftmix.evaluation.medical.scorer import Scored, Scorer

KEY = "suite.template"
FITTING = ", those that fit"  # behind a column's name: without the questions that are too long for the model
SD = "of a sample (n - 1); BioMistral's is the population's (n)"
POOL = "train"  # where shots are from if nothing else is said
PUBLISHED = "expected bench=FOLDER with the published files beside it"


def check(session: Session, suite: MedicalConfig) -> None:
    """What the suite lacks, before a model is loaded.

    Raises:
        InputError: lm-eval is not installed, a question file or the template is not there, a pool is too small, or
            embedded questions are asked and a setting chooses among published ones.
    """
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

    The standard deviation over rounds is that of a sample (n - 1), as everywhere here. BioMistral prints the
    population's (n), which is smaller: over three rounds by the factor sqrt(2/3).

    Raises:
        InputError: the model cannot be read, or its tokenizer joins a letter with what stands before it.
    """
    benchmarks = list(_questions(session, suite))
    if session.config.dry_run:
        for questions in benchmarks:
            num_asked = len(questions.test[: session.config.limit])
            print(f"{questions.name:12}{counted(suite.rounds, 'round')} of {counted(num_asked, 'question')}, no judge")
        return []
    scorer, as_chat, settings = _scorer(session, suite)
    found = []
    for questions in benchmarks:
        rounds = [
            _round(session, suite, questions, round, scorer, as_chat, settings) for round in range(1, suite.rounds + 1)
        ]
        print(_summary(questions.test[: session.config.limit], rounds), flush=True)
        found += rounds
    return found


def _check_embedded(suite: MedicalConfig) -> None:
    """Refuse what has no effect on embedded questions."""
    if set(suite.benchmarks) != set(MEDICAL):
        raise InputError(f"suite.benchmarks=[{','.join(suite.benchmarks)}]: embedded questions are asked, {PUBLISHED}")
    if suite.pool != POOL:
        raise InputError(f"suite.pool={suite.pool}: embedded questions have shots of their own, {PUBLISHED}")
    if suite.hub is not None:
        raise InputError(f"suite.hub={_written(suite.hub)}: embedded questions are asked, {PUBLISHED}")


def _questions(session: Session, suite: MedicalConfig) -> list[Questions]:
    if session.is_demo:
        return [embedded_questions()]
    sets = _hub_sets(session, suite)
    return [read_questions(name, suite.pool, session.bench, session.cache, sets.get(name)) for name in suite.benchmarks]


def _hub_sets(session: Session, suite: MedicalConfig) -> dict[str, HubSet]:
    """Where benchmarks are that are read through `datasets`; those of the hub at a commit."""
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


def _scorer(session: Session, suite: MedicalConfig) -> "tuple[Scorer, Callable[[str], str] | None, dict[str, Any]]":
    """Who scores, how a prompt is rendered as a chat, and everything beside the prompt that a score depends on."""
    from sftmix.evaluation.generators.local import with_template
    from sftmix.evaluation.medical.scorer import Scorer, chat_renderer, puts_bos

    causal_lm, tokenizer, device = session.model
    as_chat = None
    if suite.template is not None:
        tokenizer = with_template(tokenizer, suite.template, KEY)
        as_chat = chat_renderer(tokenizer, f"{KEY}={suite.template}")
    adds_bos = as_chat is None and puts_bos(tokenizer)  # a rendered chat has it already
    template = tokenizer.chat_template if as_chat is not None else None
    settings = {
        "model": session.target.identity,
        "dtype": session.dtype,
        "device": device,
        "adds_bos": adds_bos,
        "template_sha256": None if template is None else hashlib.sha256(str(template).encode()).hexdigest(),
        "lm_eval": version("lm-eval"),
    }
    return Scorer(causal_lm, tokenizer, batch_size=suite.batch_size, adds_bos=adds_bos), as_chat, settings


def _round(
    session: Session,
    suite: MedicalConfig,
    questions: Questions,
    round: int,
    scorer: "Scorer",
    as_chat: Callable[[str], str] | None,
    settings: dict[str, Any],
) -> Evaluation:
    from sftmix.evaluation.medical.rounds import chance_of_letters, prompts_sha256, score_round

    benchmark = questions.name.partition(",")[0]  # shots keep their keys where a part of the test gives them
    finish = partial(finished_prompt, num_tokens=scorer.num_tokens, max_tokens=scorer.max_tokens, as_chat=as_chat)
    asked = questions.test[: session.config.limit]
    prompts = [finish(row, draw_shots(benchmark, round, row.id, questions.pool, suite.num_shots)) for row in asked]
    name = f"{benchmark}-round{round}-{fingerprint(settings)}.jsonl"
    scores = score_round(
        prompts,
        scorer,
        session.folder("medical") / name,
        title=f"{questions.name}, round {round}",
        show_progress=session.config.progress_bar,
    )
    brought = _brought("accuracy" if session.is_demo else benchmark, prompts, scores)
    return Evaluation(
        suite="medical",
        judge=None,
        benchmark=part_name(questions.name, session.config.limit, len(questions.test)),
        round=round,
        scores={name: mean_and_sd(list(values.values()))[0] for name, values in brought.items()},
        questions=brought,
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


def _brought(
    column: str, prompts: Sequence[MedicalPrompt], scores: "Sequence[Scored | None]"
) -> dict[str, dict[str, float]]:
    """100 where a question was answered right, else 0 (also where it is too long), among the letters and freely.

    Where some are too long, those that fit have a column of their own.
    """
    pairs = list(zip(prompts, scores, strict=True))
    brought = {
        column: {p.id: 100.0 * (s is not None and s.is_right) for p, s in pairs},
        f"{column} free": {p.id: 100.0 * (s is not None and s.is_right_free) for p, s in pairs},
    }
    fitting = {p.id: 100.0 * s.is_right for p, s in pairs if s is not None}
    return brought | ({f"{column}{FITTING}": fitting} if 0 < len(fitting) < len(pairs) else {})


def _summary(asked: Sequence[Item], rounds: Sequence[Evaluation]) -> str:
    """One line: the accuracy beside chance, the commonest letter, and what the picked letters alone would bring."""
    from sftmix.evaluation.medical.rounds import wilson_interval

    column, free, *fitting = rounds[0].scores
    mean, sd = mean_and_sd([e.scores[column] for e in rounds])
    low, high = wilson_interval(mean, len(asked))
    chance = 100 * sum(1 / len(row.options) for row in asked) / len(asked)
    letter, count = Counter(LETTERS[row.answer] for row in asked).most_common(1)[0]
    spread = "" if sd is None else f" ± {sd:.1f} over {counted(len(rounds), 'round')}"
    too_long = rounds[0].counts["too_long"]
    without = "".join(
        f"; {mean_and_sd([e.scores[name] for e in rounds])[0]:.1f}% of the {len(asked) - too_long:,} that fit"
        for name in fitting
    )
    return (
        f"{rounds[0].benchmark}: {mean:.1f}%{spread}, 95% interval {low:.1f} to {high:.1f} "
        f"({counted(len(asked), 'question')}); chance {chance:.1f}, always {letter} {100 * count / len(asked):.1f}, "
        f"by the letters it picks {mean_and_sd([e.record['chance_of_letters'] for e in rounds])[0]:.1f}; "
        f"free {mean_and_sd([e.scores[free] for e in rounds])[0]:.1f}"
        + (f"; {too_long:,} too long for the model, counted as wrong{without}" if too_long else "")
    )
