"""Optimizer steps and a scoring pass of the program on fake CUDA devices, in a fake world of any size.

    python tests/simulated_gpu/step.py GUARD '{"strategy": "fsdp", "world_size": 8, "layout": "packed"}' ...

Each argument is a case, as JSON; the fields are those of `Case`. All cases of a call have one world. The program's own
collator, sharding, module, loss, clipping and optimizer run. What waits for the device, or mixes devices, raises an
error. Prints one line of JSON for each case: bytes of the state, and peaks.
"""

import json
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from guard import load_guard

load_guard(Path(sys.argv[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from fake_cuda import GIB, LiveBytes, install  # noqa: E402
from shapes import SHAPES  # noqa: E402


@dataclass(frozen=True)
class Case:
    """What is simulated."""

    model: str = "tiny"
    num_layers: int | None = None  # None: all layers of the model
    strategy: str = "single"  # single, ddp or fsdp
    world_size: int = 1
    layout: str = "packed"
    attention: str = "sdpa"
    tokens: int = 256  # of a rank's micro-batch
    num_micro_batches: int = 1
    length: int = 64  # of an example
    response_share: float = 0.5
    mu: float | None = 0.2  # None: NTP
    lora: bool = False
    quantized: bool = False  # the weights under the adapters are in 4 bits
    bfloat16: bool = True
    checkpointing: bool = False
    accumulates_whole: bool = True
    neftune_alpha: float | None = None
    loss: dict[str, Any] = field(default_factory=dict)  # further settings of the loss
    fault: str | None = None  # A fault that is planted: item, cpu_tensor, or buffer
    steps: int = 2  # 0: a batch is scored by a model that was loaded for it
    scores: bool = True


def causal_lm(case: Case) -> Any:
    """Return a model of random weights: fake, on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"tie_word_embeddings": False, "num_hidden_layers": 2, **SHAPES[case.model]}
    if case.num_layers is not None:
        shape["num_hidden_layers"] = case.num_layers
    config = AutoConfig.for_model(**shape, max_position_embeddings=16384)
    config._attn_implementation = "sdpa"
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def examples(case: Case, number: int) -> list[Any]:
    """Return examples of equal length."""
    from sftmix.data.encoding import EncodedExample

    vocab = int(SHAPES[case.model]["vocab_size"])
    return [
        EncodedExample(
            f"e{i}",
            tuple((7 * i + k) % (vocab - 10) + 3 for k in range(case.length)),
            int(case.length * (1 - case.response_share)),
        )
        for i in range(number)
    ]


def step_batch(case: Case) -> Any:
    """Return the batch of rank 0 as the program's collator makes it: real tensors on the CPU."""
    from sftmix.data.collate import BatchSettings, collate_step
    from sftmix.data.pairing import Step

    number = case.tokens // case.length * case.num_micro_batches * case.world_size
    encoded, half = examples(case, number), number // 2
    step = Step(unpaired=tuple(range(number)))
    if case.mu is not None:
        step = Step(tuple(range(half)), tuple(range(half, 2 * half)), (0.3,) * half, ())
    settings = BatchSettings(case.layout, case.tokens, 0)
    return collate_step(step, encoded, [1.0] * number, settings, rank=0, world_size=case.world_size)


def scoring_batch(case: Case) -> Any:
    """Return a batch of the scoring loop: real tensors on the CPU."""
    from sftmix.data.collate import collate_dialogues

    return collate_dialogues([[example] for example in examples(case, case.tokens // case.length)], case.layout, 0)


class _Reducer:
    """DDP's reducer without its second choice of buckets, for which it reads values. The buckets are as large."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def in_ddp(module: Any, strategy: Any) -> Any:
    """Return a module in DDP with the settings of the program's strategy, without what reads values or clocks."""
    from torch.nn.parallel import DistributedDataParallel

    def reduce(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        reduced.set_result(bucket.buffer())  # a fake group returns no tensor
        return reduced

    found: Any = DistributedDataParallel(module, device_ids=[0], init_sync=False, **strategy._ddp_kwargs)
    found.register_comm_hook(None, reduce)
    found.logger = SimpleNamespace(set_runtime_stats_and_log=lambda: None)
    found.reducer = _Reducer(found.reducer)
    return found


def run(case: Case, mesh: Any) -> dict[str, Any]:
    """Run the steps of a case, and return what was counted."""
    from lightning.fabric.utilities import move_data_to_device
    from lightning_utilities.core.apply_func import apply_to_collection
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.utils import clip_grad_norm_
    from transformers import masking_utils

    from sftmix.distributed import sharding
    from sftmix.distributed.strategy import FSDP2Strategy, WholeModelStrategy
    from sftmix.functional.equations import LossSettings
    from sftmix.models import language_model
    from sftmix.models.export import whole_weights
    from sftmix.models.lora import Base, add_lora, hold_in_bfloat16
    from sftmix.training.module import SFTMixModule
    from sftmix.training.optim import OptimizerSettings, adamw

    language_model.check_head = lambda lm: None  # it reads values
    if case.layout != "packed":
        # transformers asks the device whether sequences are packed, and builds no mask if they are not. It does not ask
        # for the values of fake tensors, and would build a mask.
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
    sharding.set_model_state_dict = lambda *_, **__: None  # weights have no values
    gpu = torch.device("cuda", 0)
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    batch, scored = apply_to_collection([step_batch(case), scoring_batch(case)], torch.Tensor, fake.from_tensor)
    live = LiveBytes()
    with fake, live.counting():
        model = causal_lm(case)
        if case.quantized:
            from sftmix.models.quantization import quantize

            quantize(model.to("meta")).to_empty(device="cpu")  # bitsandbytes reads values when it quantizes
            model.tie_weights()
        if case.lora:
            add_lora(model, r=16, alpha=32, dropout=0.0, target_modules="all-linear", seed=0, base=Base("", None))
            if case.bfloat16:
                frozen = [n for n, w in model.named_parameters() if ".base_layer." in n and w.is_floating_point()]
                hold_in_bfloat16(model, frozen)
        lm = language_model.SFTMixLM(model)
        lm.use_attention(case.attention)
        if case.checkpointing:
            lm.checkpoint_activations()
        module = SFTMixModule(
            lm,
            loss=LossSettings(mu=case.mu, **case.loss),
            optimizer=OptimizerSettings(lr=2e-6),
            neftune_alpha=case.neftune_alpha,
            shards_in_bfloat16=case.bfloat16,
        )
        strategy: Any = SimpleNamespace()
        if case.strategy == "fsdp":
            sharding.shard(lm, gpu, bfloat16=case.bfloat16, mesh=mesh)
            strategy = FSDP2Strategy(case.world_size, accumulates_whole=case.accumulates_whole)
            strategy._model = strategy.model = module
        else:
            module.to(gpu)
        if case.strategy == "ddp":
            strategy = WholeModelStrategy()
            strategy.model = in_ddp(module, strategy)
        strategy._lightning_module = module
        trainer = SimpleNamespace(strategy=strategy, world_size=case.world_size, global_step=0, current_epoch=0)
        SFTMixModule.trainer = property(lambda _: trainer)  # type: ignore[assignment, misc, method-assign]
        _plant(case.fault, lm, module)
        module.manual_backward = lambda loss: _backward(loss, live, strategy)  # type: ignore[method-assign, assignment]
        optimizer = adamw(lm, module.optimizer)
        module.train()
        autocasts = case.bfloat16 and case.strategy != "fsdp"
        autocast: Any = torch.autocast("cuda", torch.bfloat16) if autocasts else nullcontext()
        for number in range(case.steps):
            if number == case.steps - 1:
                live.restart()
            here = move_data_to_device(batch, gpu)
            with autocast:
                live.phase = "forward"
                optimizer.zero_grad()
                if case.strategy == "ddp":
                    strategy._forward_redirection(strategy.model, module, "backward_of_step", here)
                else:
                    module.backward_of_step(here)
                live.phase = "clip"
                norm = clip_grad_norm_(lm.parameters(), 1.0)
                norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
                live.phase = "optimizer"
                optimizer.step()
            del here
        if case.steps and not case.lora:
            live.phase = "export"
            whole_weights(model, "bfloat16", sharding.whole)
        optimizer.zero_grad()
        state, peaks = live.total, {phase: round(peak / GIB, 4) for phase, peak in live.peaks.items()}
        if case.scores:
            live.phase = "scoring"
            live.restart()
            lm.eval().requires_grad_(False)
            here = move_data_to_device(scored, gpu)
            with autocast:
                nll = lm.response_nll(
                    here.inputs, here.positions, here.labels, here.example_of_position, here.num_examples
                )
            assert nll.device.type == "cuda"
    num_parameters = sum(p.numel() for p in lm.parameters())
    return {
        "state_bytes": state,
        "parameters": num_parameters,
        "peak_gib": max(peaks.values()),
        "peaks": peaks,
        "scoring_gib": round(live.peak_gib, 4) if case.scores else None,
    }


def _plant(fault: str | None, lm: Any, module: Any) -> None:
    """Plant a fault that a run on a GPU would have, and a run on a CPU would not."""
    backward_of_step, forward = module.backward_of_step, lm.forward
    if fault == "item":
        module.backward_of_step = lambda batch: backward_of_step(batch).loss.item()
    elif fault == "cpu_tensor":
        lm.forward = lambda micro, *args, **kwargs: forward(
            micro._replace(weights=torch.ones(len(micro.labels), dtype=torch.float64)), *args, **kwargs
        )
    elif fault == "buffer":
        scale = torch.ones(lm.causal_lm.config.hidden_size)  # not registered, so it is not moved with the model
        lm.body.norm.register_forward_hook(lambda _module, _inputs, hidden: hidden * scale)


def _backward(loss: Any, live: LiveBytes, strategy: Any) -> None:
    live.phase = "backward"
    if hasattr(strategy, "pre_backward"):
        strategy.pre_backward(loss)
    loss.backward()
    live.phase = "forward"


def main() -> None:
    """Run the cases of the command line."""
    warnings.filterwarnings("ignore")
    cases = [Case(**json.loads(text)) for text in sys.argv[2:]]
    from sftmix.models.quantization import import_bitsandbytes

    import_bitsandbytes()  # PEFT imports it, and where it finds CUDA it reads parts of torch that are not there
    install(max(case.world_size for case in cases))
    mesh = None
    if any(case.strategy != "single" for case in cases):
        from torch.distributed import init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        (world_size,) = {case.world_size for case in cases}
        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
        mesh = init_device_mesh("cuda", (world_size,))
    for case in cases:
        try:
            result = run(case, mesh)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps({"case": asdict(case), **result}), flush=True)


if __name__ == "__main__":
    main()
