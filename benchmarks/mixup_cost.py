"""What Mixup costs: a step of SFTMix over a step of NTP on the same batch, in time and in memory.

And the head alone by four routes: the fused loss; one with a separate matmul for the mixed rows; torch's
F.linear_cross_entropy with one for the mixed rows; the dense equations. The last line is JSON.

    python benchmarks/mixup_cost.py
    python benchmarks/mixup_cost.py --model FOLDER --repetitions 20
    python benchmarks/mixup_cost.py --head 128256 4096          an 8B-shaped head, for a GPU
"""

import json

import torch
import torch.nn.functional as F
from batches import DEVICE, arguments, batch_of, causal_lm, read_work, run_step
from side_by_side import (
    Ratio,
    in_processes_of_their_own,
    median_seconds,
    paired_ratio,
    peak_bytes,
    table,
    take_in_turn,
)

from sftmix.functional.equations import LMHead, LossSettings, dense_sftmix_loss, mixup_sum
from sftmix.functional.fused import fused_sftmix_loss, tokens_per_chunk
from sftmix.models.language_model import SFTMixLM
from sftmix.training.optim import OptimizerSettings, adamw

MU = 0.2
TIME_BOUND, MEMORY_BOUND = 1.05, 1.02
GPU_BOUND = 1.01


def main() -> None:
    """Run what the arguments ask for."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--processes", type=int, default=3, help="how often the peak memory of a step is taken")
    parser.add_argument("--head", type=int, nargs=2, metavar=("VOCAB", "DIM"), help="the head alone, of this shape")
    parser.add_argument("--rows", type=int, default=2048, help="response rows of the head alone")
    parser.add_argument("--only-memory-of", metavar="WHAT", help="internal: one measurement in a process of its own")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only_memory_of:
        kind, name = args.only_memory_of.split(":")
        number = memory_of_step(args, name) if kind == "step" else memory_of_head(args, name)
        print(json.dumps({"bytes": number}))
        return
    report = compare_heads(args, *args.head) if args.head else compare_steps(args)
    print(json.dumps(report))


def compare_steps(args) -> dict:
    """Steps of SFTMix and NTP in turn, then the heads at the model's own shape."""
    work = read_work(args)
    steps = {"NTP": None, "SFTMix": MU}
    sides = {name: (SFTMixLM(causal_lm(args.model)).train(), mu) for name, mu in steps.items()}
    optimizers = {name: adamw(lm, OptimizerSettings(lr=1e-4)) for name, (lm, _) in sides.items()}
    batches = [batch_of(work, step) for step in work.steps]

    def step_of(name):
        lm, mu = sides[name]
        return lambda k: run_step(lm, optimizers[name], batches[k % len(batches)], mu)

    times = take_in_turn({name: step_of(name) for name in sides}, args.repetitions, "steps")
    head = sides["NTP"][0].head
    vocab, dim = head.weight.shape
    body = sum(p.numel() for p in sides["NTP"][0].parameters()) - vocab * dim
    rows = sum(len(m.positions) for b in batches for m in b.micro_batches) // len(batches)
    mixed = sum(b.num_mixed for b in batches) // len(batches)
    print(
        f"{args.model}: head {vocab} x {dim}, {body / 1e6:.1f}M other parameters, {DEVICE.type}, {args.threads} threads"
    )
    print(f"a step of 32 of Alpaca: {rows} response rows, {mixed} mixed ones; {args.repetitions} paired repetitions\n")
    ratio, cpu = paired_ratio(times["SFTMix"], times["NTP"]), paired_ratio(times["SFTMix"], times["NTP"], "cpu")
    sides.clear(), optimizers.clear()
    memory = {
        name: in_processes_of_their_own(args.processes, *passed(args), "--only-memory-of", f"step:{name}")
        for name in steps
    }
    memory_ratio = memory["SFTMix"] / memory["NTP"]
    table(
        ("step", "seconds", "SFTMix / NTP, clock", "CPU seconds", "peak memory MiB"),
        [
            ("NTP", f"{median_seconds(times['NTP']):.3f}", "", "", f"{memory['NTP'] / 2**20:.0f}"),
            (
                "SFTMix",
                f"{median_seconds(times['SFTMix']):.3f}",
                str(ratio),
                str(cpu),
                f"{memory['SFTMix'] / 2**20:.0f}",
            ),
        ],
    )
    heads = compare_heads(args, vocab, dim, rows=rows, mixed=mixed)
    return {
        "benchmark": "mixup_cost",
        "model": args.model,
        "device": DEVICE.type,
        "time_ratio": round(ratio.median, 4),
        "time_interval": [round(ratio.low, 4), round(ratio.high, 4)],
        "cpu_time_ratio": round(cpu.median, 4),
        "memory_ratio": round(memory_ratio, 4),
        "time_bound": TIME_BOUND,
        "time": ratio.verdict(TIME_BOUND),
        "memory_bound": MEMORY_BOUND,
        "memory": "met" if memory_ratio <= MEMORY_BOUND else "missed",
        "repetitions": args.repetitions,
        "heads": heads["heads"],
    }


