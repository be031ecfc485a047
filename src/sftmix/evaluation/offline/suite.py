"""suite=offline: metrics without a judge: held-out loss, its gap to training, calibration, linearity, repetition."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Prompt, answer_all
from sftmix.evaluation.offline.output import offline_page, sets_page
from sftmix.evaluation.offline.run_data import (
    RunData,
    check_run_data,
    find_confidence,
    holds_out,
    read_run_data,
)
from sftmix.evaluation.offline.schema import OfflineConfig
from sftmix.evaluation.offline.scores import (
    LINEARITY,
    SUBSETS,
    Subset,
    answer_scores,
    linearity_record,
    linearity_score,
    subset_scores,
    subsets_of,
    token_scores,
    weighted_questions,
)
from sftmix.evaluation.offline.sets import evaluate_set, read_sets, shared_examples
from sftmix.evaluation.results import OWN_HELD_OUT, Evaluation, part_name
from sftmix.evaluation.session import Session
from sftmix.models.loading import precision
from sftmix.provenance.runs import read_held_out
from sftmix.reports.page import write_pages

if TYPE_CHECKING:
    from sftmix.data.shards import EncodedExamples
    from sftmix.evaluation.offline.token_statistics import Forward, Pair

BATCH_TOKENS = 8192  # tokens of a forward pass of a model without a run, padding included


def check(session: Session, suite: OfflineConfig) -> None:
    """Refuse sets that cannot be read, or a model without sets and held-out data, before the model is loaded."""
    target = session.target
    if suite.sets:
        session.prepared[suite.name] = read_sets(session, suite.sets)
        return
    if target.run is not None:
        check_run_data(target)
    if not holds_out(target):
        what = f"{target.model} is a model without a run" if target.run is None else f"{target.name} holds nothing out"
        raise InputError(
            f"suite=offline: {what}, expected a run of train.py with data.val_fraction=0.1, or files of examples: "
            "'suite.sets={NAME: FILE}'"
        )


def evaluate(session: Session, suite: OfflineConfig) -> Iterator[Evaluation]:
    """Yield the scores of the run's own held-out examples and of each set, and print them in tables."""
    config = session.config
    if config.dry_run:
        print("offline     asks no judge, so that it costs nothing", flush=True)
        return
    from sftmix.evaluation.offline.token_statistics import Forward

    sets = session.prepared.get(suite.name, [])
    for held_out in sets:
        print(f"{held_out.benchmark}: {held_out.source}\n{held_out.census.table()}", flush=True)
    for line in shared_examples(sets):
        print(line, flush=True)
    data = _own_data(session, suite)
    batch_tokens = BATCH_TOKENS if data is None else data.batch_tokens
    forward = Forward(session.pool, batch_tokens, config.progress_bar)
    if data is not None and len(data.val):
        yield _evaluate_run(session, suite, data, forward)
    found = []
    for held_out in sets:
        trained = None if data is None else data.trained
        found.append(evaluate_set(held_out, suite, forward, _settings(session), trained))
        yield found[-1]
    if found:
        print("\n" + write_pages([sets_page(found)], "text"), flush=True)


def _own_data(session: Session, suite: OfflineConfig) -> RunData | None:
    """Return the data of the run. If there are sets, data that cannot be read are left out with a printed line."""
    if session.target.run is None:
        return None
    try:
        return read_run_data(session.target, session.config.progress_bar)
    except InputError as error:
        if not suite.sets:
            raise
        print(f"{OWN_HELD_OUT}    left out: {error}", flush=True)
        return None


