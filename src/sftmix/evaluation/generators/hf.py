"""The model in this process answers: prompts as in training, in batches, with draws that depend on the prompt only."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

from sftmix.data.generation_prompt import align_generation_prompt
from sftmix.data.prompts import PromptEncoder, without_oldest_turns
from sftmix.data.templates import set_template, template_source
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import ROOM_FOR_ANSWER, Answer, Prompt

STEPS = 16  # of a model's positions: the room of an answer is rounded down to them if the room is too little


class Fitted(NamedTuple):
    """The prompt of an index as token ids."""

    place: int
    ids: list[int]
    room: int  # Number of tokens that the answer may have; 0 if the last turn fills the model
    num_dropped_turns: int  # Number of oldest turns left out


class HFGenerator:
    """A `Generator` on transformers.

    In float32 an answer depends only on `settings` and its prompt. In bfloat16 it also depends on the batch, as sums
    are rounded in another order.

    Args:
        causal_lm: Model on its device and in its precision.
        identity: Hash or commit of its weights.
        template_name: A shipped chat template or the path of a .jinja file; None for the tokenizer's own.

    Raises:
        InputError: If there is no such template, the tokenizer has none, or no end token has an embedding.
    """

    def __init__(
        self,
        causal_lm: Any,
        tokenizer: Any,
        *,
        identity: str,
        template_name: str | None,
        seed: int,
        batch_size: int,
    ) -> None:
        own_end = tokenizer.eos_token_id  # a template may set another one
        tokenizer = with_template(tokenizer, template_name, "generate.template")
        self.causal_lm, self.tokenizer = causal_lm, tokenizer
        self.seed, self.batch_size = seed, batch_size
        self.encoder = PromptEncoder(tokenizer, f"generate.template={template_name or 'null'}")
        self._num_embeddings: int = causal_lm.get_input_embeddings().weight.shape[0]
        self.stop_ids = self._stop_ids(own_end)
        self.num_positions: int | None = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)
        known = known_settings(
            tokenizer,
            identity=identity,
            template_name=None,  # it is in the tokenizer already
            seed=seed,
            dtype=str(causal_lm.dtype).removeprefix("torch."),
            device=causal_lm.device.type,
        )
        self.settings = known | {"stop_ids": self.stop_ids}

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each prompt and its answer, a batch at a time, the longest first.

        Raises:
            InputError: If the template refuses a conversation, a token has no embedding, or a batch does not fit the
                GPU.
        """
        fitted = [self._fit(place, prompt) for place, prompt in enumerate(prompts)]
        check_prompts((f.ids for f in fitted), self.tokenizer, self._num_embeddings, "the model that answers")
        # The longest first, so that too little memory shows early
        longest_first = sorted(fitted, key=lambda f: (f.room, len(f.ids)), reverse=True)
        for _, group in groupby(longest_first, key=lambda f: f.room):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                continuations = self._continue(batch, [prompts[f.place] for f in batch], tell)
                for f, (ids, finish) in zip(batch, continuations, strict=True):
                    text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                    sha256 = hashlib.sha256(json.dumps(f.ids).encode()).hexdigest()
                    yield f.place, Answer(text.strip(), finish, len(ids), sha256, f.num_dropped_turns)

    def _continue(
        self, batch: Sequence[Fitted], prompts: Sequence[Prompt], tell: Callable[[str], object]
    ) -> list[tuple[list[int], str]]:
        import torch

        from sftmix.models.generation import generate_batch

        room, longest = batch[0].room, max(len(f.ids) for f in batch)
        if room == 0:
            return [([], "length") for _ in batch]
        try:
            return generate_batch(
                self.causal_lm,
                [f.ids for f in batch],
                stop_ids=self.stop_ids,
                max_new_tokens=room,
                temperatures=[prompt.temperature for prompt in prompts],
                keys=[f"{self.seed}/{prompt.round}/{prompt.id}/{prompt.turn}" for prompt in prompts],
                each_token=lambda number: tell(f"{len(batch)} at a time, token {number:,} of at most {room:,}"),
            )
        except torch.OutOfMemoryError:
            raise InputError(
                f"generate.batch_size={self.batch_size}: {len(batch)} prompts of up to {longest} tokens do not fit the "
                "GPU, give less; answers so far are kept"
            ) from None

    def _fit(self, place: int, prompt: Prompt) -> Fitted:
        """Return the prompt in the model's room. The oldest turns of a conversation that is too long are left out.

        Room is kept for the whole answer or a quarter of the model's positions, whichever is less. If the last turn
        leaves less than the whole answer, the answer is cut at the end of the room, rounded down to a sixteenth of
        the positions so that such prompts can share batches. If it leaves nothing, the answer is empty and counts as
        cut: a shortened question would be another question.
        """
        messages = prompt.turns
        ids = self.encoder.prompt_ids(messages)
        if self.num_positions is None:
            return Fitted(place, ids, prompt.max_new_tokens, 0)
        kept = min(prompt.max_new_tokens, self.num_positions // ROOM_FOR_ANSWER)
        while len(ids) + kept > self.num_positions and (fewer := without_oldest_turns(messages)) is not None:
            messages = fewer
            ids = self.encoder.prompt_ids(messages)
        left = max(0, self.num_positions - len(ids))
        step = max(1, self.num_positions // STEPS)
        room = left - left % step if left >= step else left
        room = prompt.max_new_tokens if left >= prompt.max_new_tokens else room
        return Fitted(place, ids, room, len(prompt.turns) - len(messages))

    def _stop_ids(self, own_end: int | None) -> list[int]:
        of_folder = self.causal_lm.generation_config.eos_token_id
        ids = of_folder if isinstance(of_folder, list) else [of_folder]
        found = {*ids, self.encoder.end_of_turn_id(), self.tokenizer.eos_token_id, own_end}
        if not (stop_ids := sorted(i for i in found - {None} if i < self._num_embeddings)):
            check_prompts([found - {None}], self.tokenizer, self._num_embeddings, "the model that answers cannot stop")
        return stop_ids


def known_settings(
    tokenizer: Any, *, identity: str, template_name: str | None, seed: int, dtype: str, device: str
) -> dict[str, Any]:
    """Return the settings of an `HFGenerator` that are known without its model: all but `stop_ids`."""
    template = with_template(tokenizer, template_name, "generate.template").chat_template
    return {
        "backend": "hf",
        "model": identity,
        "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        "seed": seed,
        "draws": "keyed Gumbel noise",
        "dtype": dtype,
        "device": device,
    }


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
