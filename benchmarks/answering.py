"""Answers per second: in batches and one at a time, greedy and drawn, with noise beside the model and before it.

The prompts are Alpaca's. The variants alternate in one process. Greedy answers must be the same tokens in batches and
one at a time; draws must be the same tokens in both ways of drawing. `before` is the way of earlier versions: the
processor draws one prompt after the other when the model has finished, and adds zeros to the scores of greedy prompts.
A draw reads the whole vocabulary, so its time grows with the vocabulary. The second table has the time of the noise of
one token without a model: it is what a model of that time per token can hide. The last line is JSON.

    python benchmarks/answering.py --model FOLDER
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from unittest.mock import patch

import torch
from batches import DEVICE, arguments, causal_lm, read_work
from side_by_side import Timing, alternate, median_seconds, paired_ratio, table
from torch import Tensor

from sftmix.models import generation

VOCABULARIES = (32_000, 49_152, 128_256, 262_144)


class DrawnInTurn(generation.KeyedGumbel):
    """The noise of earlier versions, drawn for one prompt after the other while the model waits."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy scores of the next token."""
        vocab, generators = scores.shape[1], enumerate(self._generators)
        drawn = {k: t for k, t in self._drawn.items() if t >= generation.GREEDY_BELOW}
        noise = torch.stack([formula(vocab, g) if k in drawn else torch.zeros(vocab) for k, g in generators])
        divisors = torch.tensor([[drawn.get(k, 1.0)] for k in range(len(noise))])
        return scores.float() / divisors.to(scores.device) + noise.to(scores.device)


def formula(vocab: int, generator: torch.Generator) -> Tensor:
    """Return noise of one prompt."""
    return -torch.log(-torch.log(torch.rand(vocab, generator=generator)))


def main() -> None:
    """Answer in five ways, compare the answers, then the times."""
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = read_work(args)
    lm = causal_lm(args.model).eval()
    shortest = sorted(work.encoded, key=lambda e: e.num_prompt_tokens)[: args.prompts]
    prompts = [e.input_ids[: e.num_prompt_tokens] for e in shortest]
    answers: dict[str, list[list[int]]] = {}

    def answer(way: str, batch_size: int, temperature: float, is_before: bool) -> None:
        answers[way] = []
        # Before, greedy prompts had the processor too
        before = patch.multiple(generation, KeyedGumbel=DrawnInTurn, is_greedy=lambda t: False)
        with before if is_before else nullcontext():
            for start in range(0, len(prompts), batch_size):
                batch = prompts[start : start + batch_size]
                found = generation.generate_batch(
                    lm,
                    batch,
                    stop_ids=[lm.config.eos_token_id],
                    max_new_tokens=args.max_new_tokens,
                    temperatures=[temperature] * len(batch),
                    keys=[str(start + k) for k in range(len(batch))],
                )
                answers[way] += [ids for ids, _ in found]

    size = args.batch_size
    ways: dict[str, tuple[int, float, bool]] = {
        "greedy, one at a time": (1, 0.0, False),
        f"greedy, batches of {size}": (size, 0.0, False),
        f"greedy, batches of {size}, before": (size, 0.0, True),
        f"drawn, batches of {size}": (size, 0.7, False),
        f"drawn, batches of {size}, before": (size, 0.7, True),
    }
    times = alternate({way: lambda _, w=way: answer(w, *ways[w]) for way in ways}, args.repetitions, "answers")
    single, greedy, greedy_before, drawn, drawn_before = ways
    if DEVICE.type == "cpu":
        check_same(answers[single], answers[greedy])
    check_same(answers[greedy], answers[greedy_before])
    check_same(answers[drawn], answers[drawn_before])
    print(f"{args.model}: {len(prompts)} prompts, vocabulary {lm.config.vocab_size:,}, {args.threads} threads")
    rows = [(w, sum(map(len, answers[w])), min(t.wall for t in times[w])) for w in ways]
    table(
        ("way", "tokens", "seconds", "answers per second"),
        [(w, f"{tokens:,}", f"{seconds:.2f}", f"{len(prompts) / seconds:.2f}") for w, tokens, seconds in rows],
    )
    ratios = {
        "one at a time over batches, greedy": paired_ratio(times[single], times[greedy]),
        "before over after, greedy": paired_ratio(times[greedy_before], times[greedy]),
        "before over after, drawn": paired_ratio(times[drawn_before], times[drawn]),
        "drawn over greedy, before": paired_ratio(times[drawn_before], times[greedy_before]),
        "drawn over greedy, after": paired_ratio(times[drawn], times[greedy]),
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio}")
    draws = {vocab: noise_times(vocab, size, 4 * args.repetitions) for vocab in VOCABULARIES}
    print(f"\nnoise of a token, {size} prompts, without a model")
    table(
        ("vocabulary", "before, ms", "after, ms", "before over after"),
        [
            (f"{vocab:,}", *(f"{1000 * median_seconds(t):.1f}" for t in both), str(paired_ratio(*both)))
            for vocab, both in draws.items()
        ],
    )
    metrics = {name: round(ratio.median, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "answering", "model": args.model, "device": DEVICE.type, **metrics}))


def check_same(some: Sequence[list[int]], others: Sequence[list[int]]) -> None:
    """Stop if two ways gave other answers."""
    same = sum(a == b for a, b in zip(some, others, strict=True))
    if same < len(some):
        raise SystemExit(f"{same} of {len(some)} answers are equal, expected all: the variants do different work")


def noise_times(vocab: int, num_prompts: int, repetitions: int) -> tuple[list[Timing], list[Timing]]:
    """Return the times of the noise of one token, before and after."""
    ids, scores = torch.zeros(num_prompts, 1, dtype=torch.long), torch.zeros(num_prompts, vocab)
    settings = [1.0] * num_prompts, [str(k) for k in range(num_prompts)], [1]
    with generation.drawing_threads() as threads:
        before, after = DrawnInTurn(*settings, threads), generation.KeyedGumbel(*settings, threads)
        ways: dict[str, Callable[[int], object]] = {
            "before": lambda _: before(ids, scores),
            "after": lambda _: after(ids, scores),
        }
        times = alternate(ways, repetitions, "noise")
    return times["before"], times["after"]


if __name__ == "__main__":
    main()
