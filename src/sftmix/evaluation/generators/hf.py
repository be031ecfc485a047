"""The model of a pool answers: prompts as in training, in batches, with draws that depend on the prompt only."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Answer, Prompt
from sftmix.evaluation.generators.fitting import Fitted, PromptFitter, template_sha256, with_template
from sftmix.evaluation.model_pool import LoadedModel, ModelPool
from sftmix.models.loading import precision


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
        self.pool, self.batch_size = pool, batch_size
        self.prompts = PromptFitter(pool, template_name, seed=seed)
        tokenizer, stop_ids = self.prompts.tokenizer, self.prompts.stop_ids
        known = known_settings(
            tokenizer,
            identity=identity,
            template_name=None,  # it is in the tokenizer already
            seed=seed,
            dtype=pool.source.dtype,
            device=pool.source.device,
        )
        self.settings = known | {"stop_ids": stop_ids}

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each prompt and its answer, a batch at a time, the longest prompts first.

        Raises:
            InputError: If the template refuses a conversation, a token has no embedding, or a batch does not fit the
                GPU.
        """
        fitted = self.prompts.fit(prompts)
        batches = self._batches(fitted)
        # Each token is only reported within this process: a report would not reach it from another one
        is_here = self.pool.num_devices == 1
        answer = partial(
            answer_batch, stop_ids=self.prompts.stop_ids, batch_size=self.batch_size, tell=tell if is_here else None
        )
        for num_done, (number, continuations) in enumerate(self.pool.map(answer, batches), start=1):
            if not is_here:
                tell(f"batches at work: {min(self.pool.num_devices, len(batches) - num_done)}")
            for f, (ids, finish) in zip(batches[number], continuations, strict=True):
                yield f.place, self.prompts.answer(f, ids, finish)

    def _batches(self, fitted: Sequence[Fitted]) -> list[list[Fitted]]:
        """Return batches of prompts of similar length and equal room, the longest first: too little memory shows early.

        Devices finish at similar times too, as the last batches are short.
        """
        longest_first = sorted(fitted, key=lambda f: (f.room, len(f.ids)), reverse=True)
        alike = (list(group) for _, group in groupby(longest_first, key=lambda f: f.room))
        size = self.batch_size
        return [group[start : start + size] for group in alike for start in range(0, len(group), size)]


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
    tokenizer = with_template(tokenizer, template_name, "generate.template")
    return {
        "backend": "hf",
        "model": identity,
        "template_sha256": template_sha256(tokenizer),
        "seed": seed,
        "draws": "keyed Gumbel noise",
        **precision(dtype, device),
    }
