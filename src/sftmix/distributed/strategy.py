"""Lightning strategies for the ranks of a run: DDP (a whole model on each rank), and FSDP2 (one model in shards)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from sftmix.distributed.checkpoint_io import CheckpointFolderIO, StoredTensor, local_slice
from sftmix.distributed.ranks import Ranks


class WholeModelStrategy(DDPStrategy):
    """DDP that leaves model and optimizer on the device at the end. Lightning's own copies both to the host."""

    def __init__(self) -> None:
        super().__init__(gradient_as_bucket_view=True)  # gradients stay in the buckets that are reduced, without a copy

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save a checkpoint. An error of the first rank is raised on all."""
        if isinstance(self.checkpoint_io, CheckpointFolderIO):
            self.checkpoint_io.save_from_all_ranks(checkpoint, filepath)
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def teardown(self) -> None:
        """Unwrap the model."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.model = self.lightning_module
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks, whose gradients are reduced once a step.

    Lightning's own FSDP2 uses all devices of a node for tensor parallelism by default, reduces the gradients of each
    micro-batch, and reads checkpoints by `pickle`. This strategy saves and loads `CheckpointFolderIO` folders.

    Args:
        accumulates_whole: Keep the gradients of micro-batches whole on each rank, in float32, and reduce them once a
            step. If False, they are reduced after each micro-batch: less memory, more traffic.
    """

    def __init__(self, world_size: int, accumulates_whole: bool = True) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1)
        self.accumulates_whole = accumulates_whole

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The plugin of the Trainer, by default `CheckpointFolderIO`."""
        if self._checkpoint_io is None:
            self._checkpoint_io = CheckpointFolderIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def model_to_device(self) -> None:
        """Do nothing: the shards are on their devices, and moving them would separate tied weights."""

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Do not reduce the gradients of a micro-batch."""
        assert self.model is not None
        shards = [m for m in self.model.modules() if isinstance(m, FSDPModule) and self.accumulates_whole]
        for shard in shards:
            shard.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for shard in shards:
                shard.set_requires_gradient_sync(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        return dict(optimizer.state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save a checkpoint, to which each rank writes its shards."""
        assert isinstance(self.checkpoint_io, CheckpointFolderIO)
        self.checkpoint_io.save_from_all_ranks(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint whose tensors are `StoredTensor`s."""
        assert isinstance(self.checkpoint_io, CheckpointFolderIO)
        return self.checkpoint_io.load_checkpoint(checkpoint_path, lazy=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Read this rank's shards of the weights."""
        assert self.lightning_module is not None
        weights = self.lightning_module.state_dict()
        for name, stored in checkpoint["state_dict"].items():
            if isinstance(stored, StoredTensor):
                read_into(weights[name], stored)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Read this rank's shards of the optimizer's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                k: {
                    name: read_into(torch.zeros_like(parameters[k]), value)
                    if isinstance(value, StoredTensor)
                    else value
                    for name, value in entries.items()
                }
                for k, entries in saved["state"].items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def read_into(tensor: torch.Tensor, stored: StoredTensor) -> torch.Tensor:
    """Fill this rank's shard of a tensor from a checkpoint, and return the tensor.

    Raises:
        RuntimeError: If the stored tensor has another shape.
    """
    if list(tensor.shape) != stored.shape:
        raise RuntimeError(f"{stored.name} has the shape {stored.shape}, expected {list(tensor.shape)}")
    local, first = local_slice(tensor)
    with torch.no_grad():
        local.copy_(stored.read(first, len(local)))
    return tensor


def trainer_arguments(
    strategy: str, accelerator: str, precision: str, ranks: Ranks, *, accumulates_whole: bool = True
) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer for devices, strategy, precision and checkpoints.

    Lightning uses the process group, which exists already. Under FSDP2 the shards compute in bfloat16 by their own
    policy, so Lightning's precision is single.

    Args:
        strategy: single, ddp or fsdp.
        accelerator: cpu or gpu.
        precision: Lightning's name of the precision.
        accumulates_whole: Under FSDP2, reduce gradients once a step.
    """
    is_sharded = strategy == "fsdp"
    common: dict[str, Any] = {"accelerator": accelerator, "precision": "32-true" if is_sharded else precision}
    if strategy == "single":  # or Lightning would read the environment variables of SLURM or torchrun
        return {**common, "devices": 1, "plugins": [CheckpointFolderIO(), LightningEnvironment()]}
    os.environ.update(
        RANK=str(ranks.rank),
        LOCAL_RANK=str(ranks.local_rank),
        GROUP_RANK=str(ranks.rank // ranks.num_local),
        WORLD_SIZE=str(ranks.world_size),
    )
    return {
        **common,
        "devices": ranks.num_local,
        "num_nodes": ranks.num_nodes,
        "plugins": [CheckpointFolderIO(), TorchElasticEnvironment()],
        "strategy": FSDP2Strategy(ranks.world_size, accumulates_whole) if is_sharded else WholeModelStrategy(),
    }
