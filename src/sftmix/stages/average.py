"""The mean of the C checkpoints of the reference as the target (recipe=checkpoint_average). Nothing is trained."""

import math
import shutil
import time

from sftmix.artifacts.manifest import read_json, seal_part, unseal_part
from sftmix.data.collate import BatchSettings
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.process_group import barrier
from sftmix.models.average import write_mean
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import empty_causal_lm, load_causal_lm
from sftmix.models.quantization import parameter_sizes
from sftmix.provenance.metadata import Effort
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.language_model import place, prepare_language_model
from sftmix.stages.models import load_model
from sftmix.stages.sample_answers import SampleQuestions
from sftmix.stages.train import Measured, write_records
from sftmix.terminal import counted
from sftmix.training.fit import metrics_of_sets
from sftmix.training.held_out import HeldOut
from sftmix.training.scoring import ScoringSettings, score


def write_average(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Write the folder of a run whose model is the mean of the checkpoints `spec.inputs`.

    The folder is that of a tuned run, without `logs/`. The held-out loss before tuning is that of the reference.
    """
    start, config, folder, is_first = time.monotonic(), context.config, spec.folder, rank.ranks.is_first
    encoded, path = context.encoded(config.model), folder / "model"
    if is_first:
        unseal_part(path)
        write_mean(spec.inputs, path)
        seal_part(path)
    barrier()
    lm, device = prepare_language_model(
        lambda weights: (load_causal_lm if weights else empty_causal_lm)(str(path), None), config.trainer, rank
    )
    place(lm.requires_grad_(False), rank)
    parts, val = folder / "parts", encoded.val

    def measure(lm: SFTMixLM, examples: EncodedExamples, name: str) -> HeldOut:
        settings = ScoringSettings(
            parts / name,
            BatchSettings(device.layout, config.trainer.micro_batch_tokens, encoded.tokenizer.pad_token_id),
            rank.torch_device,
            bfloat16=device.precision == "bf16-mixed" and device.strategy != "fsdp",
            title=f"loss, {name}",
            show_progress=config.trainer.progress_bar,
        )
        nll = score(lm, examples, [[i] for i in range(len(examples))], settings, rank.ranks, rank.stop)
        return HeldOut([*range(len(examples))], examples.num_response_tokens.tolist(), nll)

    held_out = measure(lm, val, "held out") if len(val) else None
    files = context.validation_files()
    val_sets = {name: measure(lm, file.examples, f"file {name}") for name, file in files.items()}
    size = sum(size for _, size in parameter_sizes(lm))
    del lm
    device.release()
    if not is_first:
        return
    shutil.rmtree(parts, ignore_errors=True)
    loss = None if held_out is None else held_out.loss()
    before = read_json(spec.inputs[-1].parent / "metrics.json").get("val_loss_before")
    seconds = time.monotonic() - start
    metrics = {
        "steps": 0,
        "examples": len(encoded.train),
        "pairs": 0,
        "without_partner": None,
        "seconds": round(seconds, 1),
        "tokens_per_sec": None,
        "train_loss_last_step": None,
        "val_examples": len(val),
        "val_loss_before": before,
        "val_loss": loss,
        "val_perplexity": None if loss is None else math.exp(loss),
        "lr": None,
        **metrics_of_sets(val_sets, {}, {}),
    }
    names = [checkpoint.name for checkpoint in spec.inputs]
    num_tokens = sum(int(examples.lengths.sum()) for examples in (val, *(file.examples for file in files.values())))
    effort = Effort(seconds, num_tokens, size, 0)
    write_records(spec, context, encoded, device, Measured(metrics, held_out, val_sets, effort, {"averaged": names}))
    print(f"            mean of {counted(len(names), 'checkpoint')}: {', '.join(names)}", flush=True)
    questions = SampleQuestions.of(context, encoded, val if len(val) else encoded.train)
    answers = questions.answered_by(load_causal_lm(str(path), None).eval(), rank)
    device.release()  # a GPU holds one model at a time
    questions.write(folder, questions.answered_by(load_model(config.model), rank), answers)
