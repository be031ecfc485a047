"""Stage 1 (section 3.3, Step 1): tune the reference by next-token prediction and keep C checkpoints.

The result is an NTP run: the same artifact as `recipe=ntp` at the same settings, found by either. Both keep the C
checkpoints, so a baseline that was tuned first can score later. A baseline of fewer than C steps keeps only its final
model: a reference at its settings is refused, so there is no other artifact of the same fingerprint.
"""

from pathlib import Path

from sftmix.artifacts.artifact import CHECKPOINTS
from sftmix.config.schema import Config
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.plan import reference_lr
from sftmix.stages.train import ADAPTER, tune


def write_ntp(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Tune a model on all examples by next-token prediction, with the recipe's optimizer and C checkpoints.

    Runs with NEFTune or prompt loss cannot serve as a reference, so only their final model is saved. The same holds for
    a baseline of fewer than C steps.
    """
    config = context.config
    is_reference = spec.stage == "reference"
    recipe = config.recipe
    is_plain = is_reference or recipe.is_plain_ntp
    model = config.reference.model if is_reference else config.model
    train = context.encoded(model).train
    weight = 1.0 if is_reference else recipe.ntp.weight
    num_checkpoints = config.reference.num_checkpoints if is_plain else 1
    if not is_reference and num_steps(config, len(train)) < num_checkpoints:
        num_checkpoints = 1
    tune(
        spec,
        context,
        rank,
        title=f"{'reference' if is_reference else 'target'} ({'NTP' if is_plain else recipe.name})",
        model=model,
        lr=reference_lr(config) if is_reference else config.optimizer.lr,
        seed=config.reference.seed if is_reference else config.seed,
        train=train,
        is_confident=None,
        order=None,
        weights=[weight] * len(train),
        mixup=False,
        neftune_alpha=None if is_reference else recipe.neftune_alpha,
        prompt_weight=0.0 if is_reference else recipe.ntp.prompt_weight,
        num_checkpoints=num_checkpoints,
    )
    if rank.ranks.is_first and is_plain:
        (spec.folder / CHECKPOINTS).mkdir(exist_ok=True)


def num_steps(config: Config, num_examples: int) -> int:
    """Return the number of optimizer steps of a run on all of some examples."""
    return config.data.epochs * -(-num_examples // config.recipe.global_batch_size)


def has_checkpoints(folder: Path, num_checkpoints: int) -> bool:
    """Whether an NTP run still has all its C checkpoints: they go once they are scored."""
    return (folder / CHECKPOINTS).is_dir() and len(checkpoint_folders(folder)) == num_checkpoints


def checkpoint_folders(folder: Path) -> list[Path]:
    """The C checkpoints of an NTP run in order; the last is the tuned model, with LoRA its adapter."""
    last = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder / "model"
    return [*sorted((folder / CHECKPOINTS).glob("step-*")), last]
