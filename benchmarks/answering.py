"""Answers of a model: in batches against one at a time, and what keyed draws cost beside greedy ones.

Prompts of Alpaca, taken in turn in one process; greedy answers of both ways must be the same tokens. Draws are of the
size of the vocabulary, so the second ratio grows with it. The last line is JSON.

    python benchmarks/answering.py --model FOLDER
"""

import json

import torch
from batches import DEVICE, arguments, causal_lm, read_work
from side_by_side import paired_ratio, table, take_in_turn

from sftmix.models.generation import generate_batch


def main() -> None:
    """Answer three ways, compare the greedy answers, then the times."""
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
    times = take_in_turn({way: lambda _, w=way: answer(w, *ways[w]) for way in ways}, args.repetitions, "answers")
    alone, together, drawn = ways
    same = sum(a == b for a, b in zip(answers[alone], answers[together], strict=True))
    if DEVICE.type == "cpu" and same < len(prompts):
        raise SystemExit(f"{same} of {len(prompts)} greedy answers are the same: not the same work")
    batching, draws = paired_ratio(times[alone], times[together]), paired_ratio(times[drawn], times[together])
    print(f"{args.model}: {len(prompts)} prompts, vocabulary {lm.config.vocab_size:,}; {same} greedy answers the same")
    table(
        ("way", "tokens", "seconds"),
        [(w, f"{sum(map(len, answers[w])):,}", f"{min(t.wall for t in times[w]):.2f}") for w in ways],
    )
    print(f"one at a time over batches: {batching}\ndrawn over greedy, in batches: {draws}\n")
    figures = {"batch_ratio": round(batching.median, 3), "draw_ratio": round(draws.median, 3)}
    print(json.dumps({"benchmark": "answering", "model": args.model, "device": DEVICE.type, **figures}))


if __name__ == "__main__":
    main()
