"""The data and models of the benchmarks: real steps of Alpaca, and a Llama of 35M parameters or any model folder."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sftmix.data.census import Census
from sftmix.data.collate import BatchSettings, StepBatch, collate_step
from sftmix.data.encoding import EncodedExample, Encoder
from sftmix.data.pairing import SamplerSettings, Step, StepSampler
from sftmix.data.reader import examples_from_rows
from sftmix.data.sources import read_file
from sftmix.data.templates import set_template, template_source
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm, quiet_transformers
from sftmix.models.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[2] / "shared"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYOUT = "packed" if DEVICE.type == "cuda" else "grouped"  # as trainer.layout=auto chooses


class Work(NamedTuple):
    """Examples and the steps of an epoch."""

    encoded: list[EncodedExample]  # Examples with Alpaca's prompt
    steps: list[Step]  # Steps of 32 examples in random pairs
    pad_token_id: int  # Token id of the padding


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="35m", help="35m (a Llama of random weights) or a Hugging Face folder")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "alpaca" / "alpaca_data.json")
    parser.add_argument(
        "--tokenizer", type=Path, default=SHARED / "tokenizers" / "mistral_v1", help="tokenizer of the 35m model"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def read_work(args: argparse.Namespace, num_examples: int = 512, max_seq_len: int = 512) -> Work:
    """Return real examples under the tokenizer of the model, in steps of 32."""
    if not args.data.is_file():
        raise SystemExit(f"{args.data}: no such file, give the file of Alpaca by --data")
    folder = args.tokenizer if args.model == "35m" else Path(args.model)
    tokenizer = load_tokenizer(str(folder), None, None)
    set_template(tokenizer, template_source("alpaca"))
    examples = examples_from_rows(read_file(args.data), Census(), num_examples)
    encoded = [f.encoded for f in Encoder(tokenizer, max_seq_len, "drop").fit(examples, Census())]
    subsets = [k % 2 == 0 for k in range(len(encoded))]
    steps = StepSampler(len(encoded), subsets, SamplerSettings(global_batch_size=32, alpha=0.5, seed=0)).epoch(0)
    return Work(encoded, [step for step in steps if len(step.examples) == 32], tokenizer.pad_token_id)


def causal_lm(model: str, vocab_size: int = 32000) -> Any:
    """Return a model in float32 on the device."""
    if model != "35m":
        return load_causal_lm(model, None).to(DEVICE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with quiet_transformers(bars=False):
        return LlamaForCausalLM(config).to(DEVICE)


def batch_of(work: Work, step: Step, layout: str = LAYOUT, micro_batch_tokens: int = 8192) -> StepBatch:
    """Return the tensors of a step on the device."""
    from lightning.fabric.utilities import move_data_to_device

    settings = BatchSettings(layout, micro_batch_tokens, work.pad_token_id)
    batch = collate_step(step, work.encoded, [1.0] * len(work.encoded), settings)
    return move_data_to_device(batch, DEVICE)


def run_step(lm: SFTMixLM, optimizer: torch.optim.Optimizer, batch: StepBatch, mu: float | None) -> float:
    """Take an optimizer step as training does, and return its loss. Without mu, the loss is NTP."""
    optimizer.zero_grad()
    losses = []
    for micro in batch.micro_batches:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            part = lm(micro, LossSettings(mu=mu), num_tokens=batch.num_tokens, num_mixed=batch.num_mixed)
        part.loss.backward()
        losses.append(part.loss.detach())
    torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    optimizer.step()
    return torch.stack(losses).sum().item()


def body_tokens(batches: Sequence[StepBatch]) -> int:
    """Return the number of positions that the body runs on, padding included."""
    return sum(i.input_ids.numel() for b in batches for m in b.micro_batches for i in m.inputs)
