"""suite=lm_eval: any task of lm-evaluation-harness, by default IFEval and MMLU."""

from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftmix.artifacts.hashes import fingerprint
from sftmix.data.templates import template_source
from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.judge.journal import open_journal
from sftmix.evaluation.lm_eval.schema import LmEvalConfig
from sftmix.evaluation.results import Evaluation
from sftmix.evaluation.session import Session
from sftmix.terminal import counted

if TYPE_CHECKING:
    from sftmix.evaluation.lm_eval.catalog import LoadedTasks
    from sftmix.evaluation.lm_eval.prompting import Prompting

TEMPLATE = "suite.template"


def check(session: Session, suite: LmEvalConfig) -> None:
    """Check what the suite needs, and read the data sets of its tasks, before a model is loaded."""
    if find_spec("lm_eval") is None:
        raise InputError("suite=lm_eval: it needs lm_eval, pip install 'sftmix[eval]'")
    if suite.template is not None:
        template_source(suite.template, TEMPLATE)
    _prepare(session, suite)


def evaluate(session: Session, suite: LmEvalConfig) -> list[Evaluation]:
    """Let lm-eval ask the model, and return the scores."""
    from lm_eval.evaluator import evaluate as ask

    from sftmix.evaluation.lm_eval.catalog import refusing
    from sftmix.evaluation.lm_eval.model import JournaledLM, ScoringOptions, silent, why_no_reply
    from sftmix.evaluation.lm_eval.outcomes import evaluations_of
    from sftmix.evaluation.lm_eval.prompting import set_seeds

    loaded, prompting = _prepare(session, suite)
    config = session.config
    if config.dry_run:
        with silent():  # a task may process its questions anew
            totals = {name: len(task.eval_docs) for name, task in loaded.tasks.items()}
        for name, total in totals.items():
            print(f"{name:30}{counted(min(config.limit or total, total), 'question', 7)}")
        print(f"{counted(len(loaded.tasks), 'task')}, no judge")
        return []
    known = {
        "model": session.target.identity,
        "dtype": session.dtype,
        "device": session.device,
        "lm_eval": version("lm-eval"),
        "max_tokens": prompting.max_tokens,
        "seed": config.seed,
    }
    options = ScoringOptions(suite.batch_size, prompting.max_tokens, None, config.seed)
    file = session.folder("lm_eval") / f"requests-{fingerprint(known)}.jsonl"
    with open_journal(file, why_no_reply) as journal:
        lm = JournaledLM(
            session.pool,
            journal,
            options,
            tokenizer=prompting.tokenizer,
            title="lm_eval",
            show_progress=config.progress_bar,
        )
        set_seeds(loaded.tasks, config.seed)
        with refusing("suite=lm_eval", "lm-eval cannot score the answers"):
            # Each task decides whether it uses the chat template
            results = ask(lm, loaded._asdict(), limit=config.limit, bootstrap_iters=0, apply_chat_template=True)
    assert results is not None
    return evaluations_of(
        results,
        loaded,
        cut=lm.cut,
        limit=config.limit,
        settings={name: known | prompting.settings_of(name) for name in loaded.tasks},
        record={"batch_size": suite.batch_size, "date": datetime.now(UTC).isoformat(timespec="seconds")},
    )


def _prepare(session: Session, suite: LmEvalConfig) -> "tuple[LoadedTasks, Prompting]":
    """Return the tasks, ready to build their questions, after a trial of the first question of each."""
    from sftmix.evaluation.lm_eval.catalog import load_tasks
    from sftmix.evaluation.lm_eval.prompting import prepare, set_num_fewshot, set_seeds

    if "lm_eval" in session.prepared:  # a data set with many parts takes minutes
        return session.prepared["lm_eval"]
    print(f"tasks       {', '.join(suite.tasks)}; data sets are fetched once", flush=True)
    set_seeds({}, session.config.seed)
    loaded = load_tasks(suite.tasks, None if suite.include_path is None else Path(suite.include_path))
    set_num_fewshot(loaded.tasks, suite.num_fewshot)
    prompting = _prompting(session, suite, loaded.tasks)
    prepare(loaded.tasks, prompting)
    session.prepared["lm_eval"] = loaded, prompting
    return loaded, prompting


def _prompting(session: Session, suite: LmEvalConfig, tasks: dict[str, Any]) -> "Prompting":
    from lm_eval.models.utils import resolve_max_length

    from sftmix.evaluation.generators.fitting import with_template
    from sftmix.evaluation.lm_eval.prompting import Prompting, generates

    tokenizer = with_template(session.tokenizer, suite.template, TEMPLATE)
    if suite.apply_chat_template is None:
        in_chat = frozenset(name for name, task in tasks.items() if generates(task))
    else:
        in_chat = frozenset(tasks if suite.apply_chat_template else ())
    if in_chat and not tokenizer.chat_template:
        raise ConfigError(
            f"{TEMPLATE} has no value and {session.target.name} has no chat template, through which "
            f"{min(in_chat)} is asked; expected {TEMPLATE}=NAME, or suite.apply_chat_template=false"
        )
    if suite.template is not None and not in_chat:
        raise ConfigError(
            f"{TEMPLATE}={suite.template}: no task is asked through it, suite.apply_chat_template=true does"
        )
    prompting = Prompting(
        tokenizer,
        in_chat,
        fewshot_as_multiturn=suite.fewshot_as_multiturn,
        system_instruction=suite.system_instruction,
        max_tokens=resolve_max_length(session.pool.empty_model.config, tokenizer),
    )
    prompting.check()
    return prompting
