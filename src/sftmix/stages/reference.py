"""Stage 1 (section 3.3, Step 1): tune the reference by next-token prediction and keep C checkpoints.

What it leaves is an NTP run: the same artifact as `recipe=ntp` at the same settings, found by either.
"""

from pathlib import Path

from sftmix.artifacts import Artifact, making
from sftmix.config import Model
from sftmix.stages.device import Device
from sftmix.stages.materials import Materials
from sftmix.stages.tuning import tune


def run_ntp(
    artifact: Artifact, materials: Materials, device: Device, *, stage: str, model: Model, lr: float, seed: int
) -> None:
    """Tune a model on all examples by next-token prediction, with the recipe's optimizer and C checkpoints."""
    train = materials.encoded(model).train
    weight = 1.0 if stage == "reference" else materials.config.recipe.ntp.weight
    with making(artifact, again=not has_checkpoints(artifact.folder)) as folder:
        if folder is not None:
            tune(
                folder,
                materials,
                device,
                stage=stage,
                title=f"{stage} (NTP)",
                model=model,
                lr=lr,
                seed=seed,
                train=train,
                is_confident=None,
                weights=[weight] * len(train),
                mixup=False,
                num_checkpoints=materials.config.reference.num_checkpoints,
            )
            (folder / "checkpoints").mkdir(exist_ok=True)


def has_checkpoints(folder: Path) -> bool:
    """Whether an NTP run still has all its C checkpoints: they go once they are scored."""
    return (folder / "checkpoints").is_dir()


def checkpoint_folders(folder: Path) -> list[Path]:
    """The C checkpoints of an NTP run in order; the tuned model is the last."""
    return [*sorted((folder / "checkpoints").glob("step-*")), folder / "model"]
