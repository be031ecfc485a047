"""The fused loss on a device against the dense equations in float64 on the CPU: value and gradients.

python benchmarks/gpu_loss.py --device cuda
"""

import argparse
import json

import torch

from sftmix.functional.equations import LMHead, LossSettings, dense_sftmix_loss
from sftmix.functional.fused import fused_sftmix_loss

NUM_TOKENS, NUM_MIXED, DIM, VOCAB = 700, 200, 256, 5000
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # of the largest value


def main() -> None:
    """Compare the losses, and fail if one differs by more than its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args().device
    torch.manual_seed(0)
    hidden, weight = torch.randn(NUM_TOKENS, DIM), torch.randn(VOCAB, DIM) / DIM**0.5
    labels, lam = torch.randint(VOCAB, (NUM_TOKENS,)), torch.rand(NUM_MIXED, dtype=torch.float64)
    weights = torch.ones(NUM_TOKENS, dtype=torch.float64)

    def run(loss_of, device: str, dtype: torch.dtype, chunk_bytes: int | None) -> list[torch.Tensor]:
        h, w = (x.to(device, dtype).detach().requires_grad_() for x in (hidden, weight))
        settings = LossSettings(mu=0.2, chunk_bytes=chunk_bytes)
        rest = labels.to(device), weights.to(device), lam.to(device), settings
        loss = loss_of(h, LMHead(w), *rest, num_tokens=NUM_TOKENS, num_mixed=NUM_MIXED).loss
        loss.backward()
        return [x.detach().double().cpu() for x in (loss, h.grad, w.grad)]

    exact = run(dense_sftmix_loss, "cpu", torch.float64, None)
    errors = {}
    for dtype, bound in BOUNDS.items():
        for chunk_bytes in (None, 2**20):
            found = run(fused_sftmix_loss, device, dtype, chunk_bytes)
            error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))
            name = f"{str(dtype).removeprefix('torch.')}, {'one chunk' if chunk_bytes is None else 'chunks'}"
            print(f"{name}: largest error of loss and gradients {error:.2g}, at most {bound:.2g} is expected")
            errors[name] = error
            if not error < bound:
                raise SystemExit(f"{name}: the fused loss is wrong on this device")
    print(json.dumps({"benchmark": "gpu_loss", "device": device, "errors": errors}))


if __name__ == "__main__":
    main()
