"""Stage 1 (section 3.3, Step 1): tune the reference by next-token prediction (NTP) and keep C checkpoints.

The reference is an NTP run of the config that `plan.reference_config` derives. `recipe=ntp` at the same settings is the
same artifact, made by the same function. If the baseline was tuned first, its checkpoints can score later.
"""

from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import CHECKPOINTS
from sftmix.config.schema import Config
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.plan import is_reference
from sftmix.stages.train import ADAPTER, TrainingExamples, ntp_weights, tune
from sftmix.stages.workload import matched_compute, with_epochs
from sftmix.training.datamodule import ValidationSet


def write_ntp(spec: StageSpec, config: Config, context: RunContext, rank: RankContext) -> None:
    """Tune a model by next-token prediction on all examples.

    Runs that can serve as a reference (`plan.is_reference`) keep C checkpoints. All others keep only their final model,
    and so does a baseline of fewer than C steps: the same settings are refused for a reference. `config` is the config
    of this run. For a reference, this is not the config of the pipeline.
    """
    encoded = context.encoded(config.model)
    train, more = encoded.train, dict[str, Any]()
    if config.recipe.comparison == "matched_compute":
        matched = matched_compute(config, encoded)
        config, more = with_epochs(config, matched.epochs), {"matched_compute": matched._asdict()}
        if rank.ranks.is_first:
            print(f"            {matched.in_words}: {num_steps(config, len(train)):,} steps", flush=True)
    num_checkpoints = config.reference.num_checkpoints
    if not is_reference(config) or num_steps(config, len(train)) < num_checkpoints:
        num_checkpoints = 1
    files = context.validation_files() if config.data.val_files else {}
    val_sets = {name: ValidationSet(file.examples) for name, file in files.items()}
    examples = TrainingExamples(train, ntp_weights(config, train), val_sets=val_sets)
    tune(spec, config, context, rank, examples, num_checkpoints, more)


def num_steps(config: Config, num_examples: int) -> int:
    """Return the number of optimizer steps of an NTP run."""
    steps_per_epoch = -(-num_examples // config.recipe.global_batch_size)
    return config.data.epochs * config.trainer.steps_per_epoch(steps_per_epoch)


def has_checkpoints(folder: Path, num_checkpoints: int) -> bool:
    """Whether an NTP run has all its C checkpoints. They are removed once they have scored."""
    return len(checkpoint_folders(folder)) == num_checkpoints


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoints of an NTP run in order. The last one is the tuned model or, with LoRA, its adapter."""
    last = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder / "model"
    return [*sorted((folder / CHECKPOINTS).glob("step-*")), last]
