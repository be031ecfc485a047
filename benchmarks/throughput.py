"""Tokens per second: this trainer, a plain Hugging Face loss in the same Lightning loop, and TRL's SFTTrainer.

All train the same model on the same batches of 32 examples with AdamW and clipping. All but "ours, SFTMix" train by
next-token prediction on responses. Their losses of the first and the last step must agree. Rates count real tokens, not
padding. TRL runs without gradient checkpointing and in the same precision. On a CPU it computes the logits of all
positions, so it also runs with a patch that restricts the logits to valid positions, as TRL does on a GPU. In "equal
padding", this trainer pads as the others do. The last line is JSON.

    python benchmarks/throughput.py
    make bench-peers            with TRL, in a separate environment
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from batches import DEVICE, Work, arguments, batch_of, body_tokens, causal_lm, read_work
from lightning import LightningDataModule, LightningModule
from side_by_side import Timing, paired_ratio, synchronize, table
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from sftmix.data.collate import StepBatch
from sftmix.data.pairing import Step
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import quiet_trainer
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings, SchedulerSettings, adamw

LR, MICRO_BATCH = 1e-4, 16
PRECISION = "bf16-mixed" if DEVICE.type == "cuda" else "32-true"
BOUNDS = {"TRL as it ships": 4.0, "TRL, valid positions": 2.0, "Hugging Face loss": 3.0}  # on a CPU, over ours
warnings.filterwarnings("ignore")


class Ran(NamedTuple):
    """The losses and times of the steps of a loop."""

    losses: list[float]
    times: list[Timing]


def main() -> None:
    """Train by all loops, which alternate, and compare."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--steps", type=int, default=4, help="steps of 32 examples; the first of each round does not count"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = read_work(args)
    work = work._replace(steps=[Step((), (), (), step.examples) for step in work.steps[: args.steps]])
    loops: dict[str, Callable[[], Ran]] = {
        "ours": lambda: ours(args.model, [batch_of(work, step) for step in work.steps]),
        "ours, SFTMix": lambda: ours(args.model, [batch_of(mixed, step) for step in mixed.steps], mu=0.2),
        "ours, equal padding": lambda: ours(args.model, [as_the_others_pad(work, step) for step in work.steps]),
        "Hugging Face loss": lambda: hugging_face(args.model, work),
    }
    mixed = work._replace(steps=[pairs_of(step) for step in work.steps])
    if find_spec("trl"):
        loops["TRL, valid positions"] = lambda: trl(args.model, work, valid_positions=True)
        loops["TRL as it ships"] = lambda: trl(args.model, work, valid_positions=False)
    else:
        print("TRL is not in this environment: make bench-peers\n")
    ran: dict[str, list[Ran]] = {name: [] for name in loops}
    for number in range(args.rounds):
        for name in list(loops) if number % 2 else list(loops)[::-1]:
            ran[name].append(loops[name]())
            print(f"round {number + 1}/{args.rounds}, {name}: {ran[name][-1].losses}", flush=True)
    assert_equal_losses(ran)
    print(json.dumps(report(args, work, ran)))


def assert_equal_losses(ran: dict[str, list[Ran]]) -> None:
    """End the program if the losses of the first or the last step differ by more than 1e-4."""
    expected = ran["ours"][0].losses
    for name, rounds in ran.items():
        if name != "ours, SFTMix":
            for losses, _ in rounds:
                for k in (0, -1):
                    if abs(losses[k] - expected[k]) > 1e-4 * max(1.0, abs(expected[k])):
                        raise SystemExit(
                            f"{name} has loss {losses[k]} at step {k}, ours {expected[k]}: the loops do different work"
                        )