def passed(args) -> list[str]:
    """The arguments that a process of its own needs."""
    same = ["--model", args.model, "--data", str(args.data), "--tokenizer", str(args.tokenizer)]
    return [*same, "--threads", str(args.threads)]


def memory_of_step(args, name: str) -> float:
    """Peak memory of a step above what model, gradients and optimizer hold, of the batch with most response tokens."""
    work = read_work(args)
    lm = SFTMixLM(causal_lm(args.model)).train()
    optimizer = adamw(lm, OptimizerSettings(lr=1e-4))
    longest = sorted(work.steps, key=lambda s: sum(work.encoded[i].num_response_tokens for i in s.examples))[-1]
    batch = batch_of(work, longest)
    mu = {"NTP": None, "SFTMix": MU}[name]
    run_step(lm, optimizer, batch_of(work, work.steps[0]), mu)
    return peak_bytes(lambda: run_step(lm, optimizer, batch, mu))


# The head alone: hidden states in, loss and gradients out.


def rows_and_head(vocab: int, dim: int, rows: int, mixed: int):
    """Random hidden states and head, in bfloat16 on a GPU."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    hidden, weight = normal(rows, dim).requires_grad_(), (normal(vocab, dim) / dim**0.5).requires_grad_()
    labels = torch.randint(vocab, (rows,), generator=generator, device=DEVICE)
    lam = torch.rand(mixed, generator=generator, device=DEVICE)
    return hidden, LMHead(weight), labels, torch.ones(rows, device=DEVICE), lam


def fused(hidden, head, labels, weights, lam):
    """The loss of a training step."""
    counts = {"num_tokens": len(hidden), "num_mixed": len(lam)}
    return fused_sftmix_loss(hidden, head, labels, weights, lam, LossSettings(mu=MU), **counts).loss


def separate(hidden, head, labels, weights, lam):
    """NTP as fused, and a matmul of their own for the mixed rows."""
    counts = {"num_tokens": len(hidden), "num_mixed": len(lam)}
    ntp = fused_sftmix_loss(hidden, head, labels, weights, lam, LossSettings(mu=None), **counts).loss
    return ntp + MU * mixup_sum(hidden, head, labels, lam) / len(hidden) if len(lam) else ntp


def linear_cross_entropy(hidden, head, labels, weights, lam):
    """Torch's chunked op; a soft label of two is a hard one and a linear rest."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=tokens_per_chunk(head.weight, None))
    loss = F.linear_cross_entropy(hidden, head.weight, labels, reduction="sum", options=options)
    if len(lam):
        p, share = len(lam), lam[:, None].to(hidden.dtype)
        mixed = share * hidden[:p] + (1 - share) * hidden[p : 2 * p]
        hard = F.linear_cross_entropy(mixed, head.weight, labels[:p], reduction="sum", options=options)
        difference = head.weight[labels[:p]] - head.weight[labels[p : 2 * p]]
        loss = loss + MU * (hard + ((1 - share) * mixed * difference).sum())
    return loss / len(hidden)


def dense(hidden, head, labels, weights, lam):
    """The equations as the paper writes them."""
    settings = LossSettings(mu=MU if len(lam) else None)
    counts = {"num_tokens": len(hidden), "num_mixed": len(lam)}
    return dense_sftmix_loss(hidden, head, labels, weights, lam, settings, **counts).loss


