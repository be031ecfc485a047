"""Stage 1 (section 3.3, Step 1): tune the reference by next-token prediction and keep C checkpoints.

What it leaves is an NTP run: the same artifact as `recipe=ntp` at the same settings, found by either.
"""

import shutil
from pathlib import Path

from sftmix.artifacts import Artifact, making
from sftmix.config import Model
from sftmix.stages.device import Device
from sftmix.stages.materials import Materials
from sftmix.stages.tuning import ADAPTER, CHECKPOINTS, tune


def run_ntp(
    artifact: Artifact, materials: Materials, device: Device, *, stage: str, model: Model, lr: float, seed: int
) -> None:
    """Tune a model on all examples by next-token prediction, with the recipe's optimizer and C checkpoints."""
    train, num_checkpoints = materials.encoded(model).train, materials.config.reference.num_checkpoints
    weight = 1.0 if stage == "reference" else materials.config.recipe.ntp.weight
    needed = num_checkpoints if stage == "reference" else None
    with making(artifact, usable=lambda folder: needed is None or has_checkpoints(folder, needed)) as folder:
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
                num_checkpoints=num_checkpoints,
            )
            (folder / CHECKPOINTS).mkdir(exist_ok=True)


def has_checkpoints(folder: Path, num_checkpoints: int) -> bool:
    """Whether an NTP run still has all its C checkpoints: they go once they are scored."""
    return (folder / CHECKPOINTS).is_dir() and len(checkpoint_folders(folder)) == num_checkpoints


def checkpoint_folders(folder: Path) -> list[Path]:
    """The C checkpoints of an NTP run in order; the last is the tuned model, with LoRA its adapter."""
    last = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder / "model"
    return [*sorted((folder / CHECKPOINTS).glob("step-*")), last]


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of an NTP run but the last, which is the baseline: at once, or not at all."""
    dropped = folder / f"{CHECKPOINTS}.dropped"
    if (folder / CHECKPOINTS).is_dir():
        (folder / CHECKPOINTS).rename(dropped)
    shutil.rmtree(dropped, ignore_errors=True)