def _evaluate_run(session: Session, suite: OfflineConfig, data: RunData, forward: "Forward") -> Evaluation:
    """Return the scores of the run's own held-out examples, and print them."""
    from sftmix.evaluation.offline.token_statistics import linearity, token_statistics

    config, run = session.config, session.target.run
    assert run is not None
    losses, confidence = read_held_out(run), find_confidence(run, data.val.ids, data.train.ids)
    val = data.val.select(np.arange(min(config.limit or len(data.val), len(data.val))))
    train = _drawn(data.trained, min(suite.num_train, config.limit or suite.num_train), config.seed)
    own = data.trained_subset  # of a run on one subset, the gap is over that subset
    gap = Subset([i for i in data.val.ids if own is None or data.subsets.get(i) == own], data.trained.ids)
    subsets = subsets_of(data.val.ids, data.train.ids, {} if confidence is None else confidence.values, gap)
    pairs = _pairs(val, subsets, config.seed)
    held_out = token_statistics(forward, val, "held out")
    trained = token_statistics(forward, train, "trained on")
    between = linearity(forward, pairs, suite.lams, "pairs") if pairs else None
    prompts = _prompts(_drawn(val, suite.num_answers, config.seed), data, suite.max_new_tokens)
    answers = []
    if prompts:
        folder = session.folder("offline")
        answers = answer_all(prompts, session.generator, folder, title="answers", show_progress=config.progress_bar)

    scores = token_scores(held_out, suite.num_bins) | subset_scores(held_out, trained, subsets)
    if between is not None:
        scores[LINEARITY] = linearity_score(between)
    of_answers, by_answer = answer_scores([prompt.id for prompt in prompts], answers)
    by_example, weights = weighted_questions(held_out, subsets, between)
    evaluation = Evaluation(
        suite.name,
        None,
        part_name(OWN_HELD_OUT, config.limit, len(data.val)),
        1,
        scores | of_answers,
        by_example | by_answer,
        {
            "questions": len(val),
            "trained_on": len(train),
            "without_confidence": sum(confidence is None or i not in confidence.values for i in val.ids),
            "pairs": len(pairs),
            "answers": len(answers),
            "cut_by_length": sum(answer.finish == "length" for answer in answers),
        },
        {
            "confidence": None if confidence is None else confidence.source,
            "trained_subset": own,
            "held_out_loss_of_run": losses.over(list(losses.nll)),
            "linearity": linearity_record(between),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        _settings(session) | {key: value for key, value in asdict(suite).items() if key != "sets"},
        weights,
    )
    print("\n" + write_pages([offline_page(evaluation, held_out, trained, subsets, between)], "text"), flush=True)
    return evaluation


def _settings(session: Session) -> dict[str, Any]:
    of_device = precision(session.dtype, session.device)
    return {"identity": session.target.identity, **of_device, "seed": session.config.seed}


def _drawn(encoded: "EncodedExamples", number: int, seed: int) -> "EncodedExamples":
    """Draw a number of examples by the seed and the ids only, or all if there are fewer."""
    ids = encoded.ids
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    drawn = random.Random(f"drawn {seed}").sample(by_id, min(number, len(ids)))
    return encoded.select(np.array(sorted(drawn), dtype=np.int64))


def _pairs(val: "EncodedExamples", subsets: dict[str, Subset], seed: int) -> "list[Pair]":
    """Draw pairs (confident, unconfident) of held-out examples by the seed, each example in at most one."""
    indices = {i: k for k, i in enumerate(val.ids)}
    members = [[indices[i] for i in subsets[name].val if i in indices] if name in subsets else [] for name in SUBSETS]
    generator = random.Random(f"pairs {seed}")
    for subset in members:
        generator.shuffle(subset)
    return [(val[c], val[u]) for c, u in zip(*members, strict=False)]


def _prompts(asked: "EncodedExamples", data: RunData, max_new_tokens: int) -> Sequence[Prompt]:
    """Return the prompts of held-out examples, to be answered greedily."""
    prompts = []
    for encoded, line in zip(asked, asked.lines.tolist(), strict=True):
        turns = tuple(Message(message.role, message.content) for message in data.texts[line].messages)
        prompts.append(Prompt(encoded.example_id, 1, 1, turns, 0.0, max_new_tokens))
    return prompts