def report(args: Any, work: Work, ran: dict[str, list[Ran]]) -> dict[str, Any]:
    """Print and return rates and ratios over all counted steps."""
    batches = [batch_of(work, step) for step in work.steps[1:]]
    real = sum(b.num_input_tokens for b in batches)
    response = sum(b.num_tokens for b in batches)
    times = {name: [t for r in rounds for t in r.times] for name, rounds in ran.items()}
    padded = [as_the_others_pad(work, step) for step in work.steps[1:]]
    padding = {name: 1 - real / body_tokens(batches if name in ("ours", "ours, SFTMix") else padded) for name in times}
    rows, metrics = [], {}
    for name, taken in times.items():
        ratio, cpu = paired_ratio(taken, times["ours"]), paired_ratio(taken, times["ours"], "cpu")
        seconds = sum(t.wall for t in taken) / args.rounds
        rows.append(
            (name, f"{real / seconds:.0f}", f"{response / seconds:.0f}", f"{padding[name]:.1%}", str(ratio), str(cpu))
        )
        metrics[name] = {
            "real_tokens_per_sec": round(real / seconds, 1),
            "response_tokens_per_sec": round(response / seconds, 1),
            "padding": round(padding[name], 3),
            "time_over_ours": round(ratio.median, 3),
            "time_over_ours_interval": [round(ratio.low, 3), round(ratio.high, 3)],
            "cpu_time_over_ours": round(cpu.median, 3),
        }
        at_equal_padding = paired_ratio(taken, times["ours, equal padding"])
        metrics[name]["time_over_ours_at_equal_padding"] = round(at_equal_padding.median, 3)
        if name in BOUNDS and DEVICE.type == "cpu":
            metrics[name]["bound"] = BOUNDS[name]
            metrics[name]["time"] = ratio.reaches(BOUNDS[name])
    print(f"\n{args.model}, {DEVICE.type}, {args.threads} threads; steps of 32 examples of Alpaca, losses equal")
    table(("loop", "real tok/s", "response tok/s", "padding", "time / ours", "CPU time / ours"), rows)
    equal = {name: metrics[name]["time_over_ours_at_equal_padding"] for name in metrics if name[:4] != "ours"}
    print("at equal padding, time / ours:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in equal.items()), "\n")
    return {"benchmark": "throughput", "model": args.model, "device": DEVICE.type, "loops": metrics}


def pairs_of(step: Step) -> Step:
    """Return a step of the same examples in pairs."""
    num_pairs = len(step.unpaired) // 2
    lam = torch.distributions.Beta(0.5, 0.5).sample((num_pairs,)).tolist()
    return Step(step.unpaired[:num_pairs], step.unpaired[num_pairs:], tuple(lam), ())


def as_the_others_pad(work: Work, step: Step) -> StepBatch:
    """Return micro-batches of 16 in the order of the data, each padded to its longest example."""
    members = [step.unpaired[k : k + MICRO_BATCH] for k in range(0, len(step.unpaired), MICRO_BATCH)]
    parts = [batch_of(work, Step((), (), (), indices), "padded", 10**9) for indices in members]
    whole = batch_of(work, step)
    return whole._replace(micro_batches=tuple(m for part in parts for m in part.micro_batches))


class Timed:
    """Collects losses and times of steps. The time of the first step, which warms up, does not count."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[Timing] = []

    def start(self) -> None:
        """Start the clock before a step."""
        synchronize()
        self._start = Timing(time.perf_counter(), time.process_time())

    def stop(self, loss: float) -> None:
        """Stop the clock after a step."""
        synchronize()
        now = Timing(time.perf_counter(), time.process_time())
        self.losses.append(round(loss, 6))
        if len(self.losses) > 1:
            self.times.append(Timing(now.wall - self._start.wall, now.cpu - self._start.cpu))

    @property
    def ran(self) -> Ran:
        """Losses and times."""
        return Ran(self.losses, self.times)


class GivenBatches(SFTDataModule):
    """A data module of given batches."""

    def __init__(self, batches: list[Any]) -> None:
        LightningDataModule.__init__(self)
        self.given = batches

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches."""
        return DataLoader(self.given, batch_size=None, collate_fn=lambda batch: batch)

    def val_dataloader(self) -> list[Any]:
        """Return nothing: no example is held out."""
        return []


def run_lightning(module: LightningModule, batches: list[Any]) -> None:
    """Train by Lightning's loop."""
    with quiet_trainer(
        accelerator="gpu" if DEVICE.type == "cuda" else "cpu",
        devices=1,
        precision=PRECISION,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
    ) as trainer:
        trainer.fit(module, datamodule=GivenBatches(batches))


def ours(model: str, batches: list[StepBatch], mu: float | None = None) -> Ran:
    """Train by this program."""
    timed = Timed()

    class Module(SFTMixModule):
        def training_step(self, batch, batch_idx):
            timed.start()
            super().training_step(batch, batch_idx)
            timed.stop(self.last_loss)

        def backward_of_step(self, batch):
            part = super().backward_of_step(batch)
            self.last_loss = part.loss.item()
            return part

    module = Module(
        SFTMixLM(causal_lm(model)),
        loss=LossSettings(mu=mu),
        optimizer=OptimizerSettings(lr=LR),
        scheduler=SchedulerSettings("constant", warmup_ratio=0.0),  # as in the other loops
    )
    run_lightning(module, batches)
    return timed.ran


def hugging_face(model: str, work: Work) -> Ran:
    """Train by the loss of the Hugging Face model, on padded batches of 16 with a mask, in the same Lightning loop."""
    timed = Timed()

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model = causal_lm(model).train()

        def training_step(self, batch, batch_idx):
            timed.start()
            optimizer, total = self.optimizers(), 0.0
            optimizer.zero_grad()
            number = sum(int((b["labels"] != -100).sum()) for b in batch)
            for micro in batch:
                loss = self.model(**micro, num_items_in_batch=number, use_cache=False).loss
                self.manual_backward(loss)
                total += loss.item()
            clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            timed.stop(total)

        def configure_optimizers(self):
            return adamw(self.model, OptimizerSettings(lr=LR))

    def padded(part: tuple[int, ...]) -> dict[str, torch.Tensor]:
        width = max(len(work.encoded[i].input_ids) for i in part)
        ids = torch.full((len(part), width), work.pad_token_id)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for line, i in enumerate(part):
            example = work.encoded[i]
            tokens = torch.tensor(example.input_ids)
            ids[line, : len(tokens)], mask[line, : len(tokens)] = tokens, 1
            labels[line, example.num_prompt_tokens : len(tokens)] = tokens[example.num_prompt_tokens :]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    steps = [
        [padded(step.unpaired[k : k + MICRO_BATCH]) for k in range(0, len(step.unpaired), MICRO_BATCH)]
        for step in work.steps
    ]
    run_lightning(Module(), steps)
    return timed.ran


def trl(model: str, work: Work, valid_positions: bool) -> Ran:
    """Train by TRL's SFTTrainer on the same token ids in the same order, with the same optimizer."""
    import transformers
    import trl.trainer.utils as patched
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    transformers.logging.set_verbosity_error()
    timed = Timed()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            timed.start()

        def on_step_end(self, args, state, control, **_):
            timed.stop(float("nan"))  # the loss comes with the log

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                timed.losses[-1] = float(logs["loss"])

    examples = [work.encoded[i] for step in work.steps for i in step.unpaired]
    data = Dataset.from_dict(
        {
            "input_ids": [list(e.input_ids) for e in examples],
            "completion_mask": [[0] * e.num_prompt_tokens + [1] * e.num_response_tokens for e in examples],
        }
    )
    lm = causal_lm(model).train()
    optimizer = adamw(lm, OptimizerSettings(lr=LR))
    before = patched._use_triton
    patched._use_triton = (lambda device: True) if valid_positions else before
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=MICRO_BATCH,
                gradient_accumulation_steps=2,
                num_train_epochs=1,
                learning_rate=LR,
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                gradient_checkpointing=False,
                bf16=DEVICE.type == "cuda",
                completion_only_loss=True,
                max_length=None,
                shuffle_dataset=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=DEVICE.type == "cpu",
                dataloader_pin_memory=False,
            )
            trainer = InOrder(
                lm,
                config,
                train_dataset=data,
                processing_class=tokenizer_of_the_data(work),
                callbacks=[Watch()],
                optimizers=(optimizer, None),
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
    finally:
        patched._use_triton = before
    return timed.ran


def tokenizer_of_the_data(work: Work) -> Any:
    """Return any tokenizer with the right pad token: the data is already tokenized."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": work.pad_token_id, "<eos>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary)), pad_token="<pad>", eos_token="<eos>"
    )


if __name__ == "__main__":
    main()
