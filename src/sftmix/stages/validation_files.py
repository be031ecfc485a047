"""Validation files of another origin (`data.val_path`): their examples, as the tokenizer of a run sees them."""

from dataclasses import replace
from typing import Any, NamedTuple

from sftmix.config.schema import Config
from sftmix.data.census import Census
from sftmix.data.shards import EncodedExamples
from sftmix.data.vocabulary import check_examples
from sftmix.errors import InputError
from sftmix.stages.data import DataSet
from sftmix.terminal import counted

FEWEST = 30  # A loss over fewer examples is noisy, so that few held-out examples lead to a warning


class ValidationFile(NamedTuple):
    """The examples of a validation file under a tokenizer."""

    examples: EncodedExamples
    groups: list[str]  # Group of each example; empty if it has none
    census: Census  # What happened to every row of the file
    num_trained_on: int  # How many of its examples are trained on too

    def in_words(self, name: str) -> str:
        """Return a line for the terminal."""
        lost = self.census.lost()
        line = f"{name}: {counted(len(self.examples), 'example')}{f' ({lost})' if lost else ''}"
        if self.num_trained_on:
            line += f"; {self.num_trained_on:,} of them are trained on too, so their loss is not of unseen examples"
        return line


def read_validation_files(
    config: Config, tokenizer: Any, num_embeddings: int | None, train: EncodedExamples
) -> dict[str, ValidationFile]:
    """Read and encode the files of `data.val_path`, by name.

    Args:
        tokenizer: Tokenizer with the chat template of the run.
        num_embeddings: Number of embeddings of the model; None if it is not known.
        train: Examples to train on, to count those that a file repeats.

    Raises:
        InputError: If a file cannot be read, or has no example that fits.
    """
    found: dict[str, ValidationFile] = {}
    for name, path in config.data.val_files.items():
        data = DataSet(replace(config, data=config.data.of_val_file(name)), lambda: tokenizer)
        key = f"data.val_path={path}"
        try:
            examples, _, census = data.encode_all(tokenizer)
        except InputError as error:
            raise InputError(f"data.val_path, {name}: {error}") from None
        if not len(examples):
            size = f"expected one of at most {config.data.max_seq_len} tokens"
            raise InputError(f"{key}: no example to measure, {size} ({census.lost()})")
        check_examples(examples, tokenizer, num_embeddings, f"{key}: model {config.model.title}")
        groups = data.examples.table.column("group").take(examples.lines).to_pylist()
        found[name] = ValidationFile(examples, groups, census, num_shared(examples, train))
    return found


def num_shared(examples: EncodedExamples, train: EncodedExamples) -> int:
    """Return how many examples are trained on too, by their content.

    An example also counts if all turns of its row are those of a training row: the same text may be an instruction with
    an input in one file and one turn in another.
    """
    ids, dialogues = set(train.ids), set(train.column("dialogue").to_pylist())
    both = zip(examples.ids, examples.column("dialogue").to_pylist(), strict=True)
    return sum(example_id in ids or dialogue in dialogues for example_id, dialogue in both)


def few_held_out(num_held_out: int) -> str | None:
    """Return a warning if the held-out part is small, or None. An empty part has no loss, so nothing is noisy."""
    if not 0 < num_held_out < FEWEST:
        return None
    return (
        f"only {counted(num_held_out, 'example')} held out, expected at least {FEWEST} for a loss that is not mostly "
        f"noise: raise data.val_fraction, or measure further examples by data.val_path=FILE"
    )
