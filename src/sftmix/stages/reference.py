"""Stage 1 (section 3.3, Step 1): tune the reference by next-token prediction and keep C checkpoints.

The result is an NTP run: the same artifact as `recipe=ntp` at the same settings, found by either. Both keep the C
checkpoints, so a baseline that was tuned first can score later. A baseline of fewer than C steps keeps only its final
model: a reference at its settings is refused, so there is no other artifact of the same fingerprint.
"""

from pathlib import Path

from sftmix.artifacts.artifact import CHECKPOINTS
from sftmix.config.schema import Config
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.plan import is_reference
from sftmix.stages.train import ADAPTER, TrainingExamples, tune


def write_ntp(spec: StageSpec, config: Config, context: RunContext, rank: RankContext) -> None:
    """Tune a model on all examples by next-token prediction, with the recipe's optimizer and C checkpoints.

    Only the runs that can serve as a reference keep C checkpoints (`is_reference`). All others, and a baseline of fewer
    than C steps, keep only their final model.
    """
    train = context.encoded(config.model).train
    num_checkpoints = config.reference.num_checkpoints
    if not is_reference(config) or num_steps(config, len(train)) < num_checkpoints:
        num_checkpoints = 1
    examples = TrainingExamples(train, [config.recipe.ntp.weight] * len(train))
    tune(spec, config, context, rank, examples, num_checkpoints)


def num_steps(config: Config, num_examples: int) -> int:
    """Return the number of optimizer steps of a run on all of some examples."""
    return config.data.epochs * -(-num_examples // config.recipe.global_batch_size)


def has_checkpoints(folder: Path, num_checkpoints: int) -> bool:
    """Whether an NTP run still has all its C checkpoints: they go once they are scored."""
    return len(checkpoint_folders(folder)) == num_checkpoints


def checkpoint_folders(folder: Path) -> list[Path]:
    """The C checkpoints of an NTP run in order; the last is the tuned model, with LoRA its adapter."""
    last = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder / "model"
    return [*sorted((folder / CHECKPOINTS).glob("step-*")), last]
