"""suite=offline: metrics without a judge: held-out loss, its gap to training, calibration, linearity, repetition."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from sftmix.data.example import Message
from sftmix.evaluation.generators.answering import Prompt, answer_all
from sftmix.evaluation.offline.output import offline_page
from sftmix.evaluation.offline.run_data import RunConfidence, RunData, check_run_data, find_confidence, read_run_data
from sftmix.evaluation.offline.schema import OfflineConfig
from sftmix.evaluation.offline.scores import (
    LINEARITY,
    SUBSETS,
    Subset,
    answer_scores,
    calibration_scores,
    linearity_score,
    loss_scores,
    subsets_of,
    weighted_questions,
)
from sftmix.evaluation.results import Evaluation, part_name
from sftmix.evaluation.session import Session
from sftmix.provenance.runs import read_held_out
from sftmix.reports.page import write_pages

if TYPE_CHECKING:
    from sftmix.data.encoding import EncodedExample
    from sftmix.data.shards import EncodedExamples
    from sftmix.evaluation.offline.token_statistics import Linearity

BENCHMARK = "held-out"


def check(session: Session, suite: OfflineConfig) -> None:
    """Refuse a model without held-out data, before anything heavy is imported."""
    check_run_data(session.target, suite.name)


def evaluate(session: Session, suite: OfflineConfig) -> list[Evaluation]:
    """Return the scores of a run as one evaluation, and print them in tables."""
    if session.config.dry_run:
        print("offline     asks no judge, so that it costs nothing", flush=True)
        return []
    from sftmix.evaluation.offline.token_statistics import linearity, token_statistics
    from sftmix.models.language_model import SFTMixLM

    config, target = session.config, session.target
    assert target.run is not None
    data = read_run_data(target, suite.name, config.progress_bar)
    confidence = find_confidence(target.run, data.val.ids)
    val = data.val.select(np.arange(min(config.limit or len(data.val), len(data.val))))
    train = _drawn(data.trained, min(suite.num_train, config.limit or suite.num_train), config.seed)
    own = data.trained_subset  # of a run on one subset, the gap is over that subset
    gap = Subset([i for i in data.val.ids if own is None or data.subsets.get(i) == own], data.trained.ids)
    subsets = subsets_of(data.val.ids, data.train.ids, {} if confidence is None else confidence.values, gap)
    pairs = _pairs(val, subsets, config.seed)
    lm = SFTMixLM(session.model)
    forward: dict[str, Any] = {
        "batch_tokens": data.batch_tokens,
        "pad_token_id": data.pad_token_id,
        "show_progress": config.progress_bar,
    }
    held_out = token_statistics(lm, val, title="held out", **forward)
    trained = token_statistics(lm, train, title="trained on", **forward)
    between = linearity(lm, pairs, suite.lams, title="pairs", **forward) if pairs else None
    prompts = _prompts(_drawn(val, suite.num_answers, config.seed), data, suite.max_new_tokens)
    answers = []
    if prompts:
        folder, show_progress = session.folder("offline"), config.progress_bar
        answers = answer_all(prompts, session.generator, folder, title="answers", show_progress=show_progress)

    scores = loss_scores(held_out, trained, subsets) | calibration_scores(held_out, suite.num_bins)
    if between is not None:
        scores[LINEARITY] = linearity_score(between)
    of_answers, by_answer = answer_scores([prompt.id for prompt in prompts], answers)
    by_example, weights = weighted_questions(held_out, subsets, between)
    evaluation = Evaluation(
        suite.name,
        None,
        part_name(BENCHMARK, config.limit, len(data.val)),
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
        _record(session, data, confidence, between),
        {
            "identity": target.identity,
            "dtype": session.dtype,
            "device": session.device,
            "seed": config.seed,
            **asdict(suite),
        },
        weights,
    )
    print("\n" + write_pages([offline_page(evaluation, held_out, trained, subsets, between)], "text"), flush=True)
    return [evaluation]


def _drawn(encoded: "EncodedExamples", number: int, seed: int) -> "EncodedExamples":
    """Draw a number of examples by the seed and the ids only, or all if there are fewer."""
    ids = encoded.ids
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    drawn = random.Random(f"drawn {seed}").sample(by_id, min(number, len(ids)))
    return encoded.select(np.array(sorted(drawn), dtype=np.int64))


def _pairs(
    val: "EncodedExamples", subsets: dict[str, Subset], seed: int
) -> "list[tuple[EncodedExample, EncodedExample]]":
    """Draw pairs (confident, unconfident) of held-out examples by the seed, each example in one at most."""
    places = {i: k for k, i in enumerate(val.ids)}
    halves = [[places[i] for i in subsets[name].val if i in places] if name in subsets else [] for name in SUBSETS]
    generator = random.Random(f"pairs {seed}")
    for half in halves:
        generator.shuffle(half)
    return [(val[c], val[u]) for c, u in zip(*halves, strict=False)]


def _prompts(asked: "EncodedExamples", data: RunData, max_new_tokens: int) -> Sequence[Prompt]:
    """Return the prompts of held-out examples, to be answered greedily."""
    prompts = []
    for encoded, line in zip(asked, asked.lines.tolist(), strict=True):
        turns = tuple(Message(message.role, message.content) for message in data.texts[line].messages)
        prompts.append(Prompt(encoded.example_id, 1, 1, turns, 0.0, max_new_tokens))
    return prompts


def _record(
    session: Session, data: RunData, confidence: RunConfidence | None, between: "Linearity | None"
) -> dict[str, Any]:
    """Return the origin of the scores."""
    assert session.target.run is not None
    losses = read_held_out(session.target.run)
    return {
        "confidence": None if confidence is None else confidence.source,
        "trained_half": data.trained_subset,
        "held_out_loss_of_run": losses.over(list(losses.nll)),
        "linearity": between
        and {
            "lam": list(between.gap),
            "gap": list(between.gap.values()),
            "label_entropy": list(between.label_entropy.values()),
            "positions": between.num_positions,
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
