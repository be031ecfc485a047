"""Time to answer prompts: in batches and one at a time, and by seeded draws and greedily.

The prompts are Alpaca's. The variants alternate in one process. Greedy answers must be the same tokens in batches and
one at a time. A draw reads the whole vocabulary, so the second ratio grows with its size. The last line is JSON.

    python benchmarks/answering.py --model FOLDER
"""

import json

import torch
from batches import DEVICE, arguments, causal_lm, read_work
from side_by_side import alternate, paired_ratio, table

from sftmix.models.generation import generate_batch


def main() -> None:
    """Answer in three ways, compare the greedy answers, then the times."""
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

    def answer(way: str, batch_size: int, temperature: float) -> None:
        answers[way] = []
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            found = generate_batch(
                lm,
                batch,
                stop_ids=[lm.config.eos_token_id],
                max_new_tokens=args.max_new_tokens,
                temperatures=[temperature] * len(batch),
                keys=[str(start + k) for k in range(len(batch))],
            )
            answers[way] += [ids for ids, _ in found]

    ways = {
        "greedy, one at a time": (1, 0.0),
        f"greedy, batches of {args.batch_size}": (args.batch_size, 0.0),
        f"drawn, batches of {args.batch_size}": (args.batch_size, 0.7),
    }
    times = alternate({way: lambda _, w=way: answer(w, *ways[w]) for way in ways}, args.repetitions, "answers")
    single, batched, drawn = ways
    same = sum(a == b for a, b in zip(answers[single], answers[batched], strict=True))
    if DEVICE.type == "cpu" and same < len(prompts):
        raise SystemExit(
            f"{same} of {len(prompts)} greedy answers are equal, expected all: the variants do different work"
        )
    batching, draws = paired_ratio(times[single], times[batched]), paired_ratio(times[drawn], times[batched])
    print(f"{args.model}: {len(prompts)} prompts, vocabulary {lm.config.vocab_size:,}; {same} greedy answers are equal")
    table(
        ("way", "tokens", "seconds"),
        [(w, f"{sum(map(len, answers[w])):,}", f"{min(t.wall for t in times[w]):.2f}") for w in ways],
    )
    print(f"one at a time over batches: {batching}\ndrawn over greedy, in batches: {draws}\n")
    metrics = {"batch_ratio": round(batching.median, 3), "draw_ratio": round(draws.median, 3)}
    print(json.dumps({"benchmark": "answering", "model": args.model, "device": DEVICE.type, **metrics}))


if __name__ == "__main__":
    main()
