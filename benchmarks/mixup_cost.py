"""Cost of Mixup: time and memory of a step of SFTMix over a step of NTP on the same batch.

The head is also measured without the body, in four implementations: the fused loss; the fused NTP loss with another
matmul for the mixed tokens; torch's F.linear_cross_entropy, once for NTP and once for the mixed tokens; and the dense
equations. The last line is JSON.

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
    alternate,
    in_new_processes,
    median_seconds,
    paired_ratio,
    peak_bytes,
    table,
)

from sftmix.functional.equations import LMHead, LossSettings, dense_sftmix_loss, mixup_sum
from sftmix.functional.fused import fused_sftmix_loss, tokens_per_chunk
from sftmix.models.language_model import SFTMixLM
from sftmix.training.optim import OptimizerSettings, adamw

MU = 0.2
TIME_BOUND, MEMORY_BOUND = 1.05, 1.02
GPU_BOUND = 1.01


def main() -> None:
    """Compare steps, or with --head only heads."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--processes", type=int, default=3, help="processes that measure the peak memory of a step")
    parser.add_argument("--head", type=int, nargs=2, metavar=("VOCAB", "DIM"), help="measure only a head of this shape")
    parser.add_argument("--tokens", type=int, default=2048, help="response tokens with --head")
    parser.add_argument("--only-memory-of", metavar="WHAT", help="internal: one measurement in a new process")
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
    """Compare alternating steps of SFTMix and NTP, then heads of the same shape as the model's."""
    work = read_work(args)
    steps = {"NTP": None, "SFTMix": MU}
    sides = {name: (SFTMixLM(causal_lm(args.model)).train(), mu) for name, mu in steps.items()}
    optimizers = {name: adamw(lm, OptimizerSettings(lr=1e-4)) for name, (lm, _) in sides.items()}
    batches = [batch_of(work, step) for step in work.steps]

    def step_of(name):
        lm, mu = sides[name]
        return lambda k: run_step(lm, optimizers[name], batches[k % len(batches)], mu)

    times = alternate({name: step_of(name) for name in sides}, args.repetitions, "steps")
    head = sides["NTP"][0].head
    vocab, dim = head.weight.shape
    body = sum(p.numel() for p in sides["NTP"][0].parameters()) - vocab * dim
    num_tokens = sum(len(m.positions) for b in batches for m in b.micro_batches) // len(batches)
    mixed = sum(b.num_mixed for b in batches) // len(batches)
    print(
        f"{args.model}: head {vocab} x {dim}, {body / 1e6:.1f}M other parameters, {DEVICE.type}, {args.threads} threads"
    )
    print(
        f"a step of 32 of Alpaca: {num_tokens} response tokens, {mixed} mixed; {args.repetitions} paired repetitions\n"
    )
    ratio, cpu = paired_ratio(times["SFTMix"], times["NTP"]), paired_ratio(times["SFTMix"], times["NTP"], "cpu")
    sides.clear(), optimizers.clear()
    memory = {
        name: in_new_processes(args.processes, *passed(args), "--only-memory-of", f"step:{name}") for name in steps
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
    heads = compare_heads(args, vocab, dim, num_tokens=num_tokens, mixed=mixed)
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
    """Return the arguments of a new process."""
    same = ["--model", args.model, "--data", str(args.data), "--tokenizer", str(args.tokenizer)]
    return [*same, "--threads", str(args.threads)]


def memory_of_step(args, name: str) -> float:
    """Return the peak memory of a step above model, gradients and optimizer, on the batch with most response tokens."""
    work = read_work(args)
    lm = SFTMixLM(causal_lm(args.model)).train()
    optimizer = adamw(lm, OptimizerSettings(lr=1e-4))
    longest = sorted(work.steps, key=lambda s: sum(work.encoded[i].num_response_tokens for i in s.examples))[-1]
    batch = batch_of(work, longest)
    mu = {"NTP": None, "SFTMix": MU}[name]
    run_step(lm, optimizer, batch_of(work, work.steps[0]), mu)
    return peak_bytes(lambda: run_step(lm, optimizer, batch, mu))


# The head without the body: from hidden states to loss and gradients


def hidden_and_head(vocab: int, dim: int, num_tokens: int, mixed: int):
    """Return random hidden states and head, in bfloat16 on a GPU, with labels, weights and lam."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    hidden, weight = normal(num_tokens, dim).requires_grad_(), (normal(vocab, dim) / dim**0.5).requires_grad_()
    labels = torch.randint(vocab, (num_tokens,), generator=generator, device=DEVICE)
    lam = torch.rand(mixed, generator=generator, device=DEVICE)
    return hidden, LMHead(weight), labels, torch.ones(num_tokens, device=DEVICE), lam


def fused(hidden, head, labels, weights, lam):
    """Return the loss as a training step computes it."""
    counts = {"num_tokens": len(hidden), "num_mixed": len(lam)}
    return fused_sftmix_loss(hidden, head, labels, weights, lam, LossSettings(mu=MU), **counts).loss


def separate(hidden, head, labels, weights, lam):
    """Return the loss by the fused NTP loss, and another matmul for the mixed tokens."""
    counts = {"num_tokens": len(hidden), "num_mixed": len(lam)}
    ntp = fused_sftmix_loss(hidden, head, labels, weights, lam, LossSettings(mu=None), **counts).loss
    return ntp + MU * mixup_sum(hidden, head, labels, lam) / len(hidden) if len(lam) else ntp


def linear_cross_entropy(hidden, head, labels, weights, lam):
    """Return the loss by torch's chunked operator. The loss of a mixed label is that of one label and a linear term."""
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
    """Return the loss by the equations of the paper."""
    settings = LossSettings(mu=MU if len(lam) else None)
    counts = {"num_tokens": len(hidden), "num_mixed": len(lam)}
    return dense_sftmix_loss(hidden, head, labels, weights, lam, settings, **counts).loss


HEADS = {"fused": fused, "separate matmul": separate, "linear_cross_entropy": linear_cross_entropy, "dense": dense}
if not hasattr(F, "linear_cross_entropy"):  # before torch 2.13
    del HEADS["linear_cross_entropy"]


def compare_heads(args, vocab: int, dim: int, *, num_tokens: int | None = None, mixed: int | None = None) -> dict:
    """Compare forward and backward of the heads: NTP, SFTMix with as many mixed tokens as Alpaca has, and with all."""
    num_tokens = num_tokens or args.tokens
    coverages = {"NTP": 0, "SFTMix": mixed or num_tokens // 4, "all tokens paired": num_tokens // 2}
    cases = {name: hidden_and_head(vocab, dim, num_tokens, pairs) for name, pairs in coverages.items()}
    check_heads_agree(cases["SFTMix"])

    def forward_and_backward(head_name, case):
        def run(_):
            hidden, head, *rest = cases[case]
            hidden.grad = head.weight.grad = None
            HEADS[head_name](hidden, head, *rest).backward()

        return run

    variants = {
        f"{h}:{c}": forward_and_backward(h, c) for h in HEADS for c in cases if h == "fused" or c != "all tokens paired"
    }
    times = alternate(variants, min(args.repetitions, 24 if DEVICE.type == "cuda" else 9), "heads")
    shape = [*passed(args), "--head", str(vocab), str(dim), "--tokens", str(num_tokens)]
    lines, report = [], {}
    for name in variants:
        head_name, case = name.split(":")
        to_ntp = paired_ratio(times[name], times["fused:NTP"])
        own = paired_ratio(times[name], times[f"{head_name}:NTP"])
        what = f"head:{head_name}+{coverages[case]}"
        memory = in_new_processes(1, *shape, "--only-memory-of", what)
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
    print(f"head {vocab} x {dim}, {num_tokens} tokens, {coverages['SFTMix']} mixed, forward and backward")
    table(("head", "loss", "ms", "to NTP fused", "to its NTP", "peak MiB"), lines)
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
    """End the program unless all heads have the same loss and gradients."""
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
                    f"{name}: differs from {next(iter(HEADS))} by {error:.2g} of the largest value, over {tolerance:g}"
                )
    hidden.grad = head.weight.grad = None


def memory_of_head(args, name: str) -> float:
    """Return the peak memory of forward and backward of a head above its inputs, after a smaller one to warm up."""
    head_name, pairs = name.split("+")
    for num_tokens, mixed in ((16, min(int(pairs), 4)), (args.tokens, int(pairs))):
        hidden, head, *rest = hidden_and_head(*args.head, num_tokens, mixed)
        peak = peak_bytes(lambda h=hidden, w=head, r=rest: HEADS[head_name](h, w, *r).backward())
    return peak


if __name__ == "__main__":
    main()
