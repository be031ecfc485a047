"""Prompts as token ids in the room of a model: as in training, whatever engine continues them."""

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sftmix.data.generation_prompt import align_generation_prompt
from sftmix.data.prompts import PromptEncoder, without_oldest_turns
from sftmix.data.templates import set_template, template_source
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import ROOM_FOR_ANSWER, Answer, Prompt
from sftmix.evaluation.model_pool import ModelPool

STEPS = 16  # of a model's positions: the room of an answer is rounded down to them if the room is too little


class Fitted(NamedTuple):
    """The prompt of an index as token ids."""

    place: int
    ids: list[int]
    room: int  # Number of tokens that the answer may have; 0 if the last turn fills the model
    num_dropped_turns: int  # Number of oldest turns left out
    temperature: float
    key: str  # Of the draws


class PromptFitter:
    """Prompts of a model as token ids, and the tokens that end its answers. No weight of the model is read.

    Args:
        pool: The model.
        template_name: A shipped chat template or the path of a .jinja file; None for the tokenizer's own.
        max_positions: Most tokens of a prompt with its answer, if fewer than the model has positions.

    Raises:
        InputError: If there is no such template, the tokenizer has none, or no end token has an embedding.
    """

    def __init__(
        self, pool: ModelPool, template_name: str | None, *, seed: int, max_positions: int | None = None
    ) -> None:
        own_end = pool.tokenizer.eos_token_id  # a template may set another one
        self.tokenizer = with_template(pool.tokenizer, template_name, "generate.template")
        self.encoder = PromptEncoder(self.tokenizer, f"generate.template={template_name or 'null'}")
        self._seed, empty = seed, pool.empty_model
        self._num_embeddings: int = empty.get_input_embeddings().weight.shape[0]
        positions: int | None = getattr(empty.config.get_text_config(), "max_position_embeddings", None)
        self.num_positions = min((n for n in (positions, max_positions) if n is not None), default=None)
        self.stop_ids = self._stop_ids(own_end, empty.generation_config.eos_token_id)

    def fit(self, prompts: Sequence[Prompt]) -> list[Fitted]:
        """Return the prompts as token ids.

        Raises:
            InputError: If the template refuses a conversation, or a token has no embedding.
        """
        fitted = [self._fit(place, prompt) for place, prompt in enumerate(prompts)]
        check_prompts((f.ids for f in fitted), self.tokenizer, self._num_embeddings, "the model that answers")
        return fitted

    def answer(self, fitted: Fitted, ids: Sequence[int], finish: str) -> Answer:
        """Return the answer of these token ids, without a token that ended it."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        sha256 = hashlib.sha256(json.dumps(fitted.ids).encode()).hexdigest()
        return Answer(text.strip(), finish, len(ids), sha256, fitted.num_dropped_turns)

    def _fit(self, place: int, prompt: Prompt) -> Fitted:
        """Return the prompt in the model's room. The oldest turns of a conversation that is too long are left out.

        Room is kept for the whole answer or a quarter of the model's positions, whichever is less. If the last turn
        leaves less than the whole answer, the answer is cut at the end of the room, rounded down to a sixteenth of
        the positions so that such prompts can share batches. If it leaves nothing, the answer is empty and counts as
        cut: a shortened question would be another question.
        """
        messages = prompt.turns
        ids = self.encoder.prompt_ids(messages)
        draws = prompt.temperature, f"{self._seed}/{prompt.round}/{prompt.id}/{prompt.turn}"
        if self.num_positions is None:
            return Fitted(place, ids, prompt.max_new_tokens, 0, *draws)
        kept = min(prompt.max_new_tokens, self.num_positions // ROOM_FOR_ANSWER)
        while len(ids) + kept > self.num_positions and (fewer := without_oldest_turns(messages)) is not None:
            messages = fewer
            ids = self.encoder.prompt_ids(messages)
        left = max(0, self.num_positions - len(ids))
        step = max(1, self.num_positions // STEPS)
        room = left - left % step if left >= step else left
        room = prompt.max_new_tokens if left >= prompt.max_new_tokens else room
        return Fitted(place, ids, room, len(prompt.turns) - len(messages), *draws)

    def _stop_ids(self, own_end: int | None, of_folder: Any) -> list[int]:
        ids = of_folder if isinstance(of_folder, list) else [of_folder]
        found = {*ids, self.encoder.end_of_turn_id(), self.tokenizer.eos_token_id, own_end}
        if not (stop_ids := sorted(i for i in found - {None} if i < self._num_embeddings)):
            check_prompts([found - {None}], self.tokenizer, self._num_embeddings, "the model that answers cannot stop")
        return stop_ids


def template_sha256(tokenizer: Any) -> str:
    """Return the hash of the chat template of a tokenizer."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def with_template(tokenizer: Any, template_name: str | None, key: str) -> Any:
    """Return a copy of a tokenizer with a chat template, set as for training, or the tokenizer if there is no name.

    Args:
        template_name: A shipped chat template or the path of a .jinja file.
        key: Setting that named the template, for messages.

    Raises:
        InputError: If there is no such template.
    """
    source = None if template_name is None else template_source(template_name, key)
    if source is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    set_template(tokenizer, source)
    with suppress(InputError):  # a template that cannot be trained with may still be good for prompts
        align_generation_prompt(tokenizer, key)
    return tokenizer