HEADS = {"fused": fused, "separate matmul": separate, "linear_cross_entropy": linear_cross_entropy, "dense": dense}
if not hasattr(F, "linear_cross_entropy"):  # before torch 2.13
    del HEADS["linear_cross_entropy"]


def compare_heads(args, vocab: int, dim: int, *, rows: int | None = None, mixed: int | None = None) -> dict:
    """Forward and backward of each head, for NTP, and for SFTMix at the coverage of Alpaca and at full coverage."""
    rows = rows or args.rows
    coverages = {"NTP": 0, "SFTMix": mixed or rows // 4, "all rows paired": rows // 2}
    cases = {name: rows_and_head(vocab, dim, rows, pairs) for name, pairs in coverages.items()}
    check_heads_agree(cases["SFTMix"])

    def forward_and_backward(head_name, case):
        def run(_):
            hidden, head, *rest = cases[case]
            hidden.grad = head.weight.grad = None
            HEADS[head_name](hidden, head, *rest).backward()

        return run

    variants = {
        f"{h}:{c}": forward_and_backward(h, c) for h in HEADS for c in cases if h == "fused" or c != "all rows paired"
    }
    times = take_in_turn(variants, min(args.repetitions, 24 if DEVICE.type == "cuda" else 9), "heads")
    shape = [*passed(args), "--head", str(vocab), str(dim), "--rows", str(rows)]
    lines, report = [], {}
    for name in variants:
        head_name, case = name.split(":")
        to_ntp = paired_ratio(times[name], times["fused:NTP"])
        own = paired_ratio(times[name], times[f"{head_name}:NTP"])
        what = f"head:{head_name}+{coverages[case]}"
        memory = in_processes_of_their_own(1, *shape, "--only-memory-of", what)
        lines.append(
            (
                head_name,
                case,
                f"{1e3 * median_seconds(times[name]):.1f}",
                str(to_ntp),
                str(own),
                f"{memory / 2**20:.0f}",
            )
        )
        report[name] = {
            "to_fused_ntp": round(to_ntp.median, 3),
            "to_own_ntp": round(own.median, 3),
            "memory": int(memory),
        }
    print(f"head {vocab} x {dim}, {rows} rows, {coverages['SFTMix']} mixed positions, forward and backward")
    table(("head", "loss", "ms", "to NTP fused", "to NTP of its own", "peak MiB"), lines)
    ratio: Ratio = paired_ratio(times["fused:SFTMix"], times["fused:NTP"])
    memory_ratio = report["fused:SFTMix"]["memory"] / report["fused:NTP"]["memory"]
    return {
        "benchmark": "mixup_cost",
        "head": [vocab, dim],
        "device": DEVICE.type,
        "time_ratio": round(ratio.median, 4),
        "time_interval": [round(ratio.low, 4), round(ratio.high, 4)],
        "memory_ratio": round(memory_ratio, 4),
        "bound": GPU_BOUND if DEVICE.type == "cuda" else None,
        "time": ratio.verdict(GPU_BOUND) if DEVICE.type == "cuda" else None,
        "heads": report,
    }


def check_heads_agree(case) -> None:
    """The same loss and gradients by every route, before any is timed."""
    hidden, head, *rest = case
    expected = None
    for name, loss_of in HEADS.items():
        hidden.grad = head.weight.grad = None
        loss = loss_of(hidden, head, *rest)
        loss.backward()
        got = (loss.detach().float(), hidden.grad.float(), head.weight.grad.float())
        expected = expected or got
        tolerance = 3e-2 if hidden.dtype == torch.bfloat16 else 1e-4
        for ours, theirs in zip(got, expected, strict=True):
            error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
            if error > tolerance:
                raise SystemExit(
                    f"{name} differs from {next(iter(HEADS))} by {error:.2g} of the largest: nothing is timed"
                )
    hidden.grad = head.weight.grad = None


def memory_of_head(args, name: str) -> float:
    """Peak memory of a forward and backward of a head above its inputs; what warms up is a smaller one."""
    head_name, pairs = name.split("+")
    for rows, mixed in ((16, min(int(pairs), 4)), (args.rows, int(pairs))):
        hidden, head, *rest = rows_and_head(*args.head, rows, mixed)
        peak = peak_bytes(lambda h=hidden, w=head, r=rest: HEADS[head_name](h, w, *r).backward())
    return peak


if __name__ == "__main__":
    main()
