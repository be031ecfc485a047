"""Optimizer steps of blocks as large as those of Llama-3.1-8B: time, waits for the device, and peak memory.

The model has random weights and --layers blocks. `lightning.Trainer` runs the steps, as in `train.py`. The predicted
peak is that of `sftmix.estimate`. The last line is JSON.

    python benchmarks/gpu_step.py --strategy fsdp --layers 8 --tokens 8192
"""

import argparse
import collections
import json
import tempfile
import time
import warnings
from typing import Any

import lightning as L
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sftmix.data.collate import BatchSettings
from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.process_group import destroy_process_group, init_process_group
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.strategy import trainer_arguments
from sftmix.estimate.memory import GIB, TrainingSetup, peak_bytes
from sftmix.estimate.shape import ModelShape
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import Base, add_lora, hold_in_bfloat16
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import quiet_lightning
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings

WARM_UP = 3  # steps that do not count


class Watch(L.Callback):
    """Seconds of each step, the peak memory after the warm-up, and the places that wait for the device in one step."""

    def __init__(self, device: torch.device, num_steps: int) -> None:
        self.is_gpu, self.last = device.type == "cuda", num_steps - 1
        self.seconds: list[float] = []
        self.waits: collections.Counter[str] = collections.Counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock; in the last step let torch report every wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()
            if trainer.global_step == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
            if trainer.global_step == self.last:
                self._caught = warnings.catch_warnings(record=True)
                self._seen = self._caught.__enter__()
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop the clock."""
        if self.is_gpu:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            if trainer.global_step == self.last + 1:
                self._caught.__exit__(None, None, None)
                for warning in self._seen or ():
                    if "synchroniz" in str(warning.message):
                        self.waits[f"{warning.filename.split('site-packages/')[-1]}:{warning.lineno}"] += 1
        self.seconds.append(time.perf_counter() - self._start)


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--strategy", default="single", choices=("single", "fsdp"))
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a micro-batch, which is the whole step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of an example, half of them response")
    parser.add_argument("--vary", action="store_true", help="examples of another length at each step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layout", default="packed", choices=("packed", "padded"))
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--ntp", action="store_true", help="without Mixup")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    return parser.parse_args()


def main() -> None:
    """Run the steps and print what was seen."""
    args = arguments()
    device, dtype = torch.device(args.device), "bf16-mixed"
    heads = max(2, args.hidden // 128)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        intermediate_size=args.hidden * 7 // 2,
        vocab_size=args.vocab,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        causal_lm: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if args.lora:
        add_lora(causal_lm, r=16, alpha=32, dropout=0.0, target_modules="all-linear", seed=0, base=Base("", None))
    lm = SFTMixLM(causal_lm)
    if args.lora:
        hold_in_bfloat16(causal_lm, [name for name, _ in causal_lm.named_parameters() if ".base_layer." in name])
    lm.use_attention(args.attention)
    if args.checkpointing:
        lm.checkpoint_activations()
    module = SFTMixModule(
        lm,
        loss=LossSettings(mu=None if args.ntp else 0.2),
        optimizer=OptimizerSettings(lr=2e-6),
        shards_in_bfloat16=True,
    )
    watch = Watch(device, args.steps)
    if args.strategy == "fsdp":
        init_process_group(SINGLE, args.device, tempfile.mktemp(), 60)
    accelerator = "gpu" if args.device == "cuda" else "cpu"
    with quiet_lightning():
        trainer = L.Trainer(
            **trainer_arguments(args.strategy, accelerator, dtype, SINGLE),
            max_epochs=1,
            max_steps=args.steps,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data_module(args))
    destroy_process_group()
    report(args, ModelShape.of(config.to_dict()), watch)


def data_module(args: argparse.Namespace) -> SFTDataModule:
    """Return examples of one length, or of another length in each step."""
    number = args.tokens // args.length

    def example(k: int) -> EncodedExample:
        length = args.length - (args.length // 8 * (k // number % 4) if args.vary else 0)
        ids = tuple((7 * k + i) % (args.vocab - 10) + 3 for i in range(length))
        return EncodedExample(f"e{k:06d}", ids, length // 2)

    total = number * args.steps
    encoded = EncodedExamples.of([example(k) for k in range(total)])
    subsets = None if args.ntp else [k % 2 == 0 for k in range(total)]
    sampler = StepSampler(total, subsets, SamplerSettings(global_batch_size=number, alpha=0.5, seed=0))
    batches = BatchSettings(args.layout, args.tokens, 0)
    return SFTDataModule(sampler, encoded, EncodedExamples.of([]), batches)


def report(args: argparse.Namespace, shape: ModelShape | None, watch: Watch) -> None:
    """Print times, waits and memory."""
    assert shape is not None
    counted = sorted(watch.seconds[WARM_UP:-1])
    seconds = counted[len(counted) // 2]
    has_mask = args.layout == "packed" and args.attention == "sdpa"
    setup = TrainingSetup(
        args.strategy, 1, args.tokens, has_mask, args.checkpointing, lora_rank=16 if args.lora else None
    )
    predicted = max(peak_bytes(shape, setup).values()) / GIB
    metrics: dict[str, Any] = {"ms": round(1e3 * seconds, 1), "tokens_per_sec": round(args.tokens / seconds)}
    print(f"steps: {', '.join(f'{1e3 * s:.0f}' for s in watch.seconds)} ms; {metrics['tokens_per_sec']:,} tokens/s")
    if args.device == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
        print(f"peak {peak:.2f} GiB allocated ({reserved:.2f} reserved), {predicted:.2f} predicted")
        print(f"waits for the device in one step: {dict(watch.waits.most_common(12)) or 'none'}")
        metrics |= {"peak_gib": round(peak, 3), "waits": sum(watch.waits.values())}
        metrics["gpu"] = torch.cuda.get_device_name()
    print(json.dumps({"benchmark": "gpu_step", **vars(args), **metrics, "predicted_gib": round(predicted, 3)}))


if __name__ == "__main__":
    main()
