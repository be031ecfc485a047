"""How time and memory grow with sequence length, examples per step, vocabulary, response tokens and examples.

Each line doubles one quantity. "x time" and "x memory" are ratios to the line before. Memory is the peak above the
memory before the work. The last line is JSON.

    python benchmarks/growth.py
"""

import json
import time
import tracemalloc
from collections.abc import Callable

import torch
from batches import DEVICE, arguments, causal_lm, run_step
from side_by_side import alternate, median_seconds, peak_bytes, table

from sftmix.data.collate import BatchSettings, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import SamplerSettings, Step, StepSampler
from sftmix.functional.equations import LMHead, LossSettings
from sftmix.functional.fused import fused_sftmix_loss
from sftmix.models.language_model import SFTMixLM
from sftmix.training.optim import OptimizerSettings, adamw


def main() -> None:
    """Measure all quantities and print a table for each."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = SFTMixLM(causal_lm(args.model)).train()
    optimizer = adamw(lm, OptimizerSettings(lr=1e-4))

    def step_of(number: int, length: int) -> Callable[[int], object]:
        encoded = [made(i, length) for i in range(number)]
        num_pairs = number // 2
        step = Step(tuple(range(num_pairs)), tuple(range(num_pairs, number)), (0.5,) * num_pairs, ())
        batch = collate_step(step, encoded, [1.0] * number, BatchSettings("grouped", 4096, pad_token_id=0))
        return lambda _: run_step(lm, optimizer, batch, 0.2)

    report = {
        "tokens of a sequence": grow({n: step_of(8, n) for n in (64, 128, 256, 512)}, args.repetitions),
        "examples of a step": grow({n: step_of(n, 128) for n in (8, 16, 32)}, args.repetitions),
        "vocabulary": grow({n: head_of(n, 1024) for n in (8192, 16384, 32768)}, args.repetitions),
        "response tokens": grow({n: head_of(32000, n) for n in (1024, 2048, 4096)}, args.repetitions),
        "examples of the data set": examples_of_the_data_set(),
    }
    for what, lines in report.items():
        table(
            (what, "seconds", "x time", "MiB", "x memory"),
            [growing(line, before) for line, before in zip(lines, [None, *lines[:-1]], strict=True)],
        )
    print(json.dumps({"benchmark": "growth", "model": args.model, "device": DEVICE.type, "growth": report}))


def made(number: int, length: int) -> EncodedExample:
    """Return an example with as many prompt tokens as response tokens."""
    ids = tuple((number * 31 + k) % 500 + 3 for k in range(length))
    return EncodedExample(str(number), ids, length // 2)


def grow(sizes: dict[int, Callable[[int], object]], repetitions: int) -> list[dict[str, float]]:
    """Return the median seconds and the peak memory of each size."""
    times = alternate({str(n): work for n, work in sizes.items()}, repetitions, "growth")
    return [
        {"size": n, "seconds": median_seconds(times[str(n)]), "bytes": peak_bytes(lambda w=work: w(0))}
        for n, work in sizes.items()
    ]


def head_of(vocab: int, num_tokens: int) -> Callable[[int], object]:
    """Return forward and backward of the head only. Its weight is frozen, and 50% of the tokens are in pairs."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(num_tokens, 384, generator=generator, device=DEVICE).requires_grad_()
    weight = torch.randn(vocab, 384, generator=generator, device=DEVICE)  # frozen
    labels = torch.randint(vocab, (num_tokens,), generator=generator, device=DEVICE)
    ones = torch.ones(num_tokens, device=DEVICE)
    lam = torch.rand(num_tokens // 4, generator=generator, device=DEVICE)
    settings, counts = LossSettings(mu=0.2), {"num_tokens": num_tokens, "num_mixed": len(lam)}

    def run(_):
        hidden.grad = None
        fused_sftmix_loss(hidden, LMHead(weight), labels, ones, lam, settings, **counts).loss.backward()

    return run


def examples_of_the_data_set() -> list[dict[str, float]]:
    """Measure drawing the steps of an epoch and collating a hundred of them, for data sets of growing size."""
    lines = []
    encoded = [made(i, 40 + i % 90) for i in range(1000)]
    for number in (16_000, 32_000, 64_000):
        many = [encoded[i % 1000] for i in range(number)]
        weights = [1.0] * number
        tracemalloc.start()
        begin = time.perf_counter()
        settings = SamplerSettings(global_batch_size=32, alpha=0.5, seed=0)
        sampler = StepSampler(number, [i % 2 == 0 for i in range(number)], settings)
        for step in sampler.epoch(0)[:100]:
            collate_step(step, many, weights, BatchSettings("grouped", 8192, pad_token_id=0))
        lines.append(
            {"size": number, "seconds": time.perf_counter() - begin, "bytes": tracemalloc.get_traced_memory()[1]}
        )
        tracemalloc.stop()
    return lines


def growing(line: dict[str, float], before: dict[str, float] | None) -> tuple[str, ...]:
    """Return a line of the table."""
    cells = [
        f"{line['size']:,}",
        f"{line['seconds']:.3f}",
        "",
        f"{line['bytes'] / 2**20:.0f}" if line["bytes"] else "",
        "",
    ]
    if before:
        cells[2] = f"{line['seconds'] / before['seconds']:.2f}"
        cells[4] = f"{line['bytes'] / before['bytes']:.2f}" if before["bytes"] else ""
    return tuple(cells)


if __name__ == "__main__":
    main()
