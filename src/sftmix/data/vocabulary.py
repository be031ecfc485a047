"""Refuse token ids for which a model has no embedding, before the model reads them."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from pyarrow import compute

from sftmix.data.example import Message
from sftmix.data.generation_prompt import render
from sftmix.data.prompts import PromptEncoder
from sftmix.data.shards import EncodedExamples
from sftmix.errors import InputError

SHOWN = 5  # tokens that a message names
LIKE_A_TOKEN = re.compile(r"<[^<>\s]{1,40}>")  # how special tokens are written


def check_template(encoder: PromptEncoder, end_token_id: int, num_embeddings: int | None, who: str) -> None:
    """Raise an InputError if a token of the template, or the end token, has no embedding: every example holds it.

    Args:
        num_embeddings: Number of embeddings of the model `who`. If None (not known), nothing is refused.
    """
    if num_embeddings is None:
        return
    ids = {*encoder.prompt_ids([Message("user", "a")]), end_token_id}
    if missing := {i for i in ids if i >= num_embeddings}:
        raise InputError(_message(encoder.tokenizer, missing, num_embeddings, who, "every example holds"))


def split_tokens(encoder: PromptEncoder) -> dict[str, int]:
    """Return the token counts of strings of a template that look like special tokens and are not in the vocabulary."""
    tokenizer, vocabulary = encoder.tokenizer, encoder.tokenizer.get_vocab()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    strings = dict.fromkeys(LIKE_A_TOKEN.findall(render(tokenizer, turns)))
    return {text: len(tokenizer.tokenize(text)) for text in strings if text not in vocabulary}


def check_examples(encoded: EncodedExamples, tokenizer: Any, num_embeddings: int | None, who: str) -> None:
    """Raise an InputError if an example of the table of `encoded` has a token without an embedding.

    Args:
        num_embeddings: Number of embeddings of the model `who`. If None (not known), nothing is refused.
    """
    if num_embeddings is None or max(tokenizer.get_vocab().values(), default=0) < num_embeddings:
        return
    missing: set[int] = set()
    count = 0
    for chunk in encoded.table.column("input_ids").chunks:
        ids = chunk.flatten().to_numpy()
        is_missing = ids >= num_embeddings
        missing.update(np.unique(ids[is_missing]).tolist())
        count += len(np.unique(compute.list_parent_indices(chunk).to_numpy()[is_missing]))
    if missing:
        holds = f"{count:,} of {len(encoded.table):,} examples hold"
        raise InputError(_message(tokenizer, missing, num_embeddings, who, holds))


def check_prompts(prompts: Iterable[Iterable[int]], tokenizer: Any, num_embeddings: int, who: str) -> None:
    """Raise an InputError if a token id of a prompt is not below the number of embeddings of the model `who`."""
    missing = [{i for i in ids if i >= num_embeddings} for ids in prompts]
    if any(missing):
        holds = f"{sum(map(bool, missing)):,} of {len(missing):,} prompts hold"
        raise InputError(_message(tokenizer, set().union(*missing), num_embeddings, who, holds))


def _message(tokenizer: Any, missing: set[int], num_embeddings: int, who: str, holds: str) -> str:
    named = [f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in sorted(missing)]
    more = f" and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
    return (
        f"{who}: the tokenizer has {len(tokenizer):,} tokens and the model {num_embeddings:,} embeddings; {holds} "
        f"tokens without an embedding: {', '.join(named[:SHOWN])}{more}. Expected the tokenizer that the model was "
        "made with, or a model resized to it (model.resize_token_embeddings(len(tokenizer)), then save_pretrained)"
    )
