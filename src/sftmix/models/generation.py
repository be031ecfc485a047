"""Answers of a model: a batch at a time, the draws of each keyed, so that no answer depends on its neighbours."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sftmix.models.loading import quiet_transformers

GREEDY_BELOW = 1e-4  # FastChat's bound


class KeyedGumbel:
    """Draws by argmax: Gumbel noise on logits over temperature, each row's from a generator of its own.

    argmax(logits / T + g) with g ~ Gumbel(0, 1) is a draw from softmax(logits / T). The noise is drawn on the CPU, so
    it is the same for any device, batch and order.

    Args:
        temperatures: of each row; below 1e-4 it is greedy.
        keys: of each row; the same key draws the same noise.
    """

    def __init__(self, temperatures: Sequence[float], keys: Sequence[str]) -> None:
        """Nothing is drawn yet."""
        self._is_greedy = [temperature < GREEDY_BELOW for temperature in temperatures]
        divisors = [1.0 if g else t for g, t in zip(self._is_greedy, temperatures, strict=True)]
        self._divisors = torch.tensor(divisors)[:, None]
        self._generators = [torch.Generator().manual_seed(seed_of(key)) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits [row vocab] of the next token, to be taken at their largest."""
        rows = zip(self._is_greedy, self._generators, strict=True)
        vocab = scores.shape[1]
        noise = torch.stack([torch.zeros(vocab) if greedy else gumbel_noise(vocab, g) for greedy, g in rows])
        return scores.float() / self._divisors.to(scores.device) + noise.to(scores.device)


class _Telling:
    """Says which token is chosen, and leaves the logits as they are."""

    def __init__(self, each_token: Callable[[int], object], num_prompt_tokens: int) -> None:
        self._each_token, self._num_prompt_tokens = each_token, num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._each_token(input_ids.shape[1] - self._num_prompt_tokens + 1)
        return scores


def seed_of(key: str) -> int:
    """A seed of 63 bits from the hash of a key."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) >> 1


def gumbel_noise(number: int, generator: torch.Generator) -> Tensor:
    """Draws from Gumbel(0, 1), -log(-log u), in float32 on the CPU."""
    return -torch.log(-torch.log(torch.rand(number, generator=generator)))


@torch.no_grad()
def generate_batch(
    causal_lm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperatures: Sequence[float] | None = None,
    keys: Sequence[str] | None = None,
    each_token: Callable[[int], object] | None = None,
) -> list[tuple[list[int], str]]:
    """The continuation of each prompt without its stop token, and whether it came to one: "stop", else "length".

    Prompts are padded on the left, and what is padding is told by the attention mask, so the pad token may be one that
    occurs. What the model's folder says of sampling does not count: only what is given here.

    Args:
        causal_lm: the model.
        prompts: token ids.
        stop_ids: tokens that end an answer, at least one.
        max_new_tokens: at which an answer is cut.
        temperatures: of each prompt; None is greedy.
        keys: of each prompt's draws, where any temperature is above 0.
        each_token: is called with the number of each token, before it is chosen.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(map(len, prompts))
    pad_id = stop_ids[0]
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    processors: list[Any] = []
    if temperatures is not None:
        processors.append(KeyedGumbel(temperatures, keys or [""] * len(prompts)))
    if each_token is not None:
        processors.append(_Telling(each_token, longest))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad_id
    )
    was_training = causal_lm.training
    causal_lm.eval()
    with _own_settings(causal_lm, settings), quiet_transformers():
        out = causal_lm.generate(
            input_ids=ids.to(causal_lm.device),
            attention_mask=mask.to(causal_lm.device),
            logits_processor=LogitsProcessorList(processors),
        )
    causal_lm.train(was_training)
    return [_until_stop(row, stop_ids) for row in out[:, longest:].tolist()]


@contextmanager
def _own_settings(causal_lm: Any, settings: Any) -> Iterator[None]:
    """Settings in the place of those of the model's folder, which `generate` would take for all that is not set."""
    of_folder = causal_lm.generation_config
    causal_lm.generation_config = settings
    try:
        yield
    finally:
        causal_lm.generation_config = of_folder


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> tuple[list[int], str]:
    end = next((k for k, token in enumerate(ids) if token in stop_ids), None)
    return (ids, "length") if end is None else (ids[:end], "stop")


def generate_answer(
    causal_lm: Any, tokenizer: Any, prompt_ids: Sequence[int], *, end_token_id: int, max_new_tokens: int
) -> str:
    """The greedy continuation of a prompt as text, up to the end token."""
    [(ids, _)] = generate_batch(causal_lm, [prompt_ids], stop_ids=[end_token_id], max_new_tokens=max_new_tokens)
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
