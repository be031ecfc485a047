"""Data, tokenizers and models as the configuration means them, each read once for all stages of a run."""

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.config import Config, Model, to_dict
from sftmix.data.census import Census
from sftmix.data.demo import demo_rows, demo_texts
from sftmix.data.encoding import EncodedExample, Encoder
from sftmix.data.example import Example
from sftmix.data.examples import examples_from_rows, hold_out
from sftmix.data.sources import Row, read_file, read_hub
from sftmix.data.templates import set_template, template_source
from sftmix.errors import InputError
from sftmix.models.loading import load_causal_lm, load_tokenizer, num_positions, set_pad_token
from sftmix.models.tiny import tiny_llama, tiny_tokenizer
from sftmix.stages.plan import data_name
from sftmix.stages.tokens import encode_once

# The embedded tokenizer is trained on the embedded set as it ships, whatever the run's data.
TINY_TEXTS = {"num_examples": 2000, "seed": 0}


class Encoded(NamedTuple):
    """The data under one model's tokenizer.

    Attributes:
        tokenizer: with the chat template that was rendered.
        encoder: renders and tokenizes.
        train: examples to train on.
        val: held-out examples.
        census: what became of every row.
    """

    tokenizer: Any
    encoder: Encoder
    train: list[EncodedExample]
    val: list[EncodedExample]
    census: Census


class Materials:
    """What the stages of one run are made from."""

    def __init__(self, config: Config) -> None:
        """Nothing is read yet."""
        self.config = config
        self._tokenizers: dict[str, Any] = {}
        self._encoded: dict[tuple[str, str, str], Encoded] = {}

    @property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """Examples to train on and held-out ones, as the source has them.

        Raises:
            InputError: the source cannot be read, or holds fewer than two examples.
        """
        train, val, _ = self._read
        return train, val

    @cached_property
    def _read(self) -> tuple[list[Example], list[Example], Census]:
        """The source's examples and what reading dropped."""
        data, census = self.config.data, Census()
        found = examples_from_rows(self._rows(), self._source, data.limit, census)
        train, val = hold_out(found, data.val_fraction)
        if len(train) < 2:
            lost = "; ".join(f"{len(places)} dropped: {reason}" for reason, places in census.dropped.items())
            raise InputError(
                f"{self._source}: {len(train)} examples to train on, expected at least 2 ({len(val)} held out"
                f"{'; ' + lost if lost else ''})"
            )
        return train, val, census

    @property
    def _source(self) -> str:
        data = self.config.data
        return Path(data.path).name if data.path else data.hub_id or "demo"

    def _rows(self) -> Iterator[Row]:
        data = self.config.data
        if data.path is not None:
            yield from read_file(Path(data.path))
        elif data.demo is not None:
            for number, fields in enumerate(demo_rows(data.demo.num_examples, data.demo.seed), start=1):
                yield Row(f"demo, row {number}", number, fields)
        else:
            yield from read_hub(str(data.hub_id), data.revision, str(data.split))

    def encoded(self, model: Model) -> Encoded:
        """The data under a model's tokenizer.

        Raises:
            InputError: the tokenizer or its template cannot be used, or fewer than two examples are left.
        """
        key = json.dumps(to_dict(model))
        if key not in self._tokenizers:
            self._check_positions(model)
            self._tokenizers[key] = self.tokenizer(model)
        return self.encoded_by(self._tokenizers[key])

    def encoded_by(self, tokenizer: Any) -> Encoded:
        """The data under a tokenizer, with the run's template or the tokenizer's own by data.template=tokenizer.

        Raises:
            InputError: the template cannot be used, or fewer than two examples are left.
        """
        set_template(tokenizer, template_source(self.config.data.template))
        key = (tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template), str(tokenizer.special_tokens_map))
        if key not in self._encoded:
            self._encoded[key] = self._encode(tokenizer)
        return self._encoded[key]

    def _encode(self, tokenizer: Any) -> Encoded:
        data = self.config.data
        encoder = Encoder(tokenizer, data.max_seq_len, data.overlong)
        train, val, read = self._read
        census = deepcopy(read)
        encoded = encode_once(
            encoder,
            [*train, *val],
            census,
            root=Path(self.config.root),
            title=data_name(data),
            show_progress=self.config.trainer.progress_bar,
        )
        held_out = {e.id for e in val}
        kept = [e for e in encoded if e.example.id not in held_out]
        if len(kept) < 2:
            lost = "; ".join(
                f"{len(places)} dropped: {reason} ({places[0]})" for reason, places in census.dropped.items()
            )
            raise InputError(
                f"{self._source}: {len(kept)} examples to train on, expected at least 2; {lost} "
                f"(data.max_seq_len={data.max_seq_len}, data.overlong={data.overlong})"
            )
        return Encoded(tokenizer, encoder, kept, [e for e in encoded if e.example.id in held_out], census)

    def _check_positions(self, model: Model) -> None:
        """Refuse sequences that are longer than what a model was made for."""
        wanted = self.config.data.max_seq_len
        if model.init is not None:
            positions: int | None = model.init.max_position_embeddings
        else:
            positions = num_positions(str(model.path), model.revision)
        if positions is not None and wanted > positions:
            raise InputError(
                f"data.max_seq_len={wanted}: model {model.name} has {positions} positions, set "
                f"data.max_seq_len={positions}"
            )

    def tokenizer(self, model: Model) -> Any:
        """A model's tokenizer, with a pad token.

        Raises:
            InputError: it cannot be had.
        """
        if model.init is not None:
            tokenizer = tiny_tokenizer(demo_texts(**TINY_TEXTS), model.init.vocab_size)
            set_pad_token(tokenizer, model.pad_token)
            return tokenizer
        return load_tokenizer(str(model.path), model.revision, model.pad_token)

    def causal_lm(self, model: Model) -> Any:
        """A model with its weights in float32.

        Raises:
            InputError: it cannot be had.
        """
        if model.init is not None:
            shape = {k: v for k, v in to_dict(model.init).items() if k != "vocab_size"}
            return tiny_llama(self.encoded(model).tokenizer, **shape)
        return load_causal_lm(str(model.path), model.revision)
