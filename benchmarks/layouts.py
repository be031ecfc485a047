"""Time of steps of SFTMix on the same examples: padded, grouped by length, and packed into one sequence.

`trainer.layout=auto` chooses by these results. The last line is JSON.

    python benchmarks/layouts.py
    python benchmarks/layouts.py --model FOLDER --repetitions 3
"""

import json

import torch
from batches import DEVICE, LAYOUT, arguments, batch_of, body_tokens, causal_lm, read_work, run_step
from side_by_side import alternate, median_seconds, paired_ratio, table

from sftmix.models.language_model import SFTMixLM
from sftmix.training.optim import OptimizerSettings, adamw

CASES = {
    "padded": ("padded", 8192),
    "grouped": ("grouped", 8192),
    "grouped, 2,048 tokens": ("grouped", 2048),
    "packed": ("packed", 8192),
    "packed, 1,024 tokens": ("packed", 1024),
}


def main() -> None:
    """Measure all layouts, which alternate."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = read_work(args)
    lm = SFTMixLM(causal_lm(args.model)).train()
    optimizer = adamw(lm, OptimizerSettings(lr=1e-4))
    number = min(args.repetitions, len(work.steps))
    batches = {name: [batch_of(work, s, *case) for s in work.steps[:number]] for name, case in CASES.items()}

    def step_in(name):
        return lambda k: run_step(lm, optimizer, batches[name][k % number], 0.2)

    times = alternate({name: step_in(name) for name in CASES}, args.repetitions, "layouts")
    real = sum(b.num_input_tokens for b in batches["padded"]) / number
    rows, metrics = [], {}
    for name, taken in times.items():
        ratio = paired_ratio(taken, times[LAYOUT])
        padding = 1 - real * number / body_tokens(batches[name])
        forwards = sum(len(m.inputs) for b in batches[name] for m in b.micro_batches) / number
        rows.append((name, f"{real / median_seconds(taken):.0f}", f"{padding:.1%}", f"{forwards:.1f}", str(ratio)))
        metrics[name] = {"time_over_default": round(ratio.median, 3), "padding": round(padding, 3)}
    print(f"{args.model}, {DEVICE.type}, {args.threads} threads; steps of 32 examples of Alpaca")
    table(("layout", "real tok/s", "padding", "forwards a step", f"time / {LAYOUT}"), rows)
    print(json.dumps({"benchmark": "layouts", "model": args.model, "device": DEVICE.type, "layouts": metrics}))


if __name__ == "__main__":
    main()
