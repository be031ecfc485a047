"""Further held-out sets (`suite.sets`): examples of a file, encoded as the evaluated model sees them, and scored."""

import copy
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.data.census import Census
from sftmix.data.encoding import EncodedExample, Encoder
from sftmix.data.example import Example
from sftmix.data.reader import examples_from_rows
from sftmix.data.shards import EncodedExamples
from sftmix.data.sources import read_file
from sftmix.data.templates import choices
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.generators.fitting import with_template
from sftmix.evaluation.offline.schema import OfflineConfig
from sftmix.evaluation.offline.scores import (
    RANDOM_LINEARITY,
    linearity_record,
    linearity_score,
    token_scores,
    weighted_questions,
)
from sftmix.evaluation.results import Evaluation, part_name
from sftmix.evaluation.session import Session
from sftmix.models.loading import num_embeddings, num_positions
from sftmix.stages.prepare import tokenizer_hashes
from sftmix.terminal import counted

if TYPE_CHECKING:
    from sftmix.evaluation.offline.token_statistics import Forward, Pair

MOST_TOKENS = 4096  # longest example of a model without a run, whose config would name the maximum


class HeldOutSet(NamedTuple):
    """The examples of a set as a model sees them."""

    benchmark: str  # Name of the set; another name if only the first examples were taken
    source: str  # Name of the file
    examples: list[Example]  # Examples that were read
    encoded: dict[str, EncodedExample]  # Those that fit the model, by id. A shortened example has another `example_id`
    census: Census  # What happened to every row
    encoder: Encoder

    @property
    def sha256(self) -> str:
        """Hash of the contents of the examples. It depends neither on their order nor on the format of the file."""
        return hashlib.sha256("\n".join(sorted(e.id for e in self.examples)).encode()).hexdigest()

    def pairs(self, seed: int) -> "list[Pair]":
        """Draw pairs of examples, each example in at most one, by the seed and the contents of the set only.

        Every model has the same pairs, except those of which one example does not fit.
        """
        ids = sorted(e.id for e in self.examples)
        random.Random(f"pairs {seed}").shuffle(ids)
        drawn = zip(ids[::2], ids[1::2], strict=False)
        return [(self.encoded[a], self.encoded[b]) for a, b in drawn if a in self.encoded and b in self.encoded]

    def num_trained_on(self, trained: EncodedExamples) -> int:
        """Return how many of the encoded examples a run was trained on, by their content.

        An example also counts if all turns of its row are those of a training row: the same text may be an instruction
        with an input in one file and one turn in another.
        """
        ids, dialogues = set(trained.ids), set(trained.column("dialogue").to_pylist())
        return sum((e.id in ids or e.dialogue in dialogues) and e.id in self.encoded for e in self.examples)


def read_sets(session: Session, sets: Mapping[str, str]) -> list[HeldOutSet]:
    """Read and encode all sets. A run sees them as its training data: same chat template and maximum length.

    Raises:
        InputError: If a file cannot be read or has no example that fits, or if the model has no chat template.
    """
    if not sets:
        return []
    encoder = _encoder_of(session)
    return [_read_set(name, Path(path), encoder, session) for name, path in sets.items()]


def _encoder_of(session: Session) -> Encoder:
    target, tokenizer = session.target, copy.deepcopy(session.tokenizer)
    if target.config is not None:  # the exported tokenizer has the template of training
        data = target.config["data"]
        return Encoder(tokenizer, data["max_seq_len"], "truncate" if data["overlong"] == "truncate" else "drop")
    tokenizer = with_template(tokenizer, session.config.generate.template, "generate.template")
    if not tokenizer.chat_template:
        raise InputError(f"generate.template has no value and {target.name} has no chat template, expected {choices()}")
    positions = num_positions(target.model, target.revision)
    return Encoder(tokenizer, min(positions or MOST_TOKENS, MOST_TOKENS), "drop")


def _read_set(name: str, path: Path, encoder: Encoder, session: Session) -> HeldOutSet:
    key, census, target, limit = f"suite.sets.{name}", Census(), session.target, session.config.limit
    try:
        everything = examples_from_rows(read_file(path), census)
    except InputError as error:
        message = f"{key}: {error}"
        if "data." in message.partition(str(path))[2]:
            message += ". Settings data.* belong to train.py: for a set, change the file"
        raise InputError(message) from None
    examples = everything[:limit]
    fitted = encoder.fit(examples, census)
    if not fitted:
        raise InputError(
            f"{key}={path}: no example to evaluate, expected one of at most {encoder.max_seq_len} tokens "
            f"({census.lost()})"
        )
    if (size := num_embeddings(target.model, target.revision)) is not None:
        check_prompts((f.encoded.input_ids for f in fitted), encoder.tokenizer, size, f"{key}: model {target.name}")
    encoded = {f.encoded.example_id: f.encoded for f in fitted}
    for f in fitted:
        if f.shortened:  # models with another maximum length see another text
            name_of_cut = f"{f.encoded.example_id} within {encoder.max_seq_len} tokens"
            encoded[f.encoded.example_id] = replace(f.encoded, example_id=name_of_cut)
    return HeldOutSet(part_name(name, limit, len(everything)), path.name, examples, encoded, census, encoder)


def shared_examples(sets: Sequence[HeldOutSet]) -> Iterator[str]:
    """Yield a line for each two sets that have examples in common."""
    for one, other in combinations(sets, 2):
        ids = {e.id for e in one.examples}
        if common := sum(e.id in ids for e in other.examples):
            yield f"{one.benchmark} and {other.benchmark} have {counted(common, 'example')} in common"


def evaluate_set(
    held_out: HeldOutSet,
    suite: OfflineConfig,
    forward: "Forward",
    settings: Mapping[str, Any],
    trained: EncodedExamples | None,
) -> Evaluation:
    """Return the scores of a set.

    Args:
        settings: Settings of the evaluation that do not depend on the set.
        trained: Examples that the evaluated run was trained on; None if the model does not belong to a run.
    """
    from sftmix.evaluation.offline.token_statistics import linearity, token_statistics

    pairs, encoder, census = held_out.pairs(settings["seed"]), held_out.encoder, held_out.census
    found = token_statistics(forward, list(held_out.encoded.values()), held_out.benchmark)
    between = linearity(forward, pairs, suite.lams, f"{held_out.benchmark}, pairs") if pairs else None
    questions, weights = weighted_questions(found, {}, between, RANDOM_LINEARITY)
    counts = {
        "questions": len(found.nll),
        "tokens": sum(found.num_tokens.values()),
        "dropped": census.num_dropped,
        "shortened": sum(places.count for places in census.shortened.values()),
        "pairs": len(pairs),
    }
    return Evaluation(
        suite.name,
        None,
        held_out.benchmark,
        1,
        token_scores(found, suite.num_bins) | ({} if between is None else {RANDOM_LINEARITY: linearity_score(between)}),
        questions,
        counts | ({} if trained is None else {"trained_on": held_out.num_trained_on(trained)}),
        {
            "source": held_out.source,
            "max_seq_len": encoder.max_seq_len,
            "overlong": encoder.overlong,
            "data_report": census.as_dict(),
            "linearity": linearity_record(between),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        {
            **settings,
            **tokenizer_hashes(encoder.tokenizer),
            "examples_sha256": held_out.sha256,
            "num_bins": suite.num_bins,
            "lams": suite.lams,
        },
        weights,
    )
