"""The model of a pool answers: prompts as in training, in batches, with draws that depend on the prompt only."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from sftmix.data.generation_prompt import align_generation_prompt
from sftmix.data.prompts import PromptEncoder, without_oldest_turns
from sftmix.data.templates import set_template, template_source
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import ROOM_FOR_ANSWER, Answer, Prompt
from sftmix.evaluation.model_pool import LoadedModel, ModelPool
from sftmix.models.loading import precision

STEPS = 16  # of a model's positions: the room of an answer is rounded down to them if the room is too little


class Fitted(NamedTuple):
    """The prompt of an index as token ids."""

    place: int
    ids: list[int]
    room: int  # Number of tokens that the answer may have; 0 if the last turn fills the model
    num_dropped_turns: int  # Number of oldest turns left out
    temperature: float
    key: str  # Of the draws


class HFGenerator:
    """A `Generator` on transformers.

    In float32 an answer depends only on `settings` and its prompt. In bfloat16 it also depends on the batch, as sums
    are rounded in another order. The batches are the same for any number of devices.

    Args:
        pool: Model, which is loaded when a prompt has to be answered.
        identity: Hash or commit of its weights.
        template_name: A shipped chat template or the path of a .jinja file; None for the tokenizer's own.

    Raises:
        InputError: If there is no such template, the tokenizer has none, or no end token has an embedding.
    """

    def __init__(
        self,
        pool: ModelPool,
        *,
        identity: str,
        template_name: str | None,
        seed: int,
        batch_size: int,
    ) -> None:
        own_end = pool.tokenizer.eos_token_id  # a template may set another one
        tokenizer = with_template(pool.tokenizer, template_name, "generate.template")
        self.pool, self.tokenizer = pool, tokenizer
        self.seed, self.batch_size = seed, batch_size
        self.encoder = PromptEncoder(tokenizer, f"generate.template={template_name or 'null'}")
        empty = pool.empty_model
        self._num_embeddings: int = empty.get_input_embeddings().weight.shape[0]
        self.stop_ids = self._stop_ids(own_end)
        self.num_positions: int | None = getattr(empty.config.get_text_config(), "max_position_embeddings", None)
        known = known_settings(
            tokenizer,
            identity=identity,
            template_name=None,  # it is in the tokenizer already
            seed=seed,
            dtype=pool.source.dtype,
            device=pool.source.device,
        )
        self.settings = known | {"stop_ids": self.stop_ids}

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each prompt and its answer, a batch at a time, the longest prompts first.

        Raises:
            InputError: If the template refuses a conversation, a token has no embedding, or a batch does not fit the
                GPU.
        """
        fitted = [self._fit(place, prompt) for place, prompt in enumerate(prompts)]
        check_prompts((f.ids for f in fitted), self.tokenizer, self._num_embeddings, "the model that answers")
        batches = self._batches(fitted)
        # Each token is only reported within this process: a report would not reach it from another one
        is_here = self.pool.num_devices == 1
        answer = partial(
            answer_batch, stop_ids=self.stop_ids, batch_size=self.batch_size, tell=tell if is_here else None
        )
        for num_done, (number, continuations) in enumerate(self.pool.map(answer, batches), start=1):
            if not is_here:
                tell(f"batches at work: {min(self.pool.num_devices, len(batches) - num_done)}")
            for f, (ids, finish) in zip(batches[number], continuations, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                sha256 = hashlib.sha256(json.dumps(f.ids).encode()).hexdigest()
                yield f.place, Answer(text.strip(), finish, len(ids), sha256, f.num_dropped_turns)

    def _batches(self, fitted: Sequence[Fitted]) -> list[list[Fitted]]:
        """Return batches of prompts of similar length and equal room, the longest first: too little memory shows early.

        Devices finish at similar times too, as the last batches are short.
        """
        longest_first = sorted(fitted, key=lambda f: (f.room, len(f.ids)), reverse=True)
        alike = (list(group) for _, group in groupby(longest_first, key=lambda f: f.room))
        size = self.batch_size
        return [group[start : start + size] for group in alike for start in range(0, len(group), size)]

    def _fit(self, place: int, prompt: Prompt) -> Fitted:
        """Return the prompt in the model's room. The oldest turns of a conversation that is too long are left out.

        Room is kept for the whole answer or a quarter of the model's positions, whichever is less. If the last turn
        leaves less than the whole answer, the answer is cut at the end of the room, rounded down to a sixteenth of
        the positions so that such prompts can share batches. If it leaves nothing, the answer is empty and counts as
        cut: a shortened question would be another question.
        """
        messages = prompt.turns
        ids = self.encoder.prompt_ids(messages)
        draws = prompt.temperature, f"{self.seed}/{prompt.round}/{prompt.id}/{prompt.turn}"
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

    def _stop_ids(self, own_end: int | None) -> list[int]:
        of_folder = self.pool.empty_model.generation_config.eos_token_id
        ids = of_folder if isinstance(of_folder, list) else [of_folder]
        found = {*ids, self.encoder.end_of_turn_id(), self.tokenizer.eos_token_id, own_end}
        if not (stop_ids := sorted(i for i in found - {None} if i < self._num_embeddings)):
            check_prompts([found - {None}], self.tokenizer, self._num_embeddings, "the model that answers cannot stop")
        return stop_ids


def answer_batch(
    loaded: LoadedModel,
    batch: Sequence[Fitted],
    *,
    stop_ids: Sequence[int],
    batch_size: int,
    tell: Callable[[str], object] | None,
) -> list[tuple[list[int], str]]:
    """Return the token ids of the answer to each prompt, and why it ended: stop or length.

    Raises:
        InputError: If the batch does not fit the GPU.
    """
    import torch

    from sftmix.models.generation import generate_batch

    room, longest = batch[0].room, max(len(f.ids) for f in batch)
    if room == 0:
        return [([], "length") for _ in batch]

    def report(number: int) -> None:
        if tell is not None:
            tell(f"{len(batch)} at a time, token {number:,} of at most {room:,}")

    try:
        return generate_batch(
            loaded.causal_lm,
            [f.ids for f in batch],
            stop_ids=stop_ids,
            max_new_tokens=room,
            temperatures=[f.temperature for f in batch],
            keys=[f.key for f in batch],
            each_token=report,
        )
    except torch.OutOfMemoryError:
        raise InputError(
            f"generate.batch_size={batch_size}: {len(batch)} prompts of up to {longest} tokens do not fit the GPU, "
            "give less; answers so far are kept"
        ) from None


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
        **precision(dtype, device),
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
