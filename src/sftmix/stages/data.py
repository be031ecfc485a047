"""The data set of a run: its examples, their tokens under each tokenizer, what is held out and what is selected."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftmix.artifacts.artifact import Artifact
from sftmix.artifacts.manifest import read_json, verify
from sftmix.config.schema import Config
from sftmix.data.census import HELD_OUT, NOT_FOUND, NOT_SELECTED, SAME_TOKENS, Census
from sftmix.data.encoding import Encoder
from sftmix.data.example import is_held_out, place
from sftmix.data.generation_prompt import align_generation_prompt
from sftmix.data.selection import SelectionList, best, longest, random_examples
from sftmix.data.shards import EXAMPLES, TOKENS, EncodedExamples, Examples, map_shards
from sftmix.data.templates import set_template, template_source
from sftmix.errors import InputError
from sftmix.stages.plan import examples_artifact
from sftmix.stages.prepare import CENSUS, READING, make_examples, make_tokens, tokens_artifact
from sftmix.terminal import counted


class EncodedData(NamedTuple):
    """The data under one tokenizer."""

    tokenizer: Any  # Tokenizer with the chat template of the run
    encoder: Encoder  # Renders and tokenizes
    train: EncodedExamples
    val: EncodedExamples
    census: Census  # What happened to every row of the source


class DataSet:
    """The data set of a run. What is read or encoded is an artifact, made once for all runs that share it.

    Args:
        target_tokenizer: Returns the target's tokenizer with the chat template of the run. Examples are selected under
            this tokenizer (`data.select`), so that all models of a run train on the same ones.
    """

    def __init__(self, config: Config, target_tokenizer: Callable[[], Any]) -> None:
        self._config, self._target_tokenizer = config, target_tokenizer
        self.folders: set[Path] = set()  # Artifacts of the data set that were used
        self._encoded: dict[tuple[str, str, str], EncodedData] = {}

    @cached_property
    def _artifact(self) -> Artifact:
        artifact = examples_artifact(self._config)
        make_examples(artifact, self._config.data, self._config.trainer.progress_bar)
        verify(artifact.folder)
        self.folders.add(artifact.folder)
        return artifact

    @cached_property
    def reading(self) -> dict[str, Any]:
        """What was found in reading the source: its census, schemas, rows of each source, replaced responses."""
        return read_json(self._artifact.folder / READING)

    @cached_property
    def examples(self) -> Examples:
        """All examples of the source, mapped into memory."""
        return Examples(map_shards(self._artifact.folder, EXAMPLES))

    def use_template(self, tokenizer: Any) -> None:
        """Give a tokenizer the chat template of the run. With data.template=tokenizer, it keeps its own."""
        template = self._config.data.template
        set_template(tokenizer, template_source(template))
        if tokenizer.chat_template:
            align_generation_prompt(tokenizer, f"data.template={template}")

    def encode(self, tokenizer: Any) -> EncodedData:
        """Return the data under a tokenizer, which is given the chat template of the run."""
        self.use_template(tokenizer)
        key = (tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template), str(tokenizer.special_tokens_map))
        if key not in self._encoded:
            self._encoded[key] = self._encode(tokenizer)
        return self._encoded[key]

    def encode_all(self, tokenizer: Any) -> tuple[EncodedExamples, Encoder, Census]:
        """Return all examples that fit under a tokenizer, before any is held out or selected, and their data report."""
        encoder, artifact = self._tokens(tokenizer)
        census = Census()
        census.add(self.reading["census"])
        census.add(read_json(artifact.folder / CENSUS))
        everything = EncodedExamples(map_shards(artifact.folder, TOKENS))
        is_first = ~repeats_of(everything)
        self._count_dropped(census, everything, is_first, SAME_TOKENS)
        return everything.select(is_first), encoder, census

    def _encode(self, tokenizer: Any) -> EncodedData:
        data = self._config.data
        everything, encoder, census = self.encode_all(tokenizer)
        train, val = self._train_and_val(everything)
        if data.select is not None:
            chosen = np.isin(train.lines, self._selected_lines)
            self._count_dropped(census, train, chosen, f"{NOT_SELECTED} (data.select.by={data.select.by})")
            if data.select.path is not None:
                both = train.joined(val)
                for entry in self._listed.unknown(both.ids, self._rows(both)):
                    census.noted[NOT_FOUND].append(entry)
            if data.select.by == "ids":
                for where in self._places(val.select(self._listed.names(val.ids, self._rows(val)))):
                    census.noted[HELD_OUT].append(where)
            train = train.select(chosen)
        if len(train) < 2:
            source = Path(data.path).name if data.path else data.title
            lost = census.lost()
            raise InputError(
                f"{source}: {counted(len(train), 'example')} to train on, expected at least 2 ({len(val)} held "
                f"out{'; ' + lost if lost else ''}; data.max_seq_len={data.max_seq_len}, data.overlong={data.overlong})"
            )
        return EncodedData(tokenizer, encoder, train, val, census)

    def _tokens(self, tokenizer: Any) -> tuple[Encoder, Artifact]:
        """Return the artifact of the tokens under a tokenizer. Make the artifact if it is missing."""
        data = self._config.data
        encoder = Encoder(tokenizer, data.max_seq_len, data.overlong)
        artifact = tokens_artifact(self._artifact, encoder, data.title)
        progress = self._config.trainer.progress_bar
        make_tokens(artifact, self._artifact.folder, encoder, num_workers=data.num_workers, show_progress=progress)
        verify(artifact.folder)
        self.folders.add(artifact.folder)
        return encoder, artifact

    def _train_and_val(self, encoded: EncodedExamples) -> tuple[EncodedExamples, EncodedExamples]:
        """Return the examples to train on, before any selection, and the held-out ones."""
        dialogues = encoded.column("dialogue").to_pylist()
        data = self._config.data
        held_out = np.array([is_held_out(d, data.val_fraction, data.val_seed) for d in dialogues], dtype=bool)
        return encoded.select(~held_out), encoded.select(held_out)

    @cached_property
    def _selected_lines(self) -> np.ndarray:
        """Line numbers of the selected examples."""
        select = self._config.data.select
        assert select is not None
        _, artifact = self._tokens(self._target_tokenizer())
        everything = EncodedExamples(map_shards(artifact.folder, TOKENS))
        train, val = self._train_and_val(everything.select(~repeats_of(everything)))
        if select.by in ("longest", "random"):
            assert select.k is not None
            if select.by == "longest":
                chosen = longest(train.num_response_tokens, select.k)
            else:
                chosen = random_examples(train.ids, select.k, select.seed or 0, select.block or 0)
        else:
            self._listed.check_covers(sum(self.reading["rows"].values()))
            held_out = self._listed.names(val.ids, self._rows(val)).sum()
            scores = self._listed.scores(train.ids, self._rows(train), len(self.reading["rows"]), int(held_out))
            is_scored = select.by == "scores"
            chosen = best(scores, select.k, select.at_least) if is_scored else np.flatnonzero(~np.isnan(scores))
        return train.lines[chosen]

    @cached_property
    def _listed(self) -> SelectionList:
        select = self._config.data.select
        assert select is not None
        return SelectionList(Path(str(select.path)), as_scores=select.by == "scores")

    def _rows(self, encoded: EncodedExamples) -> list[int]:
        """Return the row of each example in its source, counted from 1."""
        return self.examples.table.column("row").take(encoded.lines).to_pylist()

    def _count_dropped(self, census: Census, encoded: EncodedExamples, kept: np.ndarray, reason: str) -> None:
        """Count the examples that are not kept as dropped. A row is dropped or shortened accordingly."""
        if kept.all():
            return
        left_out = encoded.select(~kept)
        places = self._places(left_out)
        for where, shortened in zip(places, left_out.column("shortened").to_pylist(), strict=True):
            if shortened:
                census.shortened[shortened].remove(where)
            else:
                census.kept -= 1
            census.dropped[reason].append(where)
        stay = set(self._places(encoded.select(kept)))
        whole = dict(zip(places, left_out.column("is_whole").to_pylist(), strict=True))
        for where, was_whole in whole.items():
            if where not in stay:
                census.rows["kept" if was_whole else "shortened"] -= 1
                census.rows["dropped"] += 1
            elif was_whole:
                census.rows["kept"] -= 1
                census.rows["shortened"] += 1

    def _places(self, encoded: EncodedExamples) -> list[str]:
        """Return the row of each example, as the census names it."""
        where = self.examples.table.select(["source", "row"]).take(encoded.lines).to_pydict()
        return [place(source, row) for source, row in zip(where["source"], where["row"], strict=True)]


def repeats_of(encoded: EncodedExamples) -> np.ndarray:
    """Return which examples have the token ids of an earlier one whose row has the same text, bool `[example]`.

    Two rows that divide the same text differently into instruction and input are two examples. A template that does not
    mark the input renders both as the same tokens.
    """
    repeats = np.zeros(len(encoded), dtype=bool)
    dialogues = encoded.column("dialogue").to_pylist()
    if len(set(dialogues)) == len(dialogues):
        return repeats
    first: dict[Any, list[int]] = {}
    keys = zip(dialogues, encoded.lengths.tolist(), encoded.num_prompt_tokens.tolist(), strict=True)
    for k, key in enumerate(keys):
        earlier = first.setdefault(key, [])
        repeats[k] = any(encoded[k].input_ids == encoded[other].input_ids for other in earlier)
        if not repeats[k]:
            earlier.append(k)
    return repeats
