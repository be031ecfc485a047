"""Generate answers in batches. Each answer has its own random generator, so it does not depend on its batch."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftmix.models.loading import quiet_transformers

GREEDY_BELOW = 1e-4  # FastChat's bound
PIECE = 16_384  # fewer elements than torch gives to several threads
LEAST_FOR_THREADS = 2**17  # draws, a millisecond; handing fewer to a thread costs more than it saves


class Noise(NamedTuple):
    """Noise of one token that threads are drawing."""

    prompts: list[int]  # Index of the prompt of each row
    values: Tensor  # [row vocab]
    draws: list[Future[None]]  # Done when the rows are drawn


class KeyedGumbel:
    """Logits processor that samples by argmax. It adds Gumbel noise from the random generator of each prompt.

    argmax(logits / T + g) with g ~ Gumbel(0, 1) is a draw from softmax(logits / T). The noise is drawn on the CPU, so
    it does not depend on device, batch, or order. Threads draw the noise of the next token while the model computes
    the token. Greedy prompts and prompts that have ended get no noise.

    Args:
        temperatures: Temperature of each prompt; below 1e-4, decoding is greedy.
        keys: Key of each prompt. The same key draws the same noise.
        stop_ids: Tokens that end an answer.
        threads: Threads that draw.
    """

    def __init__(
        self, temperatures: Sequence[float], keys: Sequence[str], stop_ids: Sequence[int], threads: Executor
    ) -> None:
        self._drawn = {p: t for p, t in enumerate(temperatures) if not is_greedy(t)}
        self._generators = [_generator(key) for key in keys]
        self._stop_ids, self._threads = torch.tensor(stop_ids), threads
        self._next: Noise | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores `[prompt vocab]` of the next token, whose argmax is the draw."""
        noise, left = self._next, list(self._drawn)
        if noise is None:  # the first token: the last token of a prompt may be a stop token
            noise = self._draw(left, scores)
        else:
            has_ended = torch.isin(input_ids[:, -1], self._stop_ids.to(input_ids.device)).tolist()
            left = [prompt for prompt in left if not has_ended[prompt]]
        for draw in noise.draws:
            draw.result()
        self._next = self._draw(left, scores)
        if not noise.prompts:  # only greedy prompts are left
            return scores
        values = noise.values.to(scores.device, non_blocking=True)
        divisors = torch.tensor([[self._drawn[prompt]] for prompt in noise.prompts]).to(scores.device)
        if len(noise.prompts) == len(scores):
            return (scores.float() / divisors).add_(values)
        prompts = torch.tensor(noise.prompts, dtype=torch.long, device=scores.device)
        scores = scores.float()
        return scores.index_copy(0, prompts, (scores[prompts] / divisors).add_(values))

    def _draw(self, prompts: list[int], scores: Tensor) -> Noise:
        """Let the threads draw the next noise of some prompts for scores of this vocabulary and device."""
        values = torch.empty(len(prompts), scores.shape[1], pin_memory=scores.is_cuda)
        generators, rows = [self._generators[prompt] for prompt in prompts], len(prompts)
        if values.numel() < LEAST_FOR_THREADS:
            draw_gumbel(values, generators)
            return Noise(prompts, values, [])
        part = math.ceil(rows / torch.get_num_threads())
        starts = range(0, rows, part)
        draws = [self._threads.submit(draw_gumbel, values[k : k + part], generators[k : k + part]) for k in starts]
        return Noise(prompts, values, draws)


def is_greedy(temperature: float) -> bool:
    """Return whether decoding at a temperature takes the likeliest token."""
    return temperature < GREEDY_BELOW


def draw_gumbel(out: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Fill each row with draws from Gumbel(0, 1), -log(-log u), in float32 on the CPU, in the calling thread."""
    for row, generator in zip(out, generators, strict=True):
        torch.rand(len(row), generator=generator, out=row)
    for piece in out.view(-1).split(PIECE):
        piece.log_().neg_().log_().neg_()


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@contextmanager
def drawing_threads() -> Iterator[Executor]:
    """Provide threads that draw noise. They have ended when the block ends, also by an exception."""
    threads = ThreadPoolExecutor(torch.get_num_threads(), "noise")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


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
    num_drawn = sum(not is_greedy(temperature) for temperature in temperatures or ())
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
        with quiet_transformers(), drawing_threads() as threads:
            if temperatures is not None and num_drawn:
                assert keys is not None
                processors.append(KeyedGumbel(temperatures, keys, stop_ids, threads))
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
