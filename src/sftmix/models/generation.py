"""Generate answers in batches. Each answer has its own random generator, so it does not depend on its batch."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sftmix.models.loading import quiet_transformers

GREEDY_BELOW = 1e-4  # FastChat's bound


class KeyedGumbel:
    """Logits processor that samples by argmax. It adds Gumbel noise from the random generator of each prompt.

    argmax(logits / T + g) with g ~ Gumbel(0, 1) is a draw from softmax(logits / T). The noise is drawn on the CPU, so
    it does not depend on device, batch, or order.

    Args:
        temperatures: Temperature of each prompt; below 1e-4, decoding is greedy.
        keys: Key of each prompt. The same key draws the same noise.
    """

    def __init__(self, temperatures: Sequence[float], keys: Sequence[str]) -> None:
        self._is_greedy = [temperature < GREEDY_BELOW for temperature in temperatures]
        divisors = [1.0 if g else t for g, t in zip(self._is_greedy, temperatures, strict=True)]
        self._divisors = torch.tensor(divisors)[:, None]
        digests = [hashlib.sha256(key.encode(errors="surrogatepass")).digest() for key in keys]
        self._generators = [torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1) for digest in digests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores `[prompt vocab]` of the next token, whose argmax is the draw."""
        prompts = zip(self._is_greedy, self._generators, strict=True)
        vocab = scores.shape[1]
        noise = torch.stack([torch.zeros(vocab) if greedy else gumbel_noise(vocab, g) for greedy, g in prompts])
        return scores.float() / self._divisors.to(scores.device) + noise.to(scores.device)


def gumbel_noise(count: int, generator: torch.Generator) -> Tensor:
    """Return draws from Gumbel(0, 1), -log(-log u), in float32 on the CPU."""
    return -torch.log(-torch.log(torch.rand(count, generator=generator)))


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
    """Return the answer to each prompt without its stop token, and "stop" if there was one, else "length".

    Prompts are padded on the left. The attention mask marks the padding, so the pad token may also occur in prompts.
    The generation config of the model is ignored.

    Args:
        stop_ids: Tokens that end an answer, at least one.
        temperatures: Temperature of each prompt; None for greedy decoding.
        keys: Key of the random generator of each prompt. Required if a temperature is above 0.
        each_token: Called with the index of each token, counted from 1, before the token is chosen.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(map(len, prompts))
    pad_id = stop_ids[0]
    ids = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    processors: list[Callable[[Tensor, Tensor], Tensor]] = []
    if temperatures is not None:
        processors.append(KeyedGumbel(temperatures, keys or [""] * len(prompts)))
    if each_token is not None:

        def report(input_ids: Tensor, scores: Tensor) -> Tensor:
            each_token(input_ids.shape[1] - longest + 1)
            return scores

        processors.append(report)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad_id
    )
    was_training = causal_lm.training
    causal_lm.eval()
    # `generate` would use the generation config of the model for everything that is not set.
    own, causal_lm.generation_config = causal_lm.generation_config, settings
    try:
        with quiet_transformers():
            out = causal_lm.generate(
                input_ids=ids.to(causal_lm.device),
                attention_mask=mask.to(causal_lm.device),
                logits_processor=LogitsProcessorList(processors),
            )
    finally:
        causal_lm.generation_config = own
    causal_lm.train(was_training)
    answers = []
    for ids in out[:, longest:].tolist():
        end = next((k for k, token in enumerate(ids) if token in stop_ids), None)
        answers.append((ids, "length") if end is None else (ids[:end], "stop"))
    return answers


def generate_answer(
    causal_lm: Any, tokenizer: Any, prompt_ids: Sequence[int], *, end_token_id: int, max_new_tokens: int
) -> str:
    """Return the greedy answer to a prompt as text, up to the end token."""
    [(ids, _)] = generate_batch(causal_lm, [prompt_ids], stop_ids=[end_token_id], max_new_tokens=max_new_tokens)
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
